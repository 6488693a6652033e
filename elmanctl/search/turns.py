"""Turns of several runs that one process drives, so that all get equally far.

Each run has its own ledger and could be driven alone.  What one of them raises ends its own part
and no other's.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elmanctl.errors import ElmanError
from elmanctl.search.disk_errors import explained
from elmanctl.search.loop import Controller
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Member:
    """One of several runs, with its controller, and the error that stopped it early, if any."""

    session: Session
    controller: Controller
    error: ElmanError | None = None

    @property
    def name(self) -> str:
        """The name of the run."""
        return str(self.session.run["name"])


def drive_in_turns(
    members: Sequence[Member],
    *,
    tick_s: float,
    stop: threading.Event,
    ended: Callable[[Member], None] = lambda member: None,
) -> None:
    """Drive runs until each has ended or paused itself, or all are asked to stop.

    The session of a run that has ended or paused is closed, so that a paused one can be resumed
    elsewhere; `ended` is then called.
    """
    driven = list(members)

    def each(step: Callable[[Member], bool]) -> None:
        """Let every run take a step, and release those that it ended."""
        for member in tuple(driven):
            # The step of another run may have taken minutes.
            for other in tuple(driven):
                if not _does(other, _renew):
                    _release(other, driven, ended)
            if member in driven and not stop.is_set() and not _does(member, step):
                _release(member, driven, ended)

    each(_start)
    while driven and not stop.is_set():
        # Which run is asked about first: the one that waited longest, as they share a pace.
        driven.sort(key=lambda member: member.controller.asked_s)
        each(_advance)
        each(_submit)
        stop.wait(tick_s)
    for member in tuple(driven):
        _does(member, _interrupt)


def _does(member: Member, step: Callable[[Member], bool]) -> bool:
    """Whether a run goes on after a step; records why it paused if the step raises."""
    try:
        with explained(member.name):
            try:
                return step(member)
            except (ElmanError, OSError) as exc:
                member.session.pause(exc)
                raise
    except ElmanError as exc:
        member.error = exc
        return False


def _release(member: Member, driven: list[Member], ended: Callable[[Member], None]) -> None:
    driven.remove(member)
    member.controller.leave()
    try:
        member.session.close()
    except (ElmanError, OSError) as exc:
        logger.warning("the lease of %s was not released: %s", member.name, exc)
    ended(member)


def _renew(member: Member) -> bool:
    member.session.lease.renew()
    return True


def _start(member: Member) -> bool:
    member.controller.start()
    return True


def _advance(member: Member) -> bool:
    return not member.controller.advance()


def _submit(member: Member) -> bool:
    member.controller.submit()
    return True


def _interrupt(member: Member) -> bool:
    member.controller.interrupt()
    return True
