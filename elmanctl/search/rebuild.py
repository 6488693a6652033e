"""Rebuild of the optimizer from the ledger: every ask and report again, in their order."""

from importlib import metadata

from elmanctl.config import decode_settings
from elmanctl.constants import ASYNCHRONOUS, MAX_SEED
from elmanctl.errors import LedgerError
from elmanctl.ledger.run_state import Exchange
from elmanctl.search.optimizers.port import Differs, Optimizer, Point, Problem
from elmanctl.search.optimizers.registry import packages_of, start_optimizer
from elmanctl.search.reevaluation import reevaluations
from elmanctl.search.session import Session
from elmanctl.settings import SearchSettings
from elmanctl.space.space import SearchSpace


def problem_of(
    space: SearchSpace, search: SearchSettings, start: Point, branch: int = 0
) -> Problem:
    """Return the problem of a search from a start point, in a sweep that of one branch.

    Its budget is that of the beginning: a run that was extended asks the same points.
    """
    budget = search.generations * search.population
    if search.evaluations is not None:
        budget = min(budget, search.evaluations)
    budget -= reevaluations(search)
    return Problem(
        coordinates=space.coordinates,
        start=start,
        sigma=search.sigma,
        population=search.population,
        seed=(search.seed + branch) % (MAX_SEED + 1),
        budget=budget // len(space.branches),
        design=search.lhs_points,
        starts=search.lhs_starts,
        is_asynchronous=search.mode == ASYNCHRONOUS,
    )


def rebuild_optimizers(session: Session) -> list[Optimizer]:
    """Return the optimizer of each branch of a run as it was after the ledger's last event.

    A run without a sweep has one branch.

    Raises LedgerError where it would ask other points than those on record: another version of its
    library does.
    """
    search = decode_settings(session.run["settings"]).search
    space = SearchSpace.decode(session.run["space"])
    start = tuple(session.run["start"]["point"])
    optimizers = [
        start_optimizer(search.optimizer, problem_of(space, search, start, branch))
        for branch in range(len(space.branches))
    ]
    for exchange in session.state.exchanges:
        branch = session.state.turns.get(exchange.generation, 0)
        _repeat(exchange, optimizers[branch], session)
    return optimizers


def _repeat(exchange: Exchange, optimizer: Optimizer, session: Session) -> None:
    evaluations = session.state.evaluations
    if exchange.told is not None:
        optimizer.report([(evaluations[name].point, value) for name, value in exchange.told])
        return
    points = [evaluations[name].point for name in exchange.asked]
    try:
        optimizer.replay(points, exchange.refused)
    except Differs as exc:
        raise LedgerError(
            f"the optimizer cannot be rebuilt: at generation {exchange.generation}, {exc};"
            f" {_versions(session)}",
            hint="install the versions on record",
        ) from exc


def _versions(session: Session) -> str:
    """Return the versions of the optimizer's packages, on record and here, in words."""
    recorded = session.run["versions"]
    packages = packages_of(session.settings.search.optimizer)
    wrote = ", ".join(f"{name} {recorded.get(name, '?')}" for name in packages)
    here = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"the run began with {wrote}, here are {here}"
