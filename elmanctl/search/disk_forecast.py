"""Disk forecast: the bytes that the rest of a search will write, against the free space."""

from dataclasses import dataclass

from elmanctl.ledger.disk import Space
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.summary import RunSummary
from elmanctl.search.costs import evaluations_left
from elmanctl.settings import DiskSettings

GB = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Expected disk use of the remaining evaluations, at the mean of those so far."""

    evaluation_bytes: int
    evaluations_left: int
    room_bytes: int

    @property
    def needed_bytes(self) -> int:
        """The bytes that the remaining evaluations will write."""
        return self.evaluation_bytes * self.evaluations_left

    @property
    def fits(self) -> bool:
        """Whether the search can finish without reaching the floor."""
        return self.needed_bytes <= self.room_bytes

    @property
    def warning(self) -> str | None:
        """The warning to show, None when the rest of the search fits."""
        if self.fits:
            return None
        return (
            f"the remaining {self.evaluations_left} evaluations will write about "
            f"{format_size(self.needed_bytes)}, and {format_size(max(0, self.room_bytes))} are "
            "free above the floor"
        )


def forecast(state: RunState | RunSummary, space: Space, settings: DiskSettings) -> Forecast | None:
    """Return the disk use of the rest of a search, None before the first finished evaluation."""
    evaluation_bytes = state.disk.evaluation_bytes
    if evaluation_bytes is None:
        return None
    return Forecast(
        evaluation_bytes=evaluation_bytes,
        evaluations_left=evaluations_left(state, int(state.run["optimizer"]["population"])),
        room_bytes=room_bytes(space, settings),
    )


def room_bytes(space: Space, settings: DiskSettings) -> int:
    """Return the bytes that may be written before the floor is reached."""
    return space.usable_bytes - int(settings.floor_gb * GB)


def format_size(size_bytes: int) -> str:
    """Return a size with two decimals, so that one just under a floor is not rounded to it."""
    for unit, size in (("GB", GB), ("MB", 1_000_000), ("kB", 1000)):
        if size_bytes >= size:
            return f"{size_bytes / size:.2f} {unit}"
    return f"{size_bytes} B"
