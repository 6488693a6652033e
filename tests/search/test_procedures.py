"""Procedures of a study as whole searches: its first one, and a hypercube before CMA-ES."""

from pathlib import Path
from typing import Any

import pytest

from elmanctl.config import resolve
from elmanctl.errors import ConfigError, InvalidConfiguration
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.settings import SearchSettings
from tests.search.scripted import Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")


def defaults(optimizer: str, tmp_path: Path, **flags: object) -> SearchSettings:
    """Return the settings that come with an optimizer."""
    named = {"search.optimizer": optimizer, **{f"search.{k}": v for k, v in flags.items()}}
    return resolve(named, folder=tmp_path, environment={"HOME": str(tmp_path)}).settings.search


def of_study(**changes: Any) -> dict[str, Any]:
    study = {"optimizer": "study", "failed_loss": 10.0, "repeats": "again"}
    return {**study, "retry": {"replacements": 0}, **changes}


def trained(state: RunState) -> list[tuple[object, ...]]:
    return [(e.id, e.point, e.seed, len(e.attempts)) for e in state.evaluations.values()]


def test_study_comes_with_its_settings_and_others_override_them(tmp_path: Path) -> None:
    search = defaults("study", tmp_path)
    assert (search.sigma, search.population, search.generations) == (0.3, 8, 1000)
    assert (search.patience, search.min_improvement, search.failed_loss) == (2, 0.01, 10.0)
    assert (search.repeats, search.confirm_top) == ("again", 0)
    assert defaults("study", tmp_path, start_from_best=True).sigma == 0.15
    assert defaults("study", tmp_path, start_from_best=True, sigma=0.2).sigma == 0.2
    assert defaults("lhs-cma", tmp_path).sigma == 0.14
    plain = defaults("cma", tmp_path)
    assert (plain.sigma, plain.failed_loss, plain.repeats) == (0.3, None, "answer")


def test_origin_of_a_setting_is_the_optimizer(tmp_path: Path) -> None:
    found = resolve(
        {"search.optimizer": "lhs-cma"}, folder=tmp_path, environment={"HOME": str(tmp_path)}
    )
    assert found.origins["search.sigma"] == "optimizer lhs-cma"


def test_in_the_study_failures_are_a_loss_of_10_and_repeats_are_trained_again(runs: Runs) -> None:
    axes = {"n_heads": {"kind": "int", "low": 1, "high": 3}}
    model = {"dim": 32, "depth": 1, "n_state": 8, "lr": 1e-2}
    run = runs.new(**of_study(axes=axes, model=model, generations=3, population=8))
    run.world.script = {"g000-e01": ["python_error"], "g001-e02": ["diverged"]}
    state = run.drive()
    assert state.status is RunStatus.FINISHED and len(state.evaluations) == 24
    assert dict(state.told[0])["g000-e01"] == dict(state.told[1])["g001-e02"] == 10.0
    assert state.evaluations["g000-e01"].state is State.FAILED
    repeats = [e for e in state.evaluations.values() if e.repeats]
    assert repeats and state.answered == 0
    assert {(e.seed, len(e.attempts)) for e in repeats} == {(42, 1)}


def test_point_that_cannot_be_built_is_not_replaced_and_one_generation_may_have_none(
    runs: Runs,
) -> None:
    """Of 20 to 60 heads of 8 only few meet the budget, which the study did not demand of points."""
    axes = {"n_heads": {"kind": "int", "low": 1, "high": 60}}
    changes = of_study(
        axes=axes,
        **{"params": "100K", "tolerance": 0.03, "multiple_of": 64, "space": "tiny"},
        **{"model": {"depth": 1, "n_state": 8, "lr": 1e-2}, "generations": 6, "population": 8},
    )
    run = runs.new(**changes)
    state = run.drive()
    assert sum(state.refused.values()) > 0
    assert all(
        len(state.generation_members(g)) + state.refused[g] == 8 for g in range(len(state.told))
    )
    again = run.drive(generations=9)
    assert trained(again)[: len(state.evaluations)] == trained(state)


def test_generation_without_a_valid_point_is_one_of_the_study_also_after_a_kill(
    runs: Runs, tmp_path: Path
) -> None:
    axes = {"n_heads": {"kind": "int", "low": 1, "high": 60}}
    changes = of_study(
        axes=axes, params="100K", tolerance=0.02, multiple_of=32, generations=8, seed=4
    )
    changes |= {"model": {"depth": 1, "n_state": 8, "lr": 1e-2}}
    whole = runs.new(**changes).drive()
    assert [len(whole.generation_members(g)) for g in range(4)] == [2, 1, 0, 0]
    for kill_at in range(3, whole.seq, 3):
        run = runs.new(**changes).killed_at(kill_at, tmp_path / f"killed-{kill_at}")
        state = run.drive()
        assert (trained(state), state.told, state.reason) == (
            trained(whole),
            whole.told,
            whole.reason,
        )


def test_study_of_which_no_first_point_can_be_built_is_refused(runs: Runs) -> None:
    changes = of_study(params="100K", tolerance=0.02, multiple_of=32, generations=8, seed=1)
    changes |= {"axes": {"n_heads": {"kind": "int", "low": 1, "high": 60}}}
    with pytest.raises(InvalidConfiguration, match="none of the first 4 points can be built"):
        runs.new(**changes, model={"depth": 1, "n_state": 8, "lr": 1e-2})


def test_pycma_ends_the_study_after_a_first_generation_without_a_loss(runs: Runs) -> None:
    run = runs.new(**of_study(generations=6, population=8))
    run.world.everywhere = "diverged"
    state = run.drive()
    assert len(state.told) == 1 and state.status is RunStatus.FINISHED
    assert state.reason is not None and state.reason.startswith("pycma ended it: tolfun")


@pytest.mark.parametrize(
    "changes",
    [
        of_study(generations=5, population=8),
        {"optimizer": "lhs-cma", "lhs_points": 8, "population": 4, "generations": 8, "sigma": 0.14},
    ],
    ids=["study", "lhs-cma"],
)
def test_killed_between_events_it_goes_on_with_the_same_points(
    runs: Runs, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = runs.new(**changes).drive()
    for number, kill_at in enumerate(range(3, whole.seq, 31)):
        run = runs.new(**changes).killed_at(kill_at, tmp_path / f"killed-{number}")
        assert trained(run.drive()) == trained(whole)


def test_hypercube_that_leaves_nothing_is_refused(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="is 64, which leaves nothing of 8 evaluations"):
        runs.new(optimizer="lhs-cma")
    with pytest.raises(ConfigError, match="leaves nothing of 32 evaluations"):
        runs.new(
            optimizer="lhs-cma",
            lhs_points=32,
            generations=16,
            sweep={"n_state": [8, 16]},
            model={"dim": 32, "depth": 1},
        )


def test_start_point_of_every_optimizer_and_its_source_are_on_record(runs: Runs) -> None:
    """A space of whole numbers and a logarithm, from its best; one that has no start says so."""
    tiny: dict[str, Any] = {
        "axes": {},
        "params": "100K",
        "tolerance": 0.1,
        "multiple_of": 8,
        "model": {},
    }
    for optimizer in ("cma", "study"):
        run = runs.new(optimizer=optimizer, start_from_best=True, **tiny)
        start = load_run(run.folder).state.run["start"]
        assert start["source"] == "tried by hand on the built-in corpus"
        assert start["values"]["n_heads"] == 4 and start["values"]["lr"] == pytest.approx(1e-2)
    with pytest.raises(ConfigError, match="`lhs-cma` begins with points that fill the space"):
        runs.new(optimizer="lhs-cma", lhs_points=4, start_from_best=True, **tiny)
    run = runs.new(optimizer="lhs-cma", lhs_points=4, **tiny)
    start = load_run(run.folder).state.run["start"]
    assert (start["source"], start["values"]) == ("points that fill the space", {})


def test_study_has_no_sweep(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="the study's first search had none"):
        runs.new(
            **of_study(sweep={"n_state": [8, 16]}, model={"dim": 32, "depth": 1}, population=4)
        )
