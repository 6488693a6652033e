"""requeue, cancel and clean: by request to a controller at work, and with none."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli import run_client
from elmanctl.constants import MODES
from elmanctl.errors import ConfigError, NotFound, UsageError
from elmanctl.ledger.disk import measure
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.requests import leave_request
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.ledger.submissions import Resources
from elmanctl.search.session import Session
from tests.integration.runs import points
from tests.patience import PATIENCE_S
from tests.search.scripted import Run, Runs, ScriptedExecutor, verdicts

pytestmark = pytest.mark.usefixtures("no_power_failures")


class Commands:
    """Commands against a run, by another process' way: under the lease, or by request."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self._run = run
        self.executor = ScriptedExecutor(run.world)
        monkeypatch.setattr(run_client, "make_executor", lambda *_: self.executor)
        monkeypatch.setattr(run_client, "_COLLECT_POLL_S", 0.01)
        monkeypatch.setattr(run_client, "_PAUSES_S", (0.0, 0.01, 0.01))

    def __call__(self, command: str, **arguments: Any) -> dict[str, Any]:
        return run_client.act_on_run(self._run.paths, command, arguments)


@pytest.fixture
def with_commands(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], Commands]:
    return lambda run: Commands(run, monkeypatch)


class Driven:
    """A controller at work in a thread."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.ended: RunState | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._drive)
        self._thread.start()

    def _drive(self) -> None:
        try:
            self.ended = self.run.drive()
        except BaseException as exc:
            self.error = exc

    def wait_for(self, holds: Callable[[RunState], bool]) -> None:
        """Wait until the run's ledger says something."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            state = load_run(self.run.folder).state
            if holds(state):
                return
            time.sleep(0.01)
        raise AssertionError("the run did not get there")

    def join(self) -> RunState:
        """Wait for the controller's end."""
        self._thread.join(timeout=PATIENCE_S)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.ended is not None
        return self.ended

    def close(self) -> None:
        self.run.stop.set()
        self._thread.join(timeout=PATIENCE_S)


@pytest.fixture
def start() -> Iterator[Callable[[Run], Driven]]:
    """Start controllers; all end with the test."""
    started: list[Driven] = []

    def begin(run: Run) -> Driven:
        started.append(Driven(run))
        return started[-1]

    yield begin
    for driven in started:
        driven.close()


WithCommands = Callable[[Run], Commands]
Start = Callable[[Run], Driven]


def has_failed(name: str) -> Callable[[RunState], bool]:
    return lambda state: name in state.evaluations and state.evaluations[name].state is State.FAILED


def is_running(name: str) -> Callable[[RunState], bool]:
    return lambda state: (
        name in state.evaluations and state.evaluations[name].state is State.RUNNING
    )


def test_requeued_evaluation_is_run_again_by_the_controller_at_work(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    run.world.held = {"g000-e00"}
    driven = start(run)
    driven.wait_for(has_failed("g000-e01"))
    answer = with_commands(run)("requeue", evaluations=["g000-e01"])
    row = {"evaluation": "g000-e01", "was": "python_error", "attempt": 2, "changes": {}}
    assert answer == {
        "requeued": [{**row, "note": None}],
        "refused": {},
        "by_controller": True,
    }
    run.world.held.clear()
    state = driven.join()
    assert verdicts(state, "g000-e01") == ["python_error", "completed"]
    assert len(state.told[0]) == 4


def test_requeue_that_cannot_be_is_answered_with_the_reason(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e00"}
    driven = start(run)
    driven.wait_for(is_running("g000-e00"))
    with pytest.raises(Exception, match="g000-e00 is running: only failed") as caught:
        with_commands(run)("requeue", evaluations=["g000-e00"])
    assert getattr(caught.value, "exit_code", None) == UsageError.exit_code
    run.world.held.clear()
    assert driven.join().status is RunStatus.FINISHED


@pytest.mark.parametrize("mode", MODES)
def test_cancelled_evaluation_is_ended_by_the_controller_and_not_told(
    runs: Runs, with_commands: WithCommands, start: Start, mode: str
) -> None:
    run = runs.new(generations=1, mode=mode)
    run.world.held = {"g000-e00", "g000-e01"}
    driven = start(run)
    driven.wait_for(is_running("g000-e01"))
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01"])
    assert [row["result"] for row in answer["cancelled"]] == ["cancelled"]
    run.world.held.clear()
    state = driven.join()
    assert state.evaluations["g000-e01"].state is State.CANCELLED
    assert verdicts(state, "g000-e01") == ["cancelled"]
    assert [name for name, _ in state.told[0]] == ["g000-e00", "g000-e02", "g000-e03"]


def test_cancelled_run_ends_its_controller_and_every_job_is_on_record(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new()
    run.world.held = {f"g000-e0{index}" for index in range(4)}
    driven = start(run)
    driven.wait_for(is_running("g000-e03"))
    with_commands(run)("cancel", all=True, evaluations=[])
    state = driven.join()
    assert state.status is RunStatus.CANCELLED
    assert state.live_attempts() == []
    assert len(set(run.world.cancelled)) == 4
    with pytest.raises(UsageError, match="was cancelled"), Session.open(run.folder) as session:
        session.refuse_cancelled()


def test_cancelling_with_no_controller_ends_jobs_and_records_their_end(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    run.view.every_turn = lambda session: (
        run.stop.set() if is_running("g000-e01")(session.state) else None
    )
    run.drive()
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01", "g000-e00"])
    assert answer["error"] is None
    assert (answer["still_there"], answer["unknown"]) == ([], None)
    state = load_run(run.folder).state
    assert state.evaluations["g000-e01"].state is State.CANCELLED
    assert verdicts(state, "g000-e01") == ["cancelled"]


@pytest.mark.parametrize("is_controlled", [True, False])
def test_job_that_goes_on_after_it_was_cancelled_is_named(
    runs: Runs,
    with_commands: WithCommands,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    is_controlled: bool,
) -> None:
    """scancel says that all is well, and does nothing, as with a filter in the profile."""
    run = runs.new(generations=1)
    run.world.held = {"g000-e01", "g000-e02"}
    run.world.ignores_scancel = True
    driven = start(run)
    driven.wait_for(is_running("g000-e02"))
    if not is_controlled:
        monkeypatch.setattr(run_client, "_COLLECT_S", 0.1)
        run.stop.set()
        driven.join()
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01", "g000-e00"])
    assert answer["error"] is None
    assert [(row["evaluation"], row["now"]) for row in answer["cancelled"]] == [
        ("g000-e01", "running"),
        ("g000-e00", None),
    ]
    job = load_run(run.folder).state.evaluations["g000-e01"].attempts[0].job_id
    assert [row["job"] for row in answer["still_there"]] == [job]
    if is_controlled:
        run.world.ignores_scancel = False
        run.world.held.clear()
        driven.join()


def test_whether_jobs_have_ended_is_not_known_while_the_scheduler_is_silent(
    runs: Runs, with_commands: WithCommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    run.view.every_turn = lambda session: (
        run.stop.set() if session.state.evaluations["g000-e00"].state.is_finished else None
    )
    run.drive()
    run.world.silent = True
    monkeypatch.setattr(run_client, "_COLLECT_S", 0.1)
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01", "g000-e00"])
    assert answer["unknown"]
    # How the other one ended is on record.
    assert [row["now"] for row in answer["cancelled"]] == ["not known", None]


def test_job_whose_scheduler_was_silent_when_it_was_cancelled_is_ended_later(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    driven = start(run)
    driven.wait_for(is_running("g000-e01"))
    run.world.silent = True
    answer = with_commands(run)("cancel", all=False, evaluations=["g000-e01"])
    assert answer["error"] == "`scancel` did not answer"
    run.world.silent = False
    state = driven.join()
    assert verdicts(state, "g000-e01") == ["cancelled"]
    assert len(set(run.world.cancelled)) == 1


def test_requeue_with_no_controller_submits_and_resume_collects(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    before = run.drive()
    assert len(before.told[0]) == 3
    answer = with_commands(run)("requeue", evaluations=["g000-e01"])
    (row,) = answer["requeued"]
    assert (row["was"], row["attempt"]) == ("python_error", 2)
    assert row["job"] in run.world.tasks
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["python_error", "completed"]
    assert state.status is RunStatus.FINISHED


def test_requeued_evaluation_of_a_generation_already_told_is_not_told_again(
    runs: Runs, with_commands: WithCommands, tmp_path: Path
) -> None:
    run = runs.new(generations=2, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    run.drive()
    undisturbed = run.copy(tmp_path / "undisturbed").drive(generations=4)
    with_commands(run)("requeue", evaluations=["g000-e01"])
    state = run.drive(generations=4)
    assert state.evaluations["g000-e01"].state is State.COMPLETED
    assert "g000-e01" not in dict(state.told[0])
    # Its loss counts for the best, and the points that follow are the same.
    assert points(state) == points(undisturbed)
    assert "g000-e01" in [e.id for e in state.ranked()]


def test_evaluation_that_was_replaced_and_queued_again_is_told_in_place_of_its_replacement(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    """The optimizer never learns from more points than a generation has."""
    run = runs.new(generations=2)
    run.world.script = {"g000-e01": ["python_error"]}
    run.world.held = {"g000-e04"}
    driven = start(run)
    driven.wait_for(is_running("g000-e04"))
    with_commands(run)("requeue", evaluations=["g000-e01"])
    driven.wait_for(lambda state: verdicts(state, "g000-e01") == ["python_error", "completed"])
    run.world.held.clear()
    state = driven.join()
    assert [name for name, _ in state.told[0]] == [f"g000-e0{index}" for index in range(4)]
    assert state.status is RunStatus.FINISHED


def test_requeued_evaluation_starts_its_count_of_retries_anew(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0, "killed": 1})
    run.world.script = {"g000-e01": ["killed"] * 4}
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["killed", "killed"]
    with_commands(run)("requeue", evaluations=["g000-e01"])
    state = run.drive()
    assert verdicts(state, "g000-e01") == ["killed"] * 4
    assert state.evaluations["g000-e01"].state is State.FAILED


def test_time_limit_of_a_requeue_is_that_of_the_new_attempt(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    run.drive()
    with_commands(run)("requeue", evaluations=["g000-e01"], timeout_min=77)
    state = load_run(run.folder).state
    last = state.evaluations["g000-e01"].attempts[-1]
    assert state.submissions[last.submission].resources == Resources(timeout_min=77)


def test_requeue_that_asks_for_what_cannot_be_changes_nothing(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["python_error"]}
    before = run.drive().seq
    with pytest.raises(ConfigError, match="no limit on memory"):
        with_commands(run)("requeue", evaluations=["g000-e01"], mem_gb=80.0)
    with pytest.raises(NotFound, match="no evaluation `g000-e99`"):
        with_commands(run)("requeue", evaluations=["g000-e01", "g000-e99"])
    with pytest.raises(UsageError, match="g000-e00 is completed"):
        with_commands(run)("requeue", evaluations=["g000-e01", "g000-e00"])
    assert load_run(run.folder).state.seq == before


def test_cleaning_frees_what_it_says_and_keeps_the_best_and_all_results(
    runs: Runs, with_commands: WithCommands
) -> None:
    run = runs.new(disk={"keep_models": 0})
    state = run.drive()
    run.leave_files(state)
    before = measure(run.folder)
    answer = with_commands(run)("clean", keep_best=2, keep_last=0, kinds=[])
    # Metrics, log, pickle, and what the stand-in for a worker left of its reserve.
    assert answer["files"] == 6 * 4
    assert before - measure(run.folder) >= answer["freed_bytes"] - 64_000
    state = load_run(run.folder).state
    assert sum(state.freed_bytes.values()) == answer["freed_bytes"]
    best = {e.id for e in state.ranked()[:2]}
    for evaluation in state.evaluations.values():
        paths = run.paths.attempt(evaluation.id, 1)
        assert paths.result.exists() and paths.spec.exists()
        assert paths.metrics.exists() is (evaluation.id in best)
    assert with_commands(run)("clean", keep_best=2, keep_last=0, kinds=[]) == {
        "freed_bytes": 0,
        "files": 0,
    }
    assert run.drive(generations=3).status is RunStatus.FINISHED


def test_cleaning_while_a_controller_runs_leaves_unfinished_evaluations_alone(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1)
    run.world.held = {"g000-e01"}
    driven = start(run)
    driven.wait_for(lambda state: sum(e.state.is_finished for e in state.evaluations.values()) == 3)
    run.leave_files(load_run(run.folder).state)
    answer = with_commands(run)("clean", keep_best=0, keep_last=0, kinds=["metrics"])
    assert (answer["files"], answer["by_controller"]) == (3, True)
    assert run.paths.attempt("g000-e01", 1).metrics.exists()
    run.world.held.clear()
    assert driven.join().status is RunStatus.FINISHED


def test_link_in_place_of_a_folder_is_never_followed_by_cleaning(
    runs: Runs, with_commands: WithCommands, tmp_path: Path
) -> None:
    run = runs.new(generations=1)
    run.leave_files(run.drive())
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "metrics.jsonl").write_text("precious", encoding="utf-8")
    folder = run.paths.attempt("g000-e00", 1).folder
    folder.rename(tmp_path / "aside")
    folder.symlink_to(precious)
    answer = with_commands(run)("clean", keep_best=0, keep_last=0, kinds=["metrics"])
    assert (precious / "metrics.jsonl").exists()
    assert answer["files"] == 3


def test_request_that_is_carried_out_and_not_answered_is_not_carried_out_twice(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed around every event of a controller that applies a requeue."""
    run = runs.new(generations=1, retry={"replacements": 0})
    run.world.script = {"g000-e01": ["timeout"], "g000-e02": ["timeout"]}
    run.drive()
    request = leave_request(run.folder, "requeue", {"evaluations": ["g000-e01", "g000-e02"]})
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        left.append(run.copy(tmp_path / f"kill-{len(left)}"))
        record(self, event)

    monkeypatch.setattr(Session, "record", recorded)
    run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert len(left) > 8
    for killed in left:
        state = killed.drive()
        for name in ("g000-e01", "g000-e02"):
            assert verdicts(state, name) == ["timeout", "completed"]
        answer = state.applied_requests[request]["answer"]
        assert [row["evaluation"] for row in answer["requeued"]] == ["g000-e01", "g000-e02"]
        assert not (killed.folder / "requests" / f"{request}.json").exists()


def test_unknown_request_is_answered_and_disturbs_nothing(runs: Runs) -> None:
    run = runs.new(generations=1)
    request = leave_request(run.folder, "cancel", {"evaluations": ["nonsense"]})
    state = run.drive()
    assert state.status is RunStatus.FINISHED
    assert "no evaluation `nonsense`" in state.applied_requests[request]["answer"]["error"]


def test_cleaning_leaves_the_checkpoints_of_what_may_still_be_tried_again(
    runs: Runs, with_commands: WithCommands, start: Start
) -> None:
    run = runs.new(generations=1, train={"checkpoint_min": 5.0}, retry={"replacements": 0})
    run.world.script = {"g000-e00": ["timeout"]}
    run.world.held = {"g000-e03"}
    driven = start(run)
    driven.wait_for(lambda state: sum(e.state.is_finished for e in state.evaluations.values()) == 3)
    files = [run.paths.attempt(f"g000-e0{index}", 1).checkpoint for index in (0, 3)]
    for path in files:
        path.write_bytes(b"state" * 2000)
    answer = with_commands(run)("clean", keep_best=0, keep_last=0, kinds=["checkpoints"])
    assert answer["files"] == 1
    assert [path.exists() for path in files] == [False, True]
    run.world.held.clear()
    assert driven.join().status is RunStatus.FINISHED
