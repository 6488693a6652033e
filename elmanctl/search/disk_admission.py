"""Room on the disk for further attempts: how many may be submitted, and cleaning before that."""

import time

from elmanctl.errors import SearchPaused
from elmanctl.ledger.disk import space_of
from elmanctl.ledger.payloads import Note
from elmanctl.search.cleaning import Freed, plan_cleaning, remove_planned, retention
from elmanctl.search.disk_forecast import attempts_that_fit, describe_shortage
from elmanctl.search.session import Session

# Between two cleanings of a run that waits for room.
_CLEANED_PAUSE_S = 60.0


class Room:
    """What the disk has room for, by the rules of `[disk]`."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next_cleaning = 0.0

    def for_attempts(self, wanted: int, *, live: int) -> int:
        """Return how many of the wanted attempts the disk has room for, beside the live ones.

        Raises SearchPaused at the floor, and when nothing fits and no job is left to wait for.
        """
        if not wanted:
            return 0
        fit = self._fitting(wanted, live)
        freed: Freed | None = None
        if fit <= 0 and self._may_clean():
            freed = self._clean()
            fit = self._fitting(wanted, live)
        if fit < 0 or (fit == 0 and not live):
            raise self._shortage(wanted, freed)
        return fit

    def _fitting(self, wanted: int, live: int) -> int:
        session = self._session
        fit = attempts_that_fit(
            space_of(session.paths.folder),
            session.settings.disk,
            attempt_bytes=session.state.disk.attempt_bytes,
            live=live,
        )
        return wanted if fit is None else min(wanted, fit)

    def _may_clean(self) -> bool:
        """Whether the run's own rules ask for cleaning; looking for what may go takes a while."""
        if not self._session.settings.disk.auto_clean or time.monotonic() < self._next_cleaning:
            return False
        self._next_cleaning = time.monotonic() + _CLEANED_PAUSE_S
        return True

    def _clean(self) -> Freed:
        """Free what the run's own rules let go, and say so in the ledger."""
        session = self._session
        policy = retention(session.settings.disk, {})
        plan = plan_cleaning(session.paths, session.state, policy)
        freed = remove_planned(session, plan)
        if freed.files:
            text = f"too little room: {freed.files} files, {freed.size_bytes} bytes, were cleaned"
            session.record(Note(text=f"{text} by the rules of [disk]"))
        return freed

    def _shortage(self, wanted: int, freed: Freed | None) -> SearchPaused:
        session = self._session
        settings, name = session.settings.disk, session.run["name"]
        text = describe_shortage(
            space_of(session.paths.folder),
            settings,
            attempt_bytes=session.state.disk.attempt_bytes,
            waiting=wanted,
        )
        plan = plan_cleaning(session.paths, session.state, retention(settings, {}))
        could_bytes = sum(item.size_bytes for item in plan)
        if freed is not None:
            text += f"; cleaning by the rules of [disk] freed {freed.size_bytes} bytes"
        return SearchPaused(
            text,
            hint=f"`elmanctl clean {name}` would free {could_bytes / 1e9:.3f} GB, `elmanctl disk` "
            f"shows what else takes room; then `elmanctl resume {name}`",
        )
