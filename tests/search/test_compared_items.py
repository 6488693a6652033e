"""Rows of a comparison, from runs with confirmations and repeats, and from results of `eval`."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.errors import ElmanError, NotFound, UsageError
from elmanctl.ledger.records import CONFIRMATION, Evaluation, RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.models.params import state_size
from elmanctl.run.paths import RunPaths
from elmanctl.search.compared_items import find_rows
from elmanctl.search.compared_results import row_of_run
from elmanctl.search.comparison import Row, compare_rows
from tests.search.scripted import Runs

AXES = {
    "n_heads": {"kind": "int", "low": 1, "high": 4},
    "depth": {"kind": "int", "low": 1, "high": 2},
}
SEARCH = {"axes": AXES, "model": {"dim": 32, "n_state": 8, "lr": 1e-2}, "generations": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Iterator[Path]:
    """A folder of runs: one whose repeats were answered, one whose repeats got other seeds."""
    root = tmp_path_factory.mktemp("compared")
    (root / "templates").mkdir()
    made = Runs(root / "runs", corpus, root / "templates")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        assert made.new(name="answered", **SEARCH).drive().status is RunStatus.FINISHED
        assert made.new(name="reseeded", repeats="reseed", **SEARCH).drive().repeats
    yield root / "runs"


def load(paths: RunPaths) -> RunState:
    return load_run(paths.folder).state


def confirm(state: RunState, chosen: Evaluation, losses: list[float]) -> None:
    """Add completed confirmations of an evaluation, with these losses, on the seeds from 100 on."""
    names = []
    for n, loss in enumerate(losses):
        last = chosen.attempts[-1]
        assert last.result is not None
        attempt = replace(last, result={**last.result, "loss": loss})
        name = f"c000-e{state.totals['evaluations']:02}"
        names.append(name)
        state.put(
            replace(
                chosen,
                id=name,
                confirms=chosen.id,
                generation=CONFIRMATION,
                seed=100 + n,
                attempts=(attempt,),
                repeats=None,
            )
        )
    state.confirmations[chosen.id] = tuple(names)


def losses_of(row: Row) -> dict[int, float]:
    return dict(row.sample.losses)


def test_run_without_confirmations_is_its_lowest_loss(runs: Path) -> None:
    state = load(RunPaths(runs / "answered"))
    best = state.best()
    assert best is not None
    row = row_of_run(RunPaths(runs / "answered"), state)
    assert (row.item, row.basis) == (f"answered/{best.configuration}", "lowest of a search")
    assert losses_of(row) == {best.seed: best.loss}
    assert row.searched == len(state.ranked()) > 1
    assert row.parameters == best.parameters
    assert row.state_elements_per_layer == state_size("e88", best.config)


def test_confirmed_run_is_its_lowest_confirmed_mean_without_the_value_it_was_chosen_for(
    runs: Path,
) -> None:
    state = load(RunPaths(runs / "answered"))
    first, second, third = state.ranked()[:3]
    confirm(state, first, [2.0, 2.2])
    confirm(state, second, [2.0, 2.1])
    row = row_of_run(RunPaths(runs / "answered"), state)
    assert (row.item, row.basis) == (f"answered/{second.configuration}", "confirmations")
    assert losses_of(row) == {100: 2.0, 101: 2.1}
    named = find_rows([f"answered/{first.id}", f"answered/{third.id}"], runs, lambda _: state)
    assert [losses_of(each) for each in named] == [{100: 2.0, 101: 2.2}, {third.seed: third.loss}]
    assert [each.basis for each in named] == ["confirmations", "evaluation"]
    again = state.confirmations[second.id][0]
    (alone,) = find_rows([f"answered/{again}"], runs, lambda _: state)
    assert losses_of(alone) == {100: 2.0}
    with pytest.raises(UsageError, match="have a result in common"):
        find_rows(["answered", f"answered/{again}"], runs, lambda _: state)


def test_reseeded_repeat_that_was_confirmed_is_its_configuration(runs: Path) -> None:
    state = load(RunPaths(runs / "reseeded"))
    first, repeats = next(iter(state.repeats.items()))
    confirm(state, state.evaluations[repeats[-1]], [2.0, 2.2])
    (row,) = find_rows([f"reseeded/{first}"], runs, lambda _: state)
    assert (row.basis, losses_of(row)) == ("confirmations", {100: 2.0, 101: 2.2})


def test_confirmation_that_failed_is_no_loss(runs: Path) -> None:
    state = load(RunPaths(runs / "answered"))
    best = state.ranked()[0]
    confirm(state, best, [2.0, 2.2, 2.4])
    failed = state.evaluations[state.confirmations[best.id][0]]
    state.put(replace(failed, state=State.FAILED))
    assert losses_of(row_of_run(RunPaths(runs / "answered"), state)) == {101: 2.2, 102: 2.4}


def test_evaluation_counts_with_its_reseeded_repeats(runs: Path) -> None:
    state = load(RunPaths(runs / "reseeded"))
    first, repeats = next(iter(state.repeats.items()))
    same = [state.evaluations[name] for name in (first, *repeats)]
    (row,) = find_rows([f"reseeded/{repeats[-1]}"], runs, load)
    assert row.item == f"reseeded/{first}"
    assert losses_of(row) == {each.seed: each.loss for each in same}
    assert len(row.results) == len(same) > 1 and not row.left_out


def test_answered_repeat_is_the_evaluation_that_answered_it(runs: Path) -> None:
    state = load(RunPaths(runs / "answered"))
    answered = next(each for each in state.evaluations.values() if each.answer is not None)
    assert answered.answer is not None
    (row,) = find_rows([f"answered/{answered.id}"], runs, load)
    assert row.item == f"answered/{answered.repeats}"
    assert losses_of(row) == {answered.seed: answered.loss}


def test_runs_under_one_protocol_are_one_group(runs: Path) -> None:
    (group,) = compare_rows(find_rows(["answered", "reseeded"], runs, load))
    assert {each.row.item.split("/")[0] for each in group.rows} == {"answered", "reseeded"}
    assert group.protocol["budget"] == load(RunPaths(runs / "answered")).run["protocol"]["budget"]
    assert len(str(group.protocol["corpus_sha256"])) == 64


def test_run_is_found_by_its_path_and_by_a_prefix(runs: Path) -> None:
    by_name, by_path, by_prefix = (
        find_rows([item], runs, load) for item in ("answered", f"{runs}/answered/", "answ")
    )
    assert by_name == by_path == by_prefix
    evaluation = by_name[0].item.rpartition("/")[2]
    for item in (f"answ/{evaluation}", f"{runs}/answered/{evaluation}", "answered/best"):
        assert find_rows([item], runs, load) == by_name


@pytest.mark.parametrize(
    ("items", "kind", "told", "way_out"),
    [
        (["answerd"], NotFound, "no run, evaluation or folder `answerd`", "mean `answered`?"),
        (["answered/g009-e99"], NotFound, "no evaluation `g009-e99` in run `answered`", "mean `g"),
        (["x", "y"], NotFound, "folder `x`; no run, evaluation or folder `y`", "elmanctl status"),
        (["answered", "answered"], UsageError, "is named twice", None),
        (["."], NotFound, ". is the folder of no run", "elmanctl status"),
    ],
)
def test_item_that_cannot_be_compared_is_named_with_a_hint(
    items: list[str], kind: type[ElmanError], told: str, way_out: str | None, runs: Path
) -> None:
    with pytest.raises(kind) as refused:
        find_rows(items, runs, load)
    assert told in refused.value.message
    assert (way_out or "") in (refused.value.hint or "")


def test_run_without_a_completed_evaluation_is_refused(runs: Path) -> None:
    state = load(RunPaths(runs / "answered"))
    for evaluation in list(state.evaluations.values()):
        state.put(replace(evaluation, state=State.FAILED))
    name = next(iter(state.evaluations))
    for items, told in (
        (["answered"], "run `answered` has no completed evaluation"),
        ([f"answered/{name}"], f"{name} of run `answered` is failed, so it has no loss"),
    ):
        with pytest.raises(NotFound) as refused:
            find_rows(items, runs, lambda _: state)
        assert refused.value.message == told
        assert "shows why" in (refused.value.hint or "")
