"""The optimizers by name; each is imported when it is first asked for."""

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from elmanctl.constants import (
    CATCMA,
    CMA,
    CMA_GP,
    GP,
    GP_OPTUNA,
    INSTALL_OPTIMIZERS,
    INSTALL_TRAIN,
    LHS,
    LHS_CMA,
    MAX_SEED,
    MIN_POPULATION,
    RANDOM,
    SOBOL,
    STUDY,
    TPE,
    TPE_GP,
)
from elmanctl.errors import EnvironmentNotReady, UsageError, meant
from elmanctl.search.optimizers.port import Optimizer, Problem
from elmanctl.search.optimizers.unit_cube import is_constant


def _surrogate_cma(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.surrogate_cma import SurrogateCma

    return SurrogateCma(problem)


def _pycma(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.pycma import Pycma

    return Pycma(problem)


def _lhs_cma(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.lhs_cma import LhsCma

    return LhsCma(problem)


def _study(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.study import Study

    return Study(problem)


def _catcma(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.catcma import CatCma

    return CatCma(problem)


def _tpe(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers import optuna_samplers
    from elmanctl.search.optimizers.model_based import ModelBased

    return ModelBased(problem, optuna_samplers.tpe)


def _gp_optuna(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers import optuna_samplers
    from elmanctl.search.optimizers.model_based import ModelBased

    return ModelBased(problem, optuna_samplers.gp, is_portable=False)


def _gp(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.gaussian_process import GaussianProcess
    from elmanctl.search.optimizers.model_based import ModelBased

    return ModelBased(problem, GaussianProcess)


def _tpe_gp(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.mixture import Mixture
    from elmanctl.search.optimizers.model_based import ModelBased

    return ModelBased(problem, Mixture)


def _random(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.space_filling import SpaceFilling, random_points

    return SpaceFilling(problem, random_points(problem))


def _sobol(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.space_filling import SpaceFilling, sobol_points

    return SpaceFilling(problem, sobol_points(problem))


def _latin_hypercube(problem: Problem) -> Optimizer:
    from elmanctl.search.optimizers.space_filling import SpaceFilling, latin_hypercube_points

    return SpaceFilling(problem, latin_hypercube_points(problem))


@dataclass(frozen=True, slots=True)
class _Entry:
    """An optimizer, and the packages on whose versions its points depend.

    One that fills the space begins at no point.
    """

    make: Callable[[Problem], Optimizer]
    packages: tuple[str, ...]
    fills_space: bool = False


_ENTRIES: Mapping[str, _Entry] = {
    CMA_GP: _Entry(_surrogate_cma, ("cma", "numpy")),
    CMA: _Entry(_pycma, ("cma", "numpy")),
    LHS_CMA: _Entry(_lhs_cma, ("cma", "numpy"), fills_space=True),
    CATCMA: _Entry(_catcma, ("cmaes", "scipy", "numpy")),
    TPE: _Entry(_tpe, ("optuna", "numpy")),
    GP: _Entry(_gp, ("scikit-learn", "scipy", "numpy")),
    GP_OPTUNA: _Entry(_gp_optuna, ("optuna", "torch", "scipy", "greenlet", "numpy")),
    TPE_GP: _Entry(_tpe_gp, ("optuna", "scikit-learn", "scipy", "numpy")),
    STUDY: _Entry(_study, ("cma", "numpy")),
    RANDOM: _Entry(_random, ("numpy",), fills_space=True),
    SOBOL: _Entry(_sobol, ("scipy", "numpy"), fills_space=True),
    LHS: _Entry(_latin_hypercube, ("numpy",), fills_space=True),
}

# What is imported of a package, where that has another name.
_MODULES = {"scikit-learn": "sklearn"}


def has_start(name: str) -> bool:
    """Whether an optimizer begins at the start point of its problem; True for an unknown name."""
    return name not in _ENTRIES or not _ENTRIES[name].fills_space


def packages_of(name: str) -> tuple[str, ...]:
    """Return the packages on whose versions the points of an optimizer depend."""
    return _ENTRIES[name].packages


def start_optimizer(name: str, problem: Problem) -> Optimizer:
    """Return a new optimizer.

    Raises UsageError for an unknown name, an invalid population, seed or sigma, or no coordinate
    that can move, EnvironmentNotReady when a package is missing.
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
    if all(is_constant(coordinate) for coordinate in problem.coordinates):
        raise UsageError("the search space has no axis to move")
    _check_installed(name)
    return _ENTRIES[name].make(problem)


def _check_installed(name: str) -> None:
    for package in packages_of(name):
        if importlib.util.find_spec(_MODULES.get(package, package)) is None:
            raise EnvironmentNotReady(
                f"`{package}` is not installed here, and the optimizer `{name}` needs it",
                hint=INSTALL_TRAIN if package == "torch" else INSTALL_OPTIMIZERS,
            )
