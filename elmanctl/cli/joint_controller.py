"""The foreground controller of several runs, which take turns on one machine or one cluster."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from typer import Exit

from elmanctl.cli.compare import print_comparison, rows_of_runs
from elmanctl.cli.comparison_data import comparison_data
from elmanctl.cli.controller import (
    checked_executor,
    intervals_s,
    raise_cpu_limit,
    reads_files,
    start,
    tell_interrupted,
)
from elmanctl.cli.interrupts import interruptible
from elmanctl.cli.output import print_json, print_line, say
from elmanctl.cli.search_summary import print_summary, run_summary
from elmanctl.cli.search_view import JointLine, PlainView, make_views
from elmanctl.errors import UsageError, together
from elmanctl.ledger.records import RunStatus
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import Executor
from elmanctl.search.comparison import compare_rows
from elmanctl.search.disk_errors import explained
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.session import Session
from elmanctl.search.sharing import Sharing
from elmanctl.search.turns import Member
from elmanctl.settings import Settings


def drive_together(
    runs: Sequence[RunPaths],
    *,
    generations: int | None = None,
    changes: Mapping[str, Any] | None = None,
    inside: bool = False,
    as_json: bool = False,
) -> None:
    """Drive several searches in the foreground until all have ended or are interrupted.

    All are checked before anything is written to one of them.  Raises the errors of those that
    paused, when the others have ended.
    """
    from elmanctl.search.turns import drive_in_turns

    raise_cpu_limit()
    names = [paths.folder.name for paths in runs]
    with ExitStack() as stack, interruptible(" ".join(names)) as stop:
        sessions, executors = [], []
        for paths in runs:
            with explained(paths.folder.name):
                session = stack.enter_context(Session.open(paths.folder))
                executors.append(
                    checked_executor(
                        session, generations=generations, changes=changes, inside=inside
                    )
                )
            sessions.append(session)
        _refuse_unlike(sessions, changes or {})
        for session, executor in zip(sessions, executors, strict=True):
            with explained(session.paths.folder.name):
                start(session, executor, generations=generations, changes=changes)
        views = stack.enter_context(make_views(names))
        members = _members(sessions, executors, list(views.values()), stop)
        _, tick_s = intervals_s(sessions[0], executors[0])
        drive_in_turns(members, tick_s=tick_s, stop=stop, ended=_tell)
    _report(members, as_json=as_json)


def _refuse_unlike(sessions: Sequence[Session], changes: Mapping[str, Any]) -> None:
    """Raise UsageError for runs that do not run in one place, on the same devices."""
    first, *others = (
        (session.run["executor"], effective_settings(session.state, changes))
        for session in sessions
    )
    for session, (executor, settings) in zip(sessions[1:], others, strict=True):
        both = f"`{sessions[0].run['name']}` and `{session.run['name']}`"
        if executor != first[0]:
            raise UsageError(
                f"of {both} one runs on Slurm and one on this machine",
                hint="resume each by a command of its own",
            )
        if executor == "local" and _slots(settings) != _slots(first[1]):
            raise UsageError(
                f"{both} have different `local.gpus`, `local.workers` or `train.gpus`",
                hint="set them with `--set`, for all of these runs, or resume one after the other",
            )


def _slots(settings: Settings) -> tuple[object, ...]:
    return settings.local.gpus, settings.local.workers, settings.train.gpus


def _members(
    sessions: Sequence[Session],
    executors: Sequence[Executor],
    views: Sequence[PlainView | JointLine],
    stop: threading.Event,
) -> list[Member]:
    """Return the runs with their controllers, which share slots and one pace of queries."""
    from elmanctl.search.loop import Controller
    from elmanctl.search.poll import QueryPace

    poll_s, tick_s = intervals_s(sessions[0], executors[0])
    slowest_s = max(intervals_s(one, executors[0])[0] for one in sessions)
    sharing, pace = Sharing(), QueryPace(slowest_s)
    members = []
    for session, executor, view in zip(sessions, executors, views, strict=True):
        own = QueryPace(poll_s) if reads_files(executor) else pace
        controller = Controller(
            session, executor, view, pace=own, tick_s=tick_s, stop=stop, sharing=sharing
        )
        members.append(Member(session, controller))
    return members


def _print_data(members: Sequence[Member], finished: Sequence[Path]) -> None:
    runs = [run_summary(member.session.paths, member.session.state) for member in members]
    groups = compare_rows(rows_of_runs(finished)) if len(finished) > 1 else []
    print_json({"runs": runs, "comparison": comparison_data(groups) if groups else None})


def _tell(member: Member) -> None:
    if member.error is not None:
        say(f"{member.name} paused: {member.error.message}")


def _report(members: Sequence[Member], *, as_json: bool) -> None:
    """Print the end of each run; raise what paused some of them, or Exit after an interrupt."""
    stopped = [member for member in members if member.session.state.status is RunStatus.INTERRUPTED]
    # The winners of two and more are compared.
    finished = [
        member.session.paths.folder
        for member in members
        if member.session.state.status is RunStatus.FINISHED
    ]
    if as_json:
        _print_data(members, finished)
    else:
        ended = [one for one in members if one.error is None and one not in stopped]
        for number, member in enumerate(ended):
            if number:
                print_line()
            print_summary(member.session.paths, member.session.state)
        if len(finished) > 1:
            print_line()
            print_comparison(finished)
    if stopped:
        tell_interrupted([member.session.state for member in stopped])
        raise Exit(130)
    for member in members:
        if member.error is not None:
            member.error.message = f"{member.name}: {member.error.message}"
    errors = [member.error for member in members if member.error is not None]
    if errors:
        raise together(errors)
