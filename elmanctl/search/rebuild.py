"""Rebuild of the optimizer from the ledger: every ask and report again, in their order."""

from importlib import metadata

from elmanctl.errors import LedgerError
from elmanctl.ledger.run_state import Exchange
from elmanctl.search.optimizers.port import Differs, Optimizer, Point, Problem
from elmanctl.search.optimizers.registry import packages_of, start_optimizer
from elmanctl.search.session import Session
from elmanctl.settings import SearchSettings
from elmanctl.space.space import SearchSpace


def problem_of(space: SearchSpace, search: SearchSettings, start: Point) -> Problem:
    """Return the problem of a search from a start point.

    Its budget is that of the beginning: a run that was extended asks the same points.
    """
    return Problem(
        coordinates=space.coordinates,
        start=start,
        sigma=search.sigma,
        population=search.population,
        seed=search.seed,
        budget=search.generations * search.population,
    )


def rebuild_optimizer(session: Session) -> Optimizer:
    """Return the optimizer of a run as it was after the ledger's last event.

    Raises LedgerError where it would ask other points than those on record: another version of its
    library does.
    """
    search = session.settings.search
    space = SearchSpace.decode(session.run["space"])
    problem = problem_of(space, search, tuple(session.run["start"]["point"]))
    optimizer = start_optimizer(search.optimizer, problem)
    for exchange in session.state.exchanges:
        _repeat(exchange, optimizer, session)
    return optimizer


def _repeat(exchange: Exchange, optimizer: Optimizer, session: Session) -> None:
    evaluations = session.state.evaluations
    if exchange.told is not None:
        told = session.state.told[exchange.told]
        optimizer.report([(evaluations[name].point, value) for name, value in told])
        return
    points = [evaluations[name].point for name in exchange.asked]
    try:
        optimizer.replay(points, exchange.refused)
    except Differs as exc:
        generation = evaluations[exchange.asked[0]].generation
        raise LedgerError(
            f"the optimizer cannot be rebuilt: at generation {generation}, {exc};"
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
