"""Session: a run that is open for writing, with its lease, ledger and state kept in step."""

import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl.config import refuse_outside
from elmanctl.constants import CLUSTERS_VARIABLE, STOP_RULES
from elmanctl.errors import ElmanError, LedgerError, UsageError
from elmanctl.ledger import payloads
from elmanctl.ledger import state as ledger_state
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.reserve import full_disk, give_up, refill
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.snapshot import SnapshotKeeper, load_summary
from elmanctl.ledger.state import replay
from elmanctl.ledger.store import LedgerWriter
from elmanctl.run.frozen_code import knows_spec_key
from elmanctl.run.ownership import refuse_foreign_run
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import AllocationExecutor, Executor
from elmanctl.schedulers.submission import check_resources
from elmanctl.search.effective_settings import effective_settings, require_run
from elmanctl.search.limits import check_limits
from elmanctl.search.workload import attempt_resources

logger = logging.getLogger(__name__)

# Parts of the reserve that stay for the command that will free space.
_KEPT_PARTS = 2

# Settings of where and how jobs run and what they may cost, not of what they measure.
CHANGEABLE = (
    "slurm.",
    "local.",
    "retry.",
    "budget.",
    "disk.",
    "metrics.",
    "stopping.",
    "search.max_jobs",
    "search.confirm_",
    *sorted(STOP_RULES),
)

# Settings without effect on a local search, or on one with Slurm.
_USELESS: Mapping[str, tuple[str, ...]] = {
    "local": (
        *("slurm.", "search.max_jobs", "retry.mem_factor", "retry.max_mem_gb"),
        "retry.exclude_min",
    ),
    "slurm": ("local.",),
}


class Session:
    """Exclusive write access to a run; every change goes through `record`."""

    def __init__(self, paths: RunPaths, lease: Lease, writer: LedgerWriter) -> None:
        self.paths = paths
        self.lease = lease
        self.state: RunState = replay(writer.contents.events)
        require_run(paths, self.state)
        self.settings = effective_settings(self.state)
        self.warning = writer.contents.warning
        writer.forget()
        self._writer = writer
        self._is_closed = False
        self._snapshots = SnapshotKeeper(paths.folder, writer, self.state)

    @classmethod
    def open(cls, folder: Path, *, may_use_reserve: bool = False) -> "Session":
        """Take the lease of a run and read its ledger.

        On a full disk `may_use_reserve` gives up the run's reserve to make room for the lease
        file.  Raises ForeignFolder where another user may write, LedgerLocked while another
        process holds the lease, LedgerCorrupt for a damaged ledger, NotFound for an empty one.
        """
        paths = RunPaths(folder)
        refuse_foreign_run(paths)
        found = load_summary(folder).summary
        require_run(paths, found)
        try:
            lease = Lease.acquire(folder, minimum_fence=found.fence)
        except LedgerError as exc:
            if full_disk(exc) is None or not may_use_reserve or not give_up(folder):
                raise
            lease = Lease.acquire(folder, minimum_fence=found.fence)
        try:
            return cls(paths, lease, LedgerWriter(paths.ledger, lease))
        except BaseException:
            lease.release()
            raise

    def record(self, payload: payloads.Payload) -> None:
        """Write one event and apply it to the state; one that the state rejects is not written."""
        prepared = ledger_state.prepare(self._writer, self.state, payload)
        self._snapshots.before(prepared.evaluations)
        ledger_state.commit(self._writer, self.state, prepared)
        self._snapshots.after()

    def refuse_cancelled(self) -> None:
        """Raise UsageError for a cancelled run: cancellation is final."""
        if self.state.status is RunStatus.CANCELLED:
            raise UsageError(
                f"the run `{self.run['name']}` was cancelled",
                hint=f"start another one: `elmanctl search {self.run['model']}`",
            )

    def start_controller(self, executor: Executor | None = None) -> None:
        """Record that a controller drives this run with an executor."""
        refill(self.paths.folder)
        is_slurm = self.run["executor"] == "slurm"
        inside = executor if isinstance(executor, AllocationExecutor) else None
        self.record(
            payloads.ControllerStarted(
                host=platform.node(),
                pid=os.getpid(),
                folder=str(self.paths.folder),
                clusters=os.environ.get(CLUSTERS_VARIABLE, "") if is_slurm else None,
                allocation=None if inside is None else inside.allocation.job_id,
                slots=None if inside is None else inside.slot_count,
            )
        )

    def pause(self, error: Exception) -> None:
        """Record why the controller stops, if possible.

        On a full disk a part of the run's reserve is given up for this event; after any other
        error of the ledger nothing is written.
        """
        full = full_disk(error)
        if full is None:
            if isinstance(error, ElmanError) and not isinstance(error, LedgerError):
                self.record(payloads.RunPaused(reason=error.message, hint=error.hint or None))
            return
        try:
            give_up(self.paths.folder, keep=_KEPT_PARTS)
            self.record(payloads.RunPaused(reason="the disk is full"))
        except (OSError, LedgerError) as exc:
            logger.warning("the full disk could not be recorded: %s", exc)

    def check_changes(self, changes: Mapping[str, Any]) -> None:
        """Check changes of settings.

        Raises UsageError for one that would make losses incomparable or has no effect on this run,
        ConfigError for an invalid one.
        """
        executor = self.run["executor"]
        for key in changes:
            if not key.startswith(CHANGEABLE):
                raise UsageError(
                    f"`{key}` is part of what this search measures and stays as it is",
                    hint=f"changeable: {', '.join(f'{name}*' for name in CHANGEABLE)}",
                )
            if key.startswith(_USELESS[executor]):
                where = "on this machine, without Slurm" if executor == "local" else "on Slurm"
                raise UsageError(f"`{key}` means nothing to this search: it runs {where}")
            if key.startswith("metrics.") and not knows_spec_key(self.paths.code, "metrics"):
                raise UsageError(
                    f"`{key}` means nothing to this search: the code of its workers is older",
                    hint="the curves are in metrics.jsonl in each attempt's folder",
                )
            if key.startswith("stopping.") and not knows_spec_key(self.paths.code, "stoppable"):
                raise UsageError(
                    f"`{key}` means nothing to this run: it was begun by an earlier version, "
                    "whose workers cannot be stopped early",
                    hint="a search that is started now can stop its evaluations",
                )
            if key == "slurm.template":
                raise UsageError(
                    "a template is read when a search starts, and not again",
                    hint="set what it holds, e.g. `--set slurm.gres=gpu:h100:1`",
                )
        if changes.get("disk.keep_models") and not knows_spec_key(self.paths.code, "keep"):
            raise UsageError(
                "`disk.keep_models` means nothing to this run: it was begun by an earlier version, "
                "whose workers keep no models",
                hint="a search that is started now keeps those of its best",
            )
        changed = effective_settings(self.state, changes)
        check_limits(changed, changes)
        check_resources(attempt_resources(changed, executor, {}))

    def change_settings(self, changes: Mapping[str, Any]) -> None:
        """Record new settings; raises what `check_changes` raises."""
        self.check_changes(changes)
        self.record(payloads.SettingsChanged(changes=dict(changes)))
        self.settings = effective_settings(self.state)

    def extend(self, generations: int) -> None:
        """Set a higher number of generations; raises what `check_extension` raises."""
        self.check_extension(generations)
        self.record(payloads.RunExtended(generations=generations))

    def check_extension(self, generations: int) -> None:
        """Raise UsageError, ConfigError for a number of generations that is not a higher one."""
        refuse_outside({"search.generations": generations})
        if generations <= self.state.generations:
            raise UsageError(
                f"the search is {self.state.generations} generations long already",
                hint=f"`--generations` is the number in all: more than {self.state.generations}",
            )

    @property
    def run(self) -> Mapping[str, Any]:
        """The ledger's record of the run."""
        return self.state.run

    def close(self) -> None:
        """Close the ledger, refill the run's reserve, and release the lease, once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._snapshots.close()
        self._writer.close()
        refill(self.paths.folder)
        self.lease.release()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
