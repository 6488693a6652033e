"""Backoff of submissions while a scheduler refuses some."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from elmanctl.search.backoff import FIRST_PAUSE_S, LAST_PAUSE_S, SETTLING_S, Pace

TURN_S = 0.5


class Queue:
    """A scheduler that holds so many jobs; ended ones count a while longer."""

    def __init__(self, limit: int, lag_s: float = 1.0) -> None:
        self.limit = limit
        self.lag_s = lag_s
        self.pace = Pace()
        self.now = 100.0
        self.live = 0
        self.ending: list[float] = []
        self.calls: list[tuple[float, int, bool]] = []

    def turn(self, waiting: int) -> int:
        """Submit as far as the pace goes; return how many were taken."""
        taken = 0
        while taken < waiting:
            size = self.pace.size(waiting - taken, self.live, self.now)
            if size == 0:
                break
            assert 1 <= size <= waiting - taken
            self.ending = [at for at in self.ending if self.now - at < self.lag_s]
            fits = self.live + len(self.ending) + size <= self.limit
            self.calls.append((self.now, size, fits))
            if not fits:
                self.pace.refused(size, self.live, self.now, is_limit=True, took_s=0.0)
                break
            self.live += size
            taken += size
            self.pace.taken(size, self.live, self.now)
        self.now += TURN_S
        return taken

    def end(self, jobs: int) -> None:
        self.live -= jobs
        self.ending += [self.now] * jobs

    def drive(self, total: int, job_s: float, limit_s: float = 1e6) -> float:
        """Run so many jobs, each so long, and return how long that took."""
        began, waiting = self.now, total
        ends: list[float] = []
        while waiting or ends:
            assert self.now - began < limit_s
            over = [at for at in ends if at <= self.now]
            ends = [at for at in ends if at > self.now]
            self.end(len(over))
            taken = self.turn(waiting)
            waiting -= taken
            ends += [self.now + job_s] * taken
        return self.now - began

    @property
    def refused(self) -> int:
        return sum(not fits for _, _, fits in self.calls)


def test_without_a_refusal_everything_is_submitted_at_once() -> None:
    queue = Queue(limit=1000)
    queue.drive(64, 10)
    assert [size for _, size, _ in queue.calls] == [64]


def test_what_is_refused_is_halved_until_it_fits() -> None:
    queue = Queue(limit=3)
    for _ in range(6):
        queue.turn(8 - queue.live)
    assert [(size, fits) for _, size, fits in queue.calls] == [
        *((8, False), (4, False), (2, True), (1, True))
    ]
    # All within seconds, and no try in vain after what fits is known.
    assert queue.now - 100.0 <= 6 * TURN_S


def test_what_fits_is_remembered_when_jobs_end() -> None:
    queue = Queue(limit=20)
    elapsed_s = queue.drive(400, job_s=60)
    # Twenty at a time would take 20 rounds; each is late by what jobs take to settle.
    assert elapsed_s <= 20 * (60 + SETTLING_S + 8 * TURN_S) + FIRST_PAUSE_S
    assert queue.refused <= 12 + elapsed_s / LAST_PAUSE_S + 6


def test_limit_that_others_use_up_is_asked_ever_more_rarely_and_used_when_it_is_free() -> None:
    queue = Queue(limit=0)
    while queue.now < 100.0 + 12 * 3600:
        queue.turn(8)
    pauses = [b[0] - a[0] for a, b in pairwise(queue.calls[3:])]
    assert pauses[:3] == [5.0, 10.0, 20.0]
    assert max(pauses) <= LAST_PAUSE_S + TURN_S
    # Twelve hours of waiting: two events a try.
    assert len(queue.calls) <= 12 * 12 + 12
    queue.limit = 8
    began = queue.now
    while queue.live < 8:
        queue.turn(8 - queue.live)
    assert queue.now - began <= LAST_PAUSE_S + 5


def test_limit_that_is_raised_is_found_out() -> None:
    queue = Queue(limit=4)
    for _ in range(100):
        queue.turn(64 - queue.live)
    assert queue.live == 4
    queue.limit = 64
    began = queue.now
    while queue.live < 64:
        queue.turn(64 - queue.live)
    assert queue.now - began <= 80


def test_jobs_that_take_long_to_end_delay_the_next_and_teach_nothing_for_long() -> None:
    queue = Queue(limit=8, lag_s=12.0)
    assert queue.drive(80, job_s=600) <= 10 * 640


def test_busy_scheduler_is_left_in_peace_between_any_two_tries() -> None:
    pace = Pace()
    now, times = 0.0, []
    while now < 3600:
        size = pace.size(8, 0, now)
        if size:
            times.append(now)
            pace.refused(size, 0, now, is_limit=False, took_s=0.0)
        now += TURN_S
    pauses = [b - a for a, b in pairwise(times)]
    assert min(pauses) >= FIRST_PAUSE_S and len(times) <= 20


def test_slow_refusal_is_not_repeated_sooner_than_it_took() -> None:
    """At MaxJobCount sbatch itself tries for two minutes."""
    pace = Pace()
    pace.refused(8, 0, 120.0, is_limit=True, took_s=120.0)
    assert pace.size(8, 0, 239.0) == 0
    assert pace.size(8, 0, 240.0) == 4


@settings(deadline=None, max_examples=40)
@given(
    limit=st.integers(1, 40),
    lag_s=st.floats(0, 20),
    total=st.integers(1, 60),
    job_s=st.floats(1, 100),
)
def test_everything_gets_its_turn_under_any_limit(
    limit: int, lag_s: float, total: int, job_s: float
) -> None:
    queue = Queue(limit, lag_s)
    rounds = -(-total // limit)
    queue.drive(total, job_s, limit_s=(rounds + 4) * (job_s + lag_s + 60) + 2 * LAST_PAUSE_S)
    # Few tries in vain: some for each step of the search, and those that time brings.
    assert queue.refused <= 12 + 8 * rounds
