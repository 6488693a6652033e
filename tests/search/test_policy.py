"""The policy in a search: retries, bad nodes, repeated failures, fitness values."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.codec import encode
from elmanctl.errors import ConfigError, SearchPaused, SubmissionError, UsageError
from elmanctl.ledger.payloads import NodeExcluded, Payload
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.submission import make_script
from elmanctl.search.effective_settings import avoided_nodes
from elmanctl.search.session import Session
from tests.search.scripted import Run, Runs, ScriptedExecutor, verdicts
from tests.search.test_actions import WithCommands, with_commands

__all__ = ["with_commands"]

pytestmark = pytest.mark.usefixtures("no_power_failures")

GOLDEN = Path(__file__).parents[1] / "data"


def asked(run: Run, state: RunState, evaluation: str) -> list[dict[str, Any]]:
    """Return what each attempt asked for, with the micro-batch in the spec of its worker."""
    found = []
    for attempt in state.evaluations[evaluation].attempts:
        resources = encode(state.submissions[attempt.submission].resources)
        spec = json.loads(run.paths.attempt(evaluation, attempt.number).spec.read_text())
        found.append({**resources, "micro_batch": spec["micro_batch"]})
    return found


def test_changes_add_up_over_failures_of_several_kinds_and_over_controllers(runs: Runs) -> None:
    run = runs.new(generations=1, slurm={"mem_gb": 32.0}, retry={"exclude_min": 0.0})
    tries = ["oom", "node_failure", "oom gpu", "killed", "completed"]
    run.world.script = {"g000-e01": tries}

    def leave_after_each(session: Session) -> None:
        run.stop.set()

    run.view.every_turn = leave_after_each
    for _ in range(60):
        run.stop.clear()
        state = run.drive()
        if state.status is RunStatus.FINISHED:
            break
    assert state.status is RunStatus.FINISHED
    given = asked(run, state, "g000-e01")
    assert [item["mem_gb"] for item in given] == [32.0, 48.0, 48.0, 48.0, 48.0]
    assert [item["micro_batch"] for item in given] == [0, 0, 0, 1, 1]
    assert all(
        "mem_gb" in item and item["mem_gb"] == 32.0 for item in asked(run, state, "g000-e00")
    )


CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "again": ("killed", {}),
    "memory": ("oom", {"mem_gb": 48.0}),
    "micro-batch": ("oom gpu", {}),
    "node": ("node_failure", {"exclude": ("n1",)}),
}


@pytest.mark.parametrize("name", CLASSES)
def test_script_of_a_further_attempt_is_the_golden_one(runs: Runs, name: str) -> None:
    run = runs.new(generations=1, slurm={"mem_gb": 32.0, "partition": "gpu", "python": "python3"})
    kind, changed = CLASSES[name]
    run.world.script = {"g000-e01": [kind]}
    executor = ScriptedExecutor(run.world)
    state = run.drive(executor=executor)
    assert state.status is RunStatus.FINISHED
    first, second = executor.submitted
    assert second.resources == replace(first.resources, **changed)
    assert [item["micro_batch"] for item in asked(run, state, "g000-e01")] == [
        0,
        1 if name == "micro-batch" else 0,
    ]
    paths = RunPaths(Path("/cluster/runs/e88"))
    golden = replace(second, id="s0002", job_name="elman-e88-1a2b3c4d-s0002")
    text = make_script(golden, paths.submission("s0002"), paths.code)
    # A micro-batch is the worker's affair: its job asks for the same.
    file = "again" if name == "micro-batch" else name
    assert text == (GOLDEN / f"submission-{file}.sh").read_text(encoding="utf-8")


def test_nodes_to_avoid_are_added_to_those_that_the_user_avoids() -> None:
    resources = Resources(
        timeout_min=5, python="python3", exclude=("n1", "n7"), extra={"exclude": "old[1-3]"}
    )
    task = Task(index=0, evaluation="g000-e00", attempt=1)
    submission = Submission(id="s0001", job_name="x", tasks=(task,), resources=resources)
    paths = RunPaths(Path("/cluster/run"))
    text = make_script(submission, paths.submission("s0001"), paths.code)
    (line,) = [line for line in text.splitlines() if "--exclude" in line]
    assert shlex.split(line.removeprefix("#SBATCH ")) == ["--exclude=old[1-3],n1,n7"]


def test_bad_node_gets_no_new_jobs_until_its_time_is_over(runs: Runs) -> None:
    run = runs.new(generations=1, slurm={})
    run.world.script = {"g000-e01": ["environment"], "g000-e02": ["killed"]}
    run.world.nodes = {"g000-e01": ["n7", "n2"]}
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["environment", "completed"]
    (node,) = state.excluded_nodes.values()
    assert (node.node, node.reason) == ("n7", "environment of g000-e01 attempt 1")
    assert asked(run, state, "g000-e01")[1]["exclude"] == ["n7"]
    # A signal from outside speaks of no node.
    assert set(state.excluded_nodes) == {"n7"}
    later = replace(node, until=node.at)
    assert avoided_nodes(state) == [node]
    state.excluded_nodes["n7"] = later
    assert avoided_nodes(state) == []


def test_outage_of_the_scheduler_is_outlived_on_the_same_nodes(runs: Runs) -> None:
    run = runs.new(generations=1, slurm={})
    run.world.script = {f"g000-e0{n}": ["environment outage"] * 5 for n in range(4)}
    run.world.nodes = {f"g000-e0{n}": [f"n{n}"] * 9 for n in range(4)}
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert verdicts(state, "g000-e01") == ["environment"] * 5 + ["completed"]
    assert state.excluded_nodes == {}


def test_no_node_is_avoided_where_that_is_off_or_there_is_no_other(runs: Runs) -> None:
    off: dict[str, Any] = {"slurm": {}, "retry": {"exclude_min": 0.0}}
    for changes in (off, {}):
        run = runs.new(generations=1, **changes)
        run.world.script = {"g000-e01": ["node_failure"]}
        state = run.drive()
        assert state.excluded_nodes == {}
        assert "exclude" not in asked(run, state, "g000-e01")[1]


def test_node_is_excluded_though_the_controller_died_before_it_said_so(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(generations=1, slurm={})
    run.world.script = {"g000-e01": ["node_failure"]}
    record = Session.record

    def die(self: Session, event: Payload) -> None:
        if isinstance(event, NodeExcluded):
            raise KeyboardInterrupt
        record(self, event)

    monkeypatch.setattr(Session, "record", die)
    with pytest.raises(KeyboardInterrupt):
        run.drive()
    monkeypatch.setattr(Session, "record", record)
    state = run.drive()
    assert set(state.excluded_nodes) == {"n1"}
    assert asked(run, state, "g000-e01")[1]["exclude"] == ["n1"]


def test_refusal_for_want_of_nodes_is_answered_by_taking_one_back(runs: Runs) -> None:
    run = runs.new(generations=1, slurm={}, retry={"exclude_min": 9.0})
    run.world.script = {"g000-e01": ["node_failure"]}
    executor = ScriptedExecutor(run.world)
    words = (
        "sbatch: error: Batch job submission failed: Requested node configuration is not available"
    )
    run.view.every_turn = lambda session: None
    submit = executor.submit

    def only_with_every_node(submission: Submission, folder: Path) -> str:
        if submission.resources.exclude:
            raise SubmissionError(words)
        return submit(submission, folder)

    executor.submit = only_with_every_node  # type: ignore[method-assign]
    state = run.drive(executor=executor)
    assert state.status is RunStatus.FINISHED
    (node,) = state.excluded_nodes.values()
    assert node.readmitted and avoided_nodes(state) == []
    assert verdicts(state, "g000-e01") == ["node_failure", "completed"]
    assert "exclude" not in asked(run, state, "g000-e01")[1]


def test_infrastructure_that_fails_on_every_node_pauses_with_its_own_reason(runs: Runs) -> None:
    run = runs.new(population=6, slurm={})
    run.world.everywhere = "node_failure"
    run.world.nodes = {f"g000-e0{n}": [f"n{n}"] * 9 for n in range(6)}
    with pytest.raises(SearchPaused, match="3 different nodes: node_failure on n0"):
        run.drive(executor=ScriptedExecutor(run.world, slots=1))


def test_count_of_failures_survives_a_controllers_death_and_starts_anew_after_a_pause(
    runs: Runs,
) -> None:
    run = runs.new(population=8)
    run.world.everywhere = "python_error"
    executor = ScriptedExecutor(run.world, slots=1)
    run.view.every_turn = lambda session: run.stop.set()
    failed = 0
    while failed < 2:
        run.stop.clear()
        failed = sum(
            e.state is State.FAILED for e in run.drive(executor=executor).evaluations.values()
        )
    run.stop.clear()
    run.view.every_turn = lambda session: None
    with pytest.raises(SearchPaused, match="the last 3 attempts ended as python_error"):
        run.drive(executor=executor)
    assert len(executor.submitted) == 3
    with pytest.raises(SearchPaused, match="the last 3 attempts"):
        run.drive(executor=executor)
    assert len(executor.submitted) == 6


def test_pause_while_everything_waits_for_another_attempt_is_no_dead_end(runs: Runs) -> None:
    run = runs.new("stuck", generations=1, slurm={})
    run.world.script = {f"g000-e0{n}": ["node_failure"] for n in range(4)}
    run.world.nodes = {f"g000-e0{n}": [f"n{n}"] for n in range(4)}
    with pytest.raises(SearchPaused, match="4 different nodes") as caught:
        run.drive()
    # There is nothing to open again: what waits is submitted by `resume` alone.
    assert caught.value.hint == (
        "see why with `elmanctl show stuck g000-e03`, fix the cause, then `elmanctl resume stuck`"
    )
    assert run.drive().status is RunStatus.FINISHED


def test_what_follows_a_failure_does_not_depend_on_when_others_failed_alike(runs: Runs) -> None:
    """Which of two jobs fails first is chance: the points of a search must not hang on it."""
    run = runs.new(generations=1, retry={"breaker": 0, "replacements": 0})
    run.world.script = {name: ["cuda_error"] for name in ("g000-e01", "g000-e02")}
    state = run.drive()
    for name in ("g000-e01", "g000-e02"):
        assert verdicts(state, name) == ["cuda_error", "completed"]
    stuck = runs.new(generations=1, retry={"breaker": 0, "replacements": 0, "cuda_error": 9})
    stuck.world.script = {"g000-e01": ["cuda_error"] * 9}
    assert verdicts(stuck.drive(), "g000-e01") == ["cuda_error"] * 2


def test_requeue_refuses_what_would_only_fail_again_unless_forced(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, population=6, retry={"breaker": 0, "replacements": 0})
    run.world.script = {
        **{name: ["python_error"] for name in ("g000-e01", "g000-e02")},
        "g000-e03": ["timeout"],
    }
    run.drive()
    with pytest.raises(UsageError, match="python_error: the worker says python_error") as caught:
        with_commands(run)("requeue", evaluations=["g000-e01", "g000-e03"])
    assert "g000-e01, g000-e02" in caught.value.message
    assert caught.value.hint is not None and "--force" in caught.value.hint
    answer = with_commands(run)("requeue", skip_deterministic=True)
    assert [row["evaluation"] for row in answer["requeued"]] == ["g000-e03"]
    assert list(answer["refused"]) == ["g000-e01", "g000-e02"]
    assert answer["requeued"][0]["note"].startswith("generation already reported")
    answer = with_commands(run)("requeue", evaluations=["g000-e01"], force=True)
    assert [row["attempt"] for row in answer["requeued"]] == [2]
    assert verdicts(run.drive(), "g000-e01") == ["python_error", "completed"]


def test_job_cancelled_by_somebody_else_can_be_queued_again_and_one_cancelled_here_is_left(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1)
    run.world.script = {"g000-e01": ["cancelled"]}
    run.world.held = {"g000-e02"}

    def stop_when_both_are_there(session: Session) -> None:
        evaluations = session.state.evaluations
        if evaluations and evaluations["g000-e01"].state.is_finished:
            run.stop.set()

    run.view.every_turn = stop_when_both_are_there
    run.drive()
    run.stop.clear()
    run.view.every_turn = lambda session: None
    with_commands(run)("cancel", all=False, evaluations=["g000-e02"])
    state = run.drive()
    assert state.evaluations["g000-e01"].state is State.CANCELLED
    assert [e.replaces for e in state.evaluations.values()] == [None] * 4
    answer = with_commands(run)("requeue", kinds=["cancelled"])
    assert [row["evaluation"] for row in answer["requeued"]] == ["g000-e01"]
    assert verdicts(run.drive(), "g000-e01") == ["cancelled", "completed"]


def test_requeue_by_hand_keeps_what_failures_taught_and_takes_the_users_word(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, slurm={"mem_gb": 32.0}, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["oom"] * 2, "g000-e02": ["oom"] * 2}
    run.drive()
    (row,) = with_commands(run)("requeue", evaluations=["g000-e01"])["requeued"]
    assert row["changes"] == {"mem_gb": 72.0}
    words = {"mem_gb": 80.0, "exclude": ["n9"], "timeout_min": 99}
    (row,) = with_commands(run)("requeue", evaluations=["g000-e02"], **words)["requeued"]
    assert row["changes"] == words
    state = run.drive()
    assert [item["mem_gb"] for item in asked(run, state, "g000-e01")] == [32.0, 48.0, 72.0]
    last = asked(run, state, "g000-e02")[-1]
    assert (last["mem_gb"], last["exclude"], last["timeout_min"]) == (80.0, ["n9"], 99)


def test_requeue_refuses_nodes_that_are_none(runs: Runs, with_commands: WithCommands) -> None:
    run = runs.new(generations=1, slurm={}, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["timeout"]}
    before = run.drive().seq
    for name in ("-n2", "n2\n#SBATCH --wrap=x", "n[1-2]", "", "$(x)"):
        with pytest.raises(UsageError, match="no node's name"):
            with_commands(run)("requeue", evaluations=["g000-e01"], exclude=[name])
    assert load_run(run.folder).state.seq == before
    local = runs.new(generations=1, retry={"replacements": 0})
    local.world.script = {"g000-e01": ["timeout"]}
    local.drive()
    with pytest.raises(ConfigError, match="no other node"):
        with_commands(local)("requeue", evaluations=["g000-e01"], exclude=["n2"])


@pytest.mark.parametrize(
    ("slurm", "changes", "words"),
    [
        (None, {"slurm.partition": "long"}, "runs on this machine"),
        (None, {"retry.exclude_min": 5.0}, "runs on this machine"),
        ({}, {"local.workers": 3}, "runs on Slurm"),
        ({}, {"slurm.template": "h100"}, "a template is read when a search starts"),
        ({}, {"train.lr": 1.0}, "part of what this search measures"),
    ],
)
def test_settings_that_mean_nothing_to_a_run_are_refused(
    runs: Runs, slurm: dict[str, Any] | None, changes: dict[str, Any], words: str
) -> None:
    run = runs.new(**dict.fromkeys(() if slurm is None else ("slurm",), slurm))
    with Session.open(run.folder) as session:
        with pytest.raises(UsageError, match=words):
            session.change_settings(changes)
        assert session.state.changes == {}


@pytest.mark.parametrize("key", ["oom", "breaker", "replacements", "lost", "cuda_device"])
def test_counts_of_the_policy_are_whole_and_not_negative(runs: Runs, key: str) -> None:
    run = runs.new()
    with Session.open(run.folder) as session, pytest.raises(ConfigError, match=f"retry.{key}"):
        session.check_changes({f"retry.{key}": -1})
