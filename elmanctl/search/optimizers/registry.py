"""The optimizers by name; each is imported when it is first asked for."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elmanctl.constants import CMA, LHS_CMA, MAX_SEED, MIN_POPULATION, STUDY
from elmanctl.errors import UsageError, meant
from elmanctl.search.optimizers.port import Optimizer, Problem


def _pycma(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.pycma import Pycma

    return Pycma(problem)


def _lhs_cma(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.lhs_cma import LhsCma

    return LhsCma(problem)


def _study(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.study import Study

    return Study(problem)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An optimizer, and the packages on whose versions its points depend.

    One that fills the space begins at no point.
    """

    make: Callable[[Problem], Optimizer]
    packages: tuple[str, ...]
    fills_space: bool = False


_ENTRIES: Mapping[str, _Entry] = {
    CMA: _Entry(_pycma, ("cma", "numpy")),
    LHS_CMA: _Entry(_lhs_cma, ("cma", "numpy"), fills_space=True),
    STUDY: _Entry(_study, ("cma", "numpy")),
}


def has_start(name: str) -> bool:
    """Whether an optimizer begins at the start point of its problem; True for an unknown name."""
    return name not in _ENTRIES or not _ENTRIES[name].fills_space


def packages_of(name: str) -> tuple[str, ...]:
    """Return the packages on whose versions the points of an optimizer depend."""
    return _ENTRIES[name].packages


def start_optimizer(name: str, problem: Problem) -> Optimizer:
    """Return a new optimizer.

    Raises UsageError for an unknown name, an invalid population, seed or sigma, or no coordinates.
    """
    if name not in _ENTRIES:
        raise UsageError(
            f"no optimizer named `{name}`",
            hint=meant(name, _ENTRIES, f"optimizers: {', '.join(_ENTRIES)}"),
        )
    if problem.population < MIN_POPULATION:
        raise UsageError(
            f"a generation needs at least {MIN_POPULATION} evaluations, not {problem.population}",
            hint="set `--population`",
        )
    if not 0 <= problem.seed <= MAX_SEED:
        raise UsageError(f"the optimizer's seed must be from 0 to {MAX_SEED}, not {problem.seed}")
    if not 0 < problem.sigma < math.inf:
        raise UsageError(f"the first step size `sigma` must be above 0, not {problem.sigma}")
    if not problem.coordinates:
        raise UsageError("the search space has no axis to move")
    return _ENTRIES[name].make(problem)
