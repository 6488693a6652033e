"""A search keeps the models of its best evaluations, and no others, whatever happens."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import NotFound
from elmanctl.ledger.disk import measure
from elmanctl.ledger.payloads import Payload
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.search.cleaning import plan_cleaning, retention
from elmanctl.search.confirmation import standing
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.kept_models import find_model, kept_evaluations
from elmanctl.search.request_schema import CleanRequest
from elmanctl.search.session import Session
from tests.search.scripted import Run, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")


def on_disk(run: Run) -> set[str]:
    """The evaluations whose models are there."""
    return {path.parts[-3] for path in run.paths.evaluations.glob("*/*/model.safetensors")}


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
    from tests.search import scripted

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
    assert on_disk(run) == set()
    assert not any("keep" in path.read_text() for path in run.folder.rglob("spec.json"))


def test_a_model_that_is_not_there_is_refused_with_the_reason(runs: Runs) -> None:
    run = runs.new(disk={"keep_models": 1}, generations=3)
    run.world.script = {"g000-e01": ["diverged"]}
    state = run.drive()
    kept = kept_evaluations(state, *rules(state))[0]
    other = next(e for e in state.ranked() if e.id != kept.id)
    for evaluation, words in (
        (state.evaluations["g000-e01"], "has no model: it is failed"),
        (other, "was not kept|was removed"),
    ):
        with pytest.raises(NotFound, match=words) as raised:
            find_model(run.paths, state, evaluation)
        assert raised.value.hint
    find_model(run.paths, state, kept).unlink()
    with pytest.raises(NotFound, match="was removed"):
        find_model(run.paths, state, kept)


def rules(state: RunState) -> tuple[Any, Any]:
    settings = effective_settings(state)
    return settings.disk, settings.search
