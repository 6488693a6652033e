"""A run that is open for writing: its lease, its ledger and its state, kept in step."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from elmanctl.config import decode_settings
from elmanctl.errors import NotFound, UsageError
from elmanctl.jobs.ownership import refuse_foreign_run
from elmanctl.jobs.paths import RunPaths
from elmanctl.jobs.submission import check_resources
from elmanctl.ledger import state as ledger_state
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.state import RunState, load_run, replay
from elmanctl.ledger.store import LedgerWriter
from elmanctl.search.limits import check_limits
from elmanctl.search.workload import attempt_resources
from elmanctl.settings import Settings

# Where and how jobs run, not what they measure.
CHANGEABLE = ("slurm.", "local.", "retry.", "disk.", "search.max_jobs")


class Session:
    """One process' hold on a run; every change goes through `record`."""

    def __init__(self, paths: RunPaths, lease: Lease, writer: LedgerWriter) -> None:
        self.paths = paths
        self.lease = lease
        self.state: RunState = replay(writer.contents.events)
        require_run(paths, self.state)
        self.settings = _settings_in_force(self.state)
        self.warning = writer.contents.warning
        self._writer = writer

    @classmethod
    def open(cls, folder: Path) -> "Session":
        """Take the lease of a run and read its ledger.

        Raises ForeignFolder where somebody else may write, LedgerLocked while another process
        holds the lease, LedgerCorrupt for a damaged ledger, NotFound for one in which nothing
        stands.
        """
        paths = RunPaths(folder)
        refuse_foreign_run(paths)
        loaded = load_run(folder)
        require_run(paths, loaded.state)
        lease = Lease.acquire(folder, minimum_fence=loaded.state.fence)
        try:
            return cls(paths, lease, LedgerWriter(paths.ledger, lease))
        except BaseException:
            lease.release()
            raise

    def record(self, kind: str, /, **data: Any) -> None:
        """Write one event and apply it to the state; what the state refuses is not written."""
        ledger_state.record(self._writer, self.state, kind, **data)

    def refuse_cancelled(self) -> None:
        """Raise UsageError for a run that was cancelled as a whole: that is for good."""
        if self.state.status is RunStatus.CANCELLED:
            raise UsageError(
                f"the run `{self.run['name']}` was cancelled",
                hint=f"start another one: `elmanctl search {self.run['model']}`",
            )

    def start_controller(self) -> None:
        """Record that a controller drives this run from now on."""
        folder = str(self.paths.folder)
        self.record("controller_started", host=platform.node(), pid=os.getpid(), folder=folder)

    def change_settings(self, changes: Mapping[str, Any]) -> None:
        """Replace settings from now on.

        Raises UsageError for one that would make losses unlike, ConfigError for an impossible one.
        """
        for key in changes:
            if not key.startswith(CHANGEABLE):
                raise UsageError(
                    f"`{key}` is part of what this search measures and stays as it is",
                    hint=f"changeable: {', '.join(f'{name}*' for name in CHANGEABLE)}",
                )
        changed = _settings_in_force(self.state, changes)
        check_limits(changed)
        check_resources(attempt_resources(changed, self.run["executor"], {}))
        self.record("settings_changed", changes=dict(changes))
        self.settings = _settings_in_force(self.state)

    def extend(self, generations: int) -> None:
        """Set a higher number of generations; raise UsageError for one that is not higher."""
        if generations <= self.state.generations:
            raise UsageError(
                f"the search is {self.state.generations} generations long already",
                hint=f"`--generations` is the number in all: more than {self.state.generations}",
            )
        self.record("run_extended", generations=generations)

    @property
    def run(self) -> Mapping[str, Any]:
        """The ledger's record of the run."""
        return self.state.run

    def close(self) -> None:
        """Close the ledger and give the lease back."""
        self._writer.close()
        self.lease.release()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _settings_in_force(state: RunState, more: Mapping[str, Any] | None = None) -> Settings:
    tables = {name: dict(table) for name, table in state.run["settings"].items()}
    for key, value in {**state.changes, **(more or {})}.items():
        section, name = key.split(".", 1)
        tables[section][name] = value
    return decode_settings(tables)


def require_run(paths: RunPaths, state: RunState) -> None:
    """Raise NotFound for a ledger that was cut before its first event."""
    if not state.run:
        raise NotFound(
            f"the ledger of `{paths.folder.name}` is empty: nothing was ever submitted",
            hint=f"remove {paths.folder}, and start again with `elmanctl search`",
        )
