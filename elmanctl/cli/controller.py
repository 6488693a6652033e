"""The foreground controller: takes the lease, runs the preflight checks, drives the search."""

import os
import resource
from collections.abc import Mapping, Sequence
from typing import Any

from typer import Exit

from elmanctl.cli.inside import describe_inside, inside_executor
from elmanctl.cli.interrupts import interruptible
from elmanctl.cli.output import counted, hint, print_json, say, warn
from elmanctl.cli.plan import warn_of_dropped
from elmanctl.cli.search_summary import print_summary, run_summary
from elmanctl.cli.search_view import make_view
from elmanctl.errors import ElmanError
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import make_executor
from elmanctl.schedulers.executor import AllocationExecutor, Executor
from elmanctl.schedulers.quoting import check_path
from elmanctl.search.disk_errors import explained
from elmanctl.search.effective_settings import effective_settings
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
    inside: bool = False,
    as_json: bool = False,
) -> None:
    """Drive a search in the foreground until it ends or is interrupted.

    With `confirms_now` no further generation is asked, and the best so far are confirmed.  It
    trains in jobs, or `inside` the allocation that this process is in.
    """
    from elmanctl.search.loop import Controller
    from elmanctl.search.poll import QueryPace

    raise_cpu_limit()
    with (
        explained(paths.folder.name),
        Session.open(paths.folder) as session,
        interruptible(paths.folder.name) as stop,
    ):
        executor = checked_executor(
            session, generations=generations, changes=changes, inside=inside
        )
        start(session, executor, generations=generations, changes=changes)
        poll_s, tick_s = intervals_s(session, executor)
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
        tell_interrupted([state])
        raise Exit(130)


def checked_executor(
    session: Session,
    *,
    generations: int | None,
    changes: Mapping[str, Any] | None,
    inside: bool = False,
) -> Executor:
    """Return the executor of a run that may be driven with these changes; nothing is written.

    Raises the ElmanError of the first check that fails.
    """
    paths, changed = session.paths, changes or {}
    if session.warning:
        warn(session.warning)
    session.refuse_cancelled()
    refuse_copy(paths, session.state)
    refuse_other_clusters(session.state, os.environ)
    refuse_changed_code(paths, session.run)
    check_path(paths.folder)
    if changed:
        session.check_changes(changed)
    if "slurm.partition" in changed:
        check_partition(session.run["executor"], changed["slurm.partition"])
    if generations is not None:
        session.check_extension(generations)
    settings = effective_settings(session.state, changed)
    if inside:
        within = inside_executor(paths, session.run["executor"], settings, session.state)
        if session.state.controller is not None:
            say(describe_inside(within))
        return within
    executor = make_executor(paths, session.run["executor"], settings)
    # The first poll queries Slurm, within its rate limit.
    executor.check(asks=False)
    return executor


def start(
    session: Session,
    executor: Executor,
    *,
    generations: int | None,
    changes: Mapping[str, Any] | None,
) -> None:
    """Record changes, and that a controller drives the run from now on."""
    if generations is not None:
        session.extend(generations)
    if changes:
        before = session.settings.slurm.extra
        session.change_settings(changes)
        warn_of_dropped(before, session.settings.slurm.extra)
    session.start_controller(executor)


def reads_files(executor: Executor) -> bool:
    """Whether a poll reads files and processes, which puts no load on Slurm.

    Inside an allocation the executor itself limits how often it queries that.
    """
    return executor.name == "local" or isinstance(executor, AllocationExecutor)


def intervals_s(session: Session, executor: Executor) -> tuple[float, float]:
    """Return the seconds between two polls of the executor, and between two turns."""
    poll_s = _LOCAL_TICK_S if reads_files(executor) else session.settings.slurm.poll_s
    return poll_s, min(poll_s, _TICK_S)


def tell_interrupted(states: Sequence[RunState]) -> None:
    """Say which jobs go on after an interrupt, and how the runs are continued."""
    running = sum(len(state.live_attempts()) for state in states)
    if running:
        say(f"interrupted; {counted(running, 'job')} still running without the controller")
    names = " ".join(str(state.run["name"]) for state in states)
    inside = " --inside" * any((state.controller or {}).get("allocation") for state in states)
    hint(f"continue with `elmanctl resume {names}{inside}`")


def raise_cpu_limit() -> None:
    """Raise the soft limit on CPU time to the hard one: shells set it for short commands."""
    _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (hard_s, hard_s))


def check_partition(executor: str, partition: str | None) -> None:
    """Raise EnvironmentNotReady when Slurm has no such partition."""
    if executor == "slurm" and partition:
        from elmanctl.schedulers.slurm import Slurm

        Slurm().check_partition(partition)
