"""Whether what a search still has to write will fit, and what to say when it does not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from elmanctl.errors import ElmanError, EnvironmentNotReady, SearchPaused
from elmanctl.ledger.disk import Space
from elmanctl.ledger.reserve import full_disk
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.search.costs import evaluations_left
from elmanctl.settings import DiskSettings

GB = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a search has still to write, at the mean of its evaluations so far.

    `room_bytes` is what may be written before the floor is met.
    """

    evaluation_bytes: int
    evaluations_left: int
    room_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What the evaluations that are left will write."""
        return self.evaluation_bytes * self.evaluations_left

    @property
    def fits(self) -> bool:
        """Whether the search can end without meeting the floor."""
        return self.needed_bytes <= self.room_bytes

    @property
    def warning(self) -> str | None:
        """What to warn of, None when there is nothing."""
        if self.fits:
            return None
        return (
            f"the {self.evaluations_left} evaluations that are left will write about "
            f"{_gb(self.needed_bytes)}, and {_gb(max(0, self.room_bytes))} are free above the floor"
        )


def forecast(state: RunState | RunSummary, space: Space, settings: DiskSettings) -> Forecast | None:
    """Return what the rest of a search will write, None before anything is known of it."""
    evaluation_bytes = state.disk.evaluation_bytes
    if evaluation_bytes is None:
        return None
    return Forecast(
        evaluation_bytes=evaluation_bytes,
        evaluations_left=evaluations_left(state, int(state.run["optimizer"]["population"])),
        room_bytes=space.usable_bytes - int(settings.floor_gb * GB),
    )


def attempts_that_fit(
    space: Space, settings: DiskSettings, *, attempt_bytes: int | None, live: int
) -> int | None:
    """Return how many attempts may be submitted beside `live` ones; None for any number.

    Negative when the floor itself is met, by bytes or by files.
    """
    room_bytes = space.usable_bytes - int(settings.floor_gb * GB)
    inodes = space.usable_inodes
    if room_bytes < 0 or (inodes is not None and inodes < settings.floor_inodes):
        return -1
    if not attempt_bytes:
        return None
    return max(0, room_bytes // attempt_bytes - live)


def describe_shortage(
    space: Space, settings: DiskSettings, *, attempt_bytes: int | None, waiting: int
) -> str:
    """Return why nothing more is submitted: what is free, the floor, what would be written."""
    inodes = space.usable_inodes
    if inodes is not None and inodes < settings.floor_inodes:
        return (
            f"{inodes} more files can be made, under the floor of {settings.floor_inodes} "
            "(`disk.floor_inodes`)"
        )
    by_quota = space.usable_bytes < space.free_bytes
    free = f"{_gb(space.usable_bytes)} are free" + (" in your quota" if by_quota else "")
    floor = f"the floor of {settings.floor_gb:g} GB (`disk.floor_gb`)"
    if space.usable_bytes < settings.floor_gb * GB:
        return f"{free}, under {floor}"
    each = _gb(attempt_bytes or 0)
    return f"{free}, and {waiting} attempts of about {each} do not fit above {floor}"


@contextmanager
def explained(run: str) -> Iterator[None]:
    """Turn what a disk refuses into one clear error: SearchPaused where it is full.

    Raises EnvironmentNotReady for what else the system refuses to a search under way.
    """
    try:
        yield
    except SearchPaused:
        raise
    except (OSError, ElmanError) as exc:
        full = full_disk(exc)
        if full is not None:
            raise SearchPaused(
                f"the disk is full: {named(full)}; nothing recorded is lost",
                hint=f"make room, e.g. with `elmanctl clean {run}`, then `elmanctl resume {run}`",
            ) from exc
        if isinstance(exc, ElmanError):
            raise
        raise EnvironmentNotReady(
            f"the run cannot be written: {named(exc)}",
            hint=f"mend it, then `elmanctl resume {run}`",
        ) from exc


def named(error: OSError) -> str:
    """Return what the system said, and of which file where it told."""
    said = error.strerror or str(error)
    return f"{error.filename}: {said}" if error.filename else said


def _gb(size_bytes: int) -> str:
    for unit, size in (("GB", GB), ("MB", 1_000_000), ("kB", 1000)):
        if size_bytes >= size:
            return f"{size_bytes / size:.2f} {unit}"
    return f"{size_bytes} B"
