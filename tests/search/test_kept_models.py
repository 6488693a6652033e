"""A search keeps the models of its best evaluations, and no others, whatever happens."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmanctl.errors import NotFound, UsageError
from elmanctl.ledger.disk import measure
from elmanctl.ledger.payloads import ConfirmationAsked, Payload
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import AttemptPaths
from elmanctl.search.cleaning import plan_cleaning, retention
from elmanctl.search.confirmation import standing
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.kept_models import find_model, kept_evaluations
from elmanctl.search.request_schema import CleanRequest
from elmanctl.search.session import Session
from tests.search import scripted
from tests.search.scripted import Run, Runs, ScriptedExecutor, World

pytestmark = pytest.mark.usefixtures("no_power_failures")


def on_disk(run: Run) -> set[str]:
    """The evaluations whose models are there, one each and none in part."""
    found = sorted(run.paths.evaluations.glob("*/*/*model.safetensors*"))
    names = {path.parts[-3] for path in found}
    assert len(names) == len(found) and {path.name for path in found} <= {"model.safetensors"}
    return names


def best(state: RunState, count: int) -> list[str]:
    """The best evaluations, one of each configuration, found anew."""
    completed = [e for e in state.evaluations.values() if e.state is State.COMPLETED]
    own = [e for e in completed if e.answer is None and e.confirms is None]
    first: dict[str, str] = {}
    for e in sorted(own, key=lambda e: (e.loss, e.generation, e.id)):
        first.setdefault(e.configuration, e.id)
    return list(first.values())[:count]


@pytest.mark.parametrize("count", [1, 2, 5, 1000])
def test_the_models_of_the_best_are_left(runs: Runs, count: int) -> None:
    run = runs.new(disk={"keep_models": count}, generations=4)
    state = run.drive()
    assert on_disk(run) == set(best(state, count))
    for name in on_disk(run):
        assert find_model(run.paths, state, state.evaluations[name]).is_file()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    losses=st.lists(st.integers(1, 9), min_size=12, max_size=12),
    count=st.integers(1, 4),
    slots=st.integers(1, 5),
)
def test_the_order_of_results_does_not_matter(
    losses: Sequence[int], count: int, slots: int, runs: Runs
) -> None:
    left = iter(losses)
    by_config: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        # A configuration has one loss, and several may have the same.
        patch.setattr(
            scripted, "loss_of", lambda *point: by_config.setdefault(str(point), next(left))
        )
        run = runs.new(disk={"keep_models": count}, generations=3)
        state = run.drive(executor=ScriptedExecutor(run.world, slots=slots))
    kept = sorted(str(state.evaluations[name].loss) for name in on_disk(run))
    assert kept == [str(state.evaluations[name].loss) for name in best(state, count)]


def test_what_a_killed_worker_left_of_its_model_is_removed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = World.end

    def ended(self: World, job_id: str, verdict: str) -> None:
        """Kill workers after their model was written and before their result was."""
        if verdict == "node_failure":
            model = self.paths.attempt(*self.tasks[job_id]).model
            for path in (model, model.with_name(f"{model.name}.77.tmp")):
                path.write_bytes(b"w" * 5000)
        end(self, job_id, verdict)

    monkeypatch.setattr(World, "end", ended)
    run = runs.new(disk={"keep_models": 2})
    run.world.script = {f"g000-e0{i}": ["node_failure"] for i in range(2)}
    state = run.drive()
    assert on_disk(run) == set(best(state, 2))
    assert all(e.state is State.COMPLETED for e in state.evaluations.values())


def test_a_model_that_could_not_be_written_takes_no_place(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = best(runs.new(disk={"keep_models": 2}).drive(), 3)
    write_result = scripted.write_result

    def written(paths: AttemptPaths, verdict: str) -> None:
        """Write no model of the best, for want of room."""
        write_result(paths, verdict)
        if paths.folder.parent.name == first[0]:
            paths.model.unlink()
            result = json.loads(paths.result.read_text())
            del result["model_size_bytes"]
            result["model_not_kept"] = "No space left on device"
            paths.result.write_text(json.dumps(result))

    monkeypatch.setattr(scripted, "write_result", written)
    run = runs.new(disk={"keep_models": 2})
    state = run.drive()
    assert first[0] not in on_disk(run) and len(on_disk(run)) == 2
    with pytest.raises(NotFound, match="could not be written: No space left on device"):
        find_model(run.paths, state, state.evaluations[first[0]])


def test_without_the_switch_no_model_is_written(runs: Runs) -> None:
    run = runs.new(disk={"keep_models": 0})
    run.drive()
    assert on_disk(run) == set()


def test_workers_do_not_write_what_would_be_removed_at_once(runs: Runs) -> None:
    run = runs.new(disk={"keep_models": 1}, generations=6)
    state = run.drive()
    wrote = [e for e in state.evaluations.values() if has_left_a_model(e.attempts[-1].result)]
    assert 1 <= len(wrote) < len(state.ranked())


def has_left_a_model(result: Any) -> bool:
    return "model_size_bytes" in (result or {})


def test_a_kill_around_any_event_loses_no_model_that_is_kept(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(disk={"keep_models": 2}, confirm_top=2, confirm_seeds=2)
    left: list[Run] = []
    record = Session.record

    def recorded(self: Session, event: Payload) -> None:
        left.append(run.copy(tmp_path / f"kill-{len(left)}"))
        record(self, event)

    monkeypatch.setattr(Session, "record", recorded)
    run.drive()
    monkeypatch.setattr(Session, "record", record)
    assert len(on_disk(run)) == 2
    for killed in left:
        killed.drive()
        assert on_disk(killed) == on_disk(run)


def test_the_confirmed_winner_is_among_them_even_if_it_was_third(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(disk={"keep_models": 1}, confirm_top=3, confirm_seeds=1)
    loss_of = scripted.loss_of
    seen: list[float] = []

    def turned(config: Any, lr: float) -> float:
        """Return losses of confirmations in the opposite order."""
        seen.append(loss_of(config, lr))
        return -seen[-1] if len(seen) > searched else seen[-1]

    searched = 10**9
    monkeypatch.setattr(scripted, "loss_of", turned)

    def asked(self: Session, event: Payload) -> None:
        nonlocal searched
        record(self, event)
        if event.event_kind() == "confirmation_asked":
            searched = len(seen)
            assert len(on_disk(run)) == 3

    record = Session.record
    monkeypatch.setattr(Session, "record", asked)
    state = run.drive()
    winner = standing(state).winner
    assert winner is not None and winner.evaluation != best(state, 1)[0]
    assert on_disk(run) == {winner.evaluation}


def test_all_that_may_win_a_later_confirmation_are_kept(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.new(disk={"keep_models": 1}, confirm_top=3, confirm_seeds=1)
    run.drive()
    assert len(on_disk(run)) == 1
    asked: list[ConfirmationAsked] = []

    def recorded(self: Session, event: Payload) -> None:
        record(self, event)
        if isinstance(event, ConfirmationAsked):
            asked.append(event)
            assert {plan.confirms for plan in event.evaluations} <= on_disk(run)

    record = Session.record
    monkeypatch.setattr(Session, "record", recorded)
    state = run.drive(generations=6)
    # What the first generations had found was overtaken.
    assert asked and len(asked[0].evaluations) == 3
    winner = standing(state).winner
    assert winner is not None and on_disk(run) == {winner.evaluation}


def test_keeping_three_adds_no_more_than_their_weights(runs: Runs) -> None:
    plain, kept = runs.new(disk={"keep_models": 0}), runs.new(disk={"keep_models": 3})
    plain.drive()
    state = kept.drive()
    weights = sum(4 * state.evaluations[name].parameters for name in best(state, 3))
    added = measure(kept.folder) - measure(plain.folder)
    # What a file system rounds up is not ours.
    assert added <= 1.1 * weights + 3 * 4096 + 8192


def test_clean_removes_models_by_its_own_rule(runs: Runs) -> None:
    run = runs.new(disk={"keep_models": 3})
    state = run.drive()
    rules = effective_settings(state).disk
    assert not plan_cleaning(run.paths, state, rules, kinds=["models"])
    fewer = retention(rules, CleanRequest(keep_models=1))
    planned = plan_cleaning(run.paths, state, fewer, kinds=["models"])
    assert {file.evaluation for file in planned} == set(best(state, 3)[1:])
    none = retention(rules, CleanRequest(keep_models=0))
    assert len(plan_cleaning(run.paths, state, none, kinds=["models"])) == 3


def test_a_run_of_earlier_code_is_not_asked_for_models(runs: Runs) -> None:
    run = runs.new(disk={"keep_models": 2})
    frozen = run.paths.code.resolve()
    run.paths.code.unlink()
    shutil.copytree(frozen, run.paths.code)
    spec = run.paths.code / "elmanctl" / "run" / "spec.py"
    text = spec.read_text()
    assert "\n    keep: " in text
    spec.write_text(text.replace("\n    keep: ", "\n    kept: "))
    run.drive()
    with Session.open(run.folder) as session:
        session.check_changes({"disk.keep_models": 0})
        with pytest.raises(UsageError, match="begun by an earlier version") as raised:
            session.check_changes({"disk.keep_models": 3})
    assert raised.value.hint
    assert on_disk(run) == set()
    assert not any("keep" in path.read_text() for path in run.folder.rglob("spec.json"))


def test_a_model_that_is_not_there_is_refused_with_the_reason(runs: Runs) -> None:
    run = runs.new(disk={"keep_models": 1}, generations=3)
    run.world.script = {"g000-e01": ["diverged"]}
    state = run.drive()
    kept = kept_evaluations(state, effective_settings(state))[0]
    other = next(e for e in state.ranked() if e.id != kept.id)
    for evaluation, words in (
        (state.evaluations["g000-e01"], "has no model: it is failed"),
        (other, "was (not kept|removed): it was not among the best"),
    ):
        with pytest.raises(NotFound, match=words) as raised:
            find_model(run.paths, state, evaluation)
        assert raised.value.hint
    find_model(run.paths, state, kept).unlink()
    with pytest.raises(NotFound, match="was removed: by `elmanctl clean`"):
        find_model(run.paths, state, kept)
