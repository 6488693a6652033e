from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elmanctl.bench import timing
from elmanctl.bench.timing import calls_for, measure, sets_needed, summarize

CPU = torch.device("cpu")
MB = 10**6


@pytest.mark.parametrize(
    ("set_bytes", "cache_bytes", "sets"),
    [
        (174 * MB, 50 * MB, 2),
        (20 * MB, 50 * MB, 6),
        (20 * MB, 0, 3),
        (1, 60 * MB, 16),
        (0, 0, 16),
    ],
)
def test_inputs_rotate_until_no_cache_holds_them(
    set_bytes: int, cache_bytes: int, sets: int
) -> None:
    assert sets_needed(set_bytes, cache_bytes) == sets
    if sets < 16:
        assert sets * set_bytes > max(50 * MB, 2 * cache_bytes)


@pytest.mark.parametrize(
    ("estimate_ms", "seconds", "repeats", "calls"),
    [
        (1.0, 0.3, 3, 100),
        (10.0, 0.3, 3, 10),
        (100.0, 0.3, 3, 1),
        (200.0, 0.3, 1, 1),
        (9e9, 1, 1, 1),
    ],
)
def test_as_many_calls_are_timed_as_fit_and_at_least_one(
    estimate_ms: float, seconds: float, repeats: int, calls: int
) -> None:
    assert calls_for(estimate_ms, seconds) == (repeats, calls)


def test_median_of_medians_does_not_see_what_is_seldom() -> None:
    found = summarize([[1.0, 1.0, 900.0], [2.0, 2.0, 2.0], [3.0, 3.0, 0.1]], host_ms=0.5)
    assert (found.ms, found.low_ms, found.high_ms) == (2.0, 1.0, 3.0)
    assert (found.repeats, found.calls, found.spread) == (3, 3, 1.0)


def test_calls_are_numbered_and_the_first_two_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers, now_s = [], [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def call(number: int) -> None:
        numbers.append(number)
        now_s[0] += 0.2 if number == 0 else 0.02

    found = measure(call, CPU, seconds=0.2)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) == 2 + found.repeats * found.calls
    assert found.ms == pytest.approx(20)


class Card:
    """A CUDA device as far as timing goes: calls are queued and run when somebody waits."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.queue: list[Any] = []
        self.order: list[str] = []

    def synchronize(self, device: object = None) -> None:
        for work in self.queue:
            work()
        self.queue.clear()

    def run(self, ms: float, name: str) -> None:
        def work() -> None:
            self.now_ms += ms
            self.order.append(name)

        self.queue.append(work)

    def event(self) -> Any:
        found = SimpleNamespace(at_ms=0.0)

        def record() -> None:
            self.queue.append(lambda: setattr(found, "at_ms", self.now_ms))

        found.record = record
        found.elapsed_time = lambda later: later.at_ms - found.at_ms
        return found


def test_on_cuda_events_around_each_call_are_read_after_all_have_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card()
    monkeypatch.setattr(torch.cuda, "synchronize", card.synchronize)
    monkeypatch.setattr(timing, "_event", card.event)
    monkeypatch.setattr(timing, "_keep_busy", lambda ms, device: card.run(500.0, "filler"))
    times = {0: 70.0, 1: 60.0}
    device: Any = SimpleNamespace(type="cuda")
    found = measure(lambda n: card.run(times.get(n, 3.0 + n % 2), str(n)), device, seconds=0.001)
    # Neither the two calls before nor what keeps the card busy is in the time.
    assert found.low_ms >= 3.0 and found.high_ms <= 4.0
    assert card.order[:3] == ["0", "1", "filler"]
    assert card.order.count("filler") == found.repeats
    assert len(card.order) == 2 + found.repeats * (1 + found.calls)
