"""Identity of a run: refuse a copied folder, other clusters, and changed frozen code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl.constants import CLUSTERS_VARIABLE
from elmanctl.errors import LedgerCorrupt, LedgerError, UsageError
from elmanctl.folders import is_same
from elmanctl.ledger.events import DamagedLine, decode_line
from elmanctl.ledger.files import SMALL_BYTES, open_regular
from elmanctl.ledger.run_state import RunState
from elmanctl.run.frozen_code import hash_code
from elmanctl.run.paths import RunPaths


def refuse_copy(paths: RunPaths, state: RunState) -> None:
    """Raise UsageError for a copy if the original run still exists.

    Their jobs have the same names, so each would adopt the jobs of the other.  A folder that was
    moved or renamed is no copy.
    """
    recorded = state.controller.get("folder") if state.controller else None
    if recorded is None:
        return
    original = Path(recorded)
    if is_same(original, paths.folder) or _token(RunPaths(original)) != state.run["token"]:
        return
    raise UsageError(
        f"{paths.folder} is a copy of the run in {original}",
        hint=f"go on with the run there; if this copy is to go on in its place, remove {original}, "
        "or move it away",
    )


def refuse_other_clusters(state: RunState, environ: Mapping[str, str]) -> None:
    """Raise UsageError for live jobs on other clusters than those that would be queried.

    A cluster that does not know a job would report it as gone.
    """
    recorded = state.controller.get("clusters") if state.controller else None
    asked = environ.get(CLUSTERS_VARIABLE, "")
    if recorded in (None, asked) or not state.live_attempts():
        return
    raise UsageError(
        f"jobs of this run are on {_clusters(recorded)}, and Slurm would be asked about "
        f"{_clusters(asked)}",
        hint=f"`export {CLUSTERS_VARIABLE}={recorded}`"
        if recorded
        else f"`unset {CLUSTERS_VARIABLE}`",
    )


def _clusters(named: str) -> str:
    return f"the cluster `{named}`" if named else "the cluster that Slurm takes by default"


def refuse_changed_code(paths: RunPaths, run: Mapping[str, Any]) -> None:
    """Raise LedgerCorrupt unless workers would import the code that the run started with."""
    hint = "copy it from a backup; losses under other code could not be compared"
    if not paths.code.is_dir():
        raise LedgerCorrupt(f"the run's frozen code is missing: {paths.code}", hint=hint)
    # The folder holds one package.
    found = [hash_code(package) for package in sorted(paths.code.iterdir()) if package.is_dir()]
    if found != [run["code"]["sha256"]]:
        text = f"the run's frozen code is not what it was when the run began: {paths.code}"
        raise LedgerCorrupt(text, hint=hint)


def _token(paths: RunPaths) -> str | None:
    """Return the token of the run in a folder, None if it cannot be read."""
    try:
        with open_regular(paths.ledger) as file:
            event = decode_line(file.readline(SMALL_BYTES).rstrip(b"\n"))
    except (OSError, DamagedLine, LedgerError):
        return None
    run = event.data.get("run")
    return str(run.get("token")) if isinstance(run, dict) else None
