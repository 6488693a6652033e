"""Time as text, and durations as Slurm and people write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl import clock


@given(st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1)))
def test_moment_reads_back_to_the_millisecond(moment: datetime) -> None:
    text = clock.to_text(moment)
    assert text.endswith("Z") and len(text) == 24
    assert abs(clock.from_text(text) - moment) < timedelta(milliseconds=1)


def test_moment_of_another_zone_is_written_in_utc() -> None:
    moment = datetime(2026, 8, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert clock.to_text(moment) == "2026-08-01T10:00:00.000Z"


def test_now_is_in_utc() -> None:
    assert clock.now().tzinfo is UTC


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "00:00:00"),
        (0.4, "00:00:00"),
        (59.6, "00:01:00"),
        (3661, "01:01:01"),
        (86399, "23:59:59"),
        (90061, "1-01:01:01"),
    ],
)
def test_duration_is_written_as_slurm_writes_it(seconds: float, text: str) -> None:
    assert clock.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (14, "14s"), (89, "89s"), (360, "6m"), (3 * 3600, "3h"), (2 * 86400, "2d")],
)
def test_rough_duration_is_in_one_unit(seconds: float, text: str) -> None:
    assert clock.format_rough(seconds) == text
