"""What the shell completes: names read from files, without a word when they cannot be read."""

import logging
from collections.abc import Iterable
from pathlib import Path

import typer

from elmanctl.config import resolve
from elmanctl.errors import ElmanError
from elmanctl.jobs.paths import RunPaths
from elmanctl.ledger.state import load_run
from elmanctl.models.registry import FAMILIES
from elmanctl.search.selection import find_run, list_runs

logger = logging.getLogger(__name__)


def model_names(incomplete: str) -> list[str]:
    """Return the models whose name begins so."""
    return _starting(FAMILIES, incomplete)


def run_names(incomplete: str) -> list[str]:
    """Return the runs of this folder whose name begins so, newest first."""
    try:
        return _starting((path.name for path in reversed(list_runs(_runs()))), incomplete)
    except ElmanError as exc:
        logger.debug("nothing to complete: %s", exc.message)
        return []


def evaluation_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the evaluations of the run on the line, or of the newest one, newest first."""
    try:
        named = ctx.params.get("run_or_evaluation") or ctx.params.get("run")
        folder = find_run(_runs(), named if named in run_names("") else None)
        evaluations = load_run(RunPaths(folder).folder).state.evaluations
    except (ElmanError, OSError) as exc:
        logger.debug("nothing to complete: %s", exc)
        return []
    return _starting(["best", *reversed(evaluations)], incomplete)


def run_or_evaluation_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the runs, and the evaluations of the newest one."""
    return [*run_names(incomplete), *evaluation_names(ctx, incomplete)]


def _runs() -> Path:
    return Path(resolve({}).settings.paths.runs).expanduser()


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
