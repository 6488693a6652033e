"""Effective settings of a run, with all recorded changes, and its currently excluded nodes."""

from collections.abc import Mapping
from typing import Any

from elmanctl import clock
from elmanctl.config import decode_settings
from elmanctl.errors import NotFound
from elmanctl.ledger.records import ExcludedNode
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.run.paths import RunPaths
from elmanctl.settings import Settings


def effective_settings(
    state: RunState | RunSummary, more: Mapping[str, Any] | None = None
) -> Settings:
    """Return a run's settings with all recorded changes, and with `more` of them."""
    tables = {name: dict(table) for name, table in state.run["settings"].items()}
    for key, value in {**state.changes, **(more or {})}.items():
        section, name = key.split(".", 1)
        # A ledger of an earlier version may lack the whole section.
        tables.setdefault(section, {})[name] = value
    return decode_settings(tables)


def require_run(paths: RunPaths, state: RunState | RunSummary) -> None:
    """Raise NotFound for an empty ledger."""
    if not state.run:
        raise NotFound(
            f"the ledger of `{paths.folder.name}` is empty: nothing was ever submitted",
            hint=f"remove {paths.folder}, and start again with `elmanctl search`",
        )


def avoided_nodes(state: RunState | RunSummary) -> list[ExcludedNode]:
    """Return the nodes that new jobs avoid, the oldest exclusion first."""
    now = clock.now()
    kept = [node for node in state.excluded_nodes.values() if clock.from_text(node.until) > now]
    return sorted(kept, key=lambda node: (node.at, node.node))
