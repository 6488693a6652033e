"""Checks of a search's settings and learning rates, before it starts and when they change."""

from collections.abc import Mapping
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.constants import ASYNCHRONOUS, LHS_CMA, STUDY
from elmanctl.errors import ConfigError
from elmanctl.search.stop_rules import check_stop_rules
from elmanctl.settings import SearchSettings, Settings, flat
from elmanctl.space.space import LEARNING_RATE, SearchSpace


def check_limits(settings: Settings, changes: Mapping[str, Any] | None = None) -> None:
    """Raise ConfigError for settings out of bounds, naming their keys.

    With `changes` only these are checked: the other settings of a run may stay as they are.
    """
    refuse_outside(dict(flat(settings.encode())) if changes is None else changes)
    settings.train.check_together()
    settings.local.check_together()
    settings.metrics.check_together()
    check_stop_rules(settings.search)
    if settings.stopping.is_on and settings.train.converge is not None:
        raise ConfigError(
            "early stopping compares trainings at shares of their budget, and `train.converge` "
            "does not say how long they take",
            hint="set `stopping.rule` to off, or another budget",
        )


def check_evaluations(search: SearchSettings) -> None:
    """Raise ConfigError for more evaluations than the generations have, before a search starts."""
    whole, wanted = search.generations * search.population, search.evaluations
    if wanted is not None and wanted > whole:
        raise ConfigError(
            f"`search.evaluations` is {wanted}, and {search.generations} generations of "
            f"{search.population} have {whole}",
            hint=f"pass `--generations {-(-wanted // search.population)}`, or fewer evaluations",
        )


def check_mode(search: SearchSettings) -> None:
    """Raise ConfigError for an asynchronous search with what needs whole generations."""
    if search.mode != ASYNCHRONOUS:
        return
    if search.optimizer == STUDY:
        raise ConfigError(
            f"the optimizer `{STUDY}` learns from whole generations: the study had nothing else",
            hint="leave `--asynchronous` out, or choose another optimizer",
        )
    if search.reevaluate:
        raise ConfigError(
            "`search.reevaluate` trains the best again in whole generations",
            hint="set it to 0, or leave `--asynchronous` out; the best are confirmed either way",
        )


def check_optimizer(search: SearchSettings, branches: int) -> None:
    """Raise ConfigError for settings that do not go together with the optimizer."""
    budget = search.generations * search.population
    if search.evaluations is not None:
        budget = min(budget, search.evaluations)
    budget //= branches
    if search.optimizer == LHS_CMA and search.lhs_points >= budget:
        raise ConfigError(
            f"`search.lhs_points` is {search.lhs_points}, which leaves nothing of {budget} "
            "evaluations for CMA-ES",
            hint=f"`--set search.lhs_points={max(1, budget // 4)}`, or more evaluations",
        )
    if search.optimizer == STUDY and search.sweep:
        raise ConfigError(
            f"the optimizer `{STUDY}` has no sweep: the study's first search had none",
            hint="hold the setting fixed, in a run of its own for each value",
        )


def check_turns(search: SearchSettings, branches: int) -> None:
    """Raise ConfigError where the budget of a sweep does not give each branch a generation."""
    evaluations = search.generations * search.population
    if search.evaluations is not None:
        evaluations = min(evaluations, search.evaluations)
    needed = branches * search.population
    if branches > 1 and evaluations < needed:
        raise ConfigError(
            f"{evaluations} evaluations do not give each of the {branches} branches of the sweep "
            f"a generation of {search.population}",
            hint=f"at least {needed}, so {branches} generations, or sweep fewer values",
        )


def check_learning_rates(space: SearchSpace) -> None:
    """Raise ConfigError for a learning rate, searched or fixed, out of bounds."""
    if LEARNING_RATE in space.fixed:
        check_learning_rate(space.fixed[LEARNING_RATE], "`[model]`: ")
    for axis in space.axes:
        if axis.name == LEARNING_RATE:
            ends = (axis.value(axis.coordinate.low), axis.value(axis.coordinate.high))
            for rate in (*ends, *axis.values):
                check_learning_rate(rate, f"axis `{axis.name}`: ")


def check_learning_rate(rate: object, where: str = "") -> float:
    """Return a learning rate; raise ConfigError for one out of the bounds of `train.lr`."""
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ConfigError(f"{where}`lr` is a number, not `{rate}`")
    refuse_outside({"train.lr": rate}, where)
    return float(rate)
