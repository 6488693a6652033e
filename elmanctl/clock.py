"""Wall-clock time, in one place so that tests can freeze it."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the present moment in UTC."""
    return datetime.fromtimestamp(time.time(), UTC)


def to_text(moment: datetime) -> str:
    """Write a moment as ISO-8601 in UTC with milliseconds and a final Z."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_text(text: str) -> datetime:
    """Read a moment written by `to_text`."""
    return datetime.fromisoformat(text)


def format_duration(seconds: float) -> str:
    """Write a duration as Slurm does: [D-]HH:MM:SS."""
    whole = max(0, round(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    text = f"{hours:02}:{minutes:02}:{secs:02}"
    return f"{days}-{text}" if days else text


def format_rough(seconds: float) -> str:
    """Write a duration in one unit for people: 14s, 6m, 3h, 2d."""
    for limit, unit, size in ((90, "s", 1), (90 * 60, "m", 60), (36 * 3600, "h", 3600)):
        if seconds < limit:
            return f"{max(0, round(seconds / size))}{unit}"
    return f"{round(seconds / 86400)}d"
