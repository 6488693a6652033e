"""Disk admission: how many attempts the disk has room for, after cleaning if the run allows it."""

import time

from elmanctl.errors import SearchPaused
from elmanctl.ledger.disk import Space, space_of
from elmanctl.ledger.payloads import Note
from elmanctl.search.cleaning import plan_cleaning, remove_planned
from elmanctl.search.disk_forecast import format_size, room_bytes
from elmanctl.search.kept_models import PARAMETER_BYTES
from elmanctl.search.session import Session
from elmanctl.settings import DiskSettings

# Minimum interval between two automatic cleanings.
_CLEANING_INTERVAL_S = 60.0


class DiskAdmission:
    """Admits attempts as far as the rules of `[disk]` allow."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._next_cleaning = 0.0

    def admit(self, wanted: int, *, live: int) -> int:
        """Return how many of the wanted attempts fit on the disk beside the live ones.

        Raises SearchPaused at the floor, and when none fits and no live job can free space.
        """
        if not wanted:
            return 0
        fit = self._fitting(wanted, live)
        freed: list[int] | None = None
        if fit <= 0 and self._may_clean():
            freed = self._clean()
            fit = self._fitting(wanted, live)
        if fit < 0 or (fit == 0 and not live):
            raise self._shortage(wanted, freed)
        return fit

    def _fitting(self, wanted: int, live: int) -> int:
        """Return how many attempts fit, -1 under the floor itself, by bytes or by files."""
        space, settings = space_of(self._session.paths.folder), self._session.settings.disk
        attempt_bytes = self._attempt_bytes()
        if room_bytes(space, settings) < 0 or _lacks_inodes(space, settings):
            return -1
        if not attempt_bytes:
            return wanted
        return min(wanted, max(0, room_bytes(space, settings) // attempt_bytes - live))

    def _attempt_bytes(self) -> int:
        """Return what one attempt may write, its model included, whether that stays or not."""
        session = self._session
        each_bytes = session.state.disk.attempt_bytes or 0
        if session.settings.disk.keep_models:
            waiting = session.state.waiting_evaluations()
            each_bytes += PARAMETER_BYTES * max((e.parameters for e in waiting), default=0)
        return each_bytes

    def _may_clean(self) -> bool:
        """Whether to clean now: scanning the run folder takes a while, so not at every turn."""
        if not self._session.settings.disk.auto_clean or time.monotonic() < self._next_cleaning:
            return False
        self._next_cleaning = time.monotonic() + _CLEANING_INTERVAL_S
        return True

    def _clean(self) -> list[int]:
        """Remove what the run's own rules do not keep, with a note; return the bytes freed."""
        session = self._session
        plan = plan_cleaning(session.paths, session.state, session.settings.disk)
        freed = remove_planned(session, plan)
        if freed:
            text = f"too little room: {len(freed)} files, {sum(freed)} bytes, were cleaned"
            session.record(Note(text=f"{text} by the rules of [disk]"))
        return freed

    def _shortage(self, wanted: int, freed: list[int] | None) -> SearchPaused:
        session = self._session
        settings, name = session.settings.disk, session.run["name"]
        each_bytes = self._attempt_bytes()
        text = _describe_shortage(space_of(session.paths.folder), settings, wanted, each_bytes)
        plan = plan_cleaning(session.paths, session.state, settings)
        could_bytes = sum(file.size_bytes for file in plan)
        if freed is not None:
            text += f"; cleaning by the rules of [disk] freed {sum(freed)} bytes"
        return SearchPaused(
            text,
            hint=f"`elmanctl clean {name}` would free {could_bytes / 1e9:.3f} GB, `elmanctl disk` "
            f"shows what else takes room; then `elmanctl resume {name}`",
        )


def _lacks_inodes(space: Space, settings: DiskSettings) -> bool:
    return space.usable_inodes is not None and space.usable_inodes < settings.floor_inodes


def _describe_shortage(space: Space, settings: DiskSettings, wanted: int, each_bytes: int) -> str:
    """Return why nothing more is submitted: the free space, the floor, the space needed."""
    if _lacks_inodes(space, settings):
        return (
            f"{space.usable_inodes} more files can be made, under the floor of "
            f"{settings.floor_inodes} (`disk.floor_inodes`)"
        )
    quota = " in your quota" if space.usable_bytes < space.free_bytes else ""
    free = f"{format_size(space.usable_bytes)} are free{quota}"
    floor = f"the floor of {settings.floor_gb:g} GB (`disk.floor_gb`)"
    if room_bytes(space, settings) < 0:
        return f"{free}, under {floor}"
    each = format_size(each_bytes)
    return f"{free}, and {wanted} attempts of about {each} do not fit above {floor}"
