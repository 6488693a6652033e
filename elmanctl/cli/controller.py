"""The foreground controller: takes the lease, runs the preflight checks, drives the search."""

import os
import resource
from collections.abc import Mapping
from typing import Any

from typer import Exit

from elmanctl.cli.interrupts import interruptible
from elmanctl.cli.output import counted, hint, print_json, say, warn
from elmanctl.cli.plan import warn_of_dropped
from elmanctl.cli.search_summary import print_summary, run_summary
from elmanctl.cli.search_view import make_view
from elmanctl.errors import ElmanError
from elmanctl.ledger.records import RunStatus
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import make_executor
from elmanctl.schedulers.quoting import check_path
from elmanctl.search.disk_errors import explained
from elmanctl.search.run_identity import refuse_changed_code, refuse_copy, refuse_other_clusters
from elmanctl.search.session import Session

# Interval at which result files are looked for; Slurm itself is polled far less often.
_TICK_S = 2.0
_LOCAL_TICK_S = 0.5


def drive(
    paths: RunPaths,
    *,
    generations: int | None = None,
    changes: Mapping[str, Any] | None = None,
    confirms_now: bool = False,
    as_json: bool = False,
) -> None:
    """Drive a search in the foreground until it ends or is interrupted.

    With `confirms_now` no further generation is asked, and the best so far are confirmed.
    """
    from elmanctl.search.loop import Controller
    from elmanctl.search.poll import QueryPace

    _raise_cpu_limit()
    with (
        explained(paths.folder.name),
        Session.open(paths.folder) as session,
        interruptible(paths.folder.name) as stop,
    ):
        if session.warning:
            warn(session.warning)
        session.refuse_cancelled()
        refuse_copy(paths, session.state)
        refuse_other_clusters(session.state, os.environ)
        refuse_changed_code(paths, session.run)
        check_path(paths.folder)
        if changes:
            session.check_changes(changes)
            if "slurm.partition" in changes:
                check_partition(session.run["executor"], changes["slurm.partition"])
        if generations is not None:
            session.extend(generations)
        if changes:
            before = session.settings.slurm.extra
            session.change_settings(changes)
            warn_of_dropped(before, session.settings.slurm.extra)
        executor = make_executor(paths, session.run["executor"], session.settings)
        # The first poll queries Slurm, within its rate limit.
        executor.check(asks=False)
        session.start_controller()
        poll_s = _LOCAL_TICK_S if executor.name == "local" else session.settings.slurm.poll_s
        tick_s = min(poll_s, _TICK_S)
        try:
            with make_view(session) as view:
                pace = QueryPace(poll_s)
                Controller(
                    session,
                    executor,
                    view,
                    pace=pace,
                    tick_s=tick_s,
                    stop=stop,
                    confirms_now=confirms_now,
                ).drive()
        except (ElmanError, OSError) as exc:
            session.pause(exc)
            raise
        state = session.state
        if as_json:
            print_json(run_summary(paths, state))
        elif state.status is not RunStatus.INTERRUPTED:
            print_summary(paths, state)
    if state.status is RunStatus.INTERRUPTED:
        running = len(state.live_attempts())
        if running:
            say(f"interrupted; {counted(running, 'job')} still running without the controller")
        hint(f"continue with `elmanctl resume {state.run['name']}`")
        raise Exit(130)


def _raise_cpu_limit() -> None:
    """Raise the soft limit on CPU time to the hard one: shells set it for short commands."""
    _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard_s, hard_s))


def check_partition(executor: str, partition: str | None) -> None:
    """Raise EnvironmentNotReady when Slurm has no such partition."""
    if executor == "slurm" and partition:
        from elmanctl.schedulers.slurm import Slurm

        Slurm().check_partition(partition)
