"""Backoff of submissions while a scheduler refuses some: pure arithmetic.

A refused number of attempts is halved until it is accepted.  The number that fits is remembered
and exceeded by growing steps; while nothing more fits, retries become ever rarer.
"""

# Shortest and longest pause between two retries.
FIRST_PAUSE_S = 5.0
LAST_PAUSE_S = 300.0

# A job counts against the limit until it has ended, some time after its result is seen: this long
# at first, and at most so long if that proves too short.
SETTLING_S = 3.0
LONGEST_SETTLING_S = 60.0


class Pace:
    """Pace of submissions to one scheduler; times are those of a monotonic clock."""

    def __init__(self) -> None:
        self._not_before = 0.0
        self._pause_s = FIRST_PAUSE_S
        # The number of live attempts that fits, None before the first refusal.
        self._fits: int | None = None
        # Upper limit of the bisection after a refusal, None outside of one.
        self._below: int | None = None
        # By how many attempts the next try exceeds that number.
        self._step = 1
        self._live = 0
        self._ended_at: list[float] = []
        self._settling_s = SETTLING_S

    @property
    def next_at(self) -> float:
        """When the next try is due, unless a job ends earlier."""
        return self._not_before

    def size(self, waiting: int, live: int, now: float) -> int:
        """Return how many of the waiting attempts to submit now, with so many live ones."""
        self._note_ended(live, now)
        if self._below is None and self._fits is not None:
            free = self._fits - live - len(self._ended_at)
            if free > 0:
                return min(waiting, free)
        if now < self._not_before:
            return 0
        if self._below is not None:
            return min(waiting, max(1, self._below // 2))
        return waiting if self._fits is None else min(waiting, self._step)

    def taken(self, tasks: int, live: int, now: float) -> None:
        """Note that so many were accepted; `live` includes them."""
        self._live = live
        if self._below is not None:
            self._below -= tasks
            if self._below <= 1:
                self._full(live, now)
        elif self._fits is None:
            self._pause_s = FIRST_PAUSE_S
        elif live > self._fits:
            self._fits, self._step, self._pause_s = live, 2 * tasks, FIRST_PAUSE_S

    def refused(self, tasks: int, live: int, now: float, *, is_limit: bool, took_s: float) -> None:
        """Note that so many were refused with so many live ones, and how long that took.

        A limit on the number is bisected at once; a busy or slow scheduler gets a pause first.
        """
        self._live = live
        if self._fits is not None and live + tasks <= self._fits:
            # It fitted before, so jobs that are ending still count.
            self._pause_s = FIRST_PAUSE_S
            self._settling_s = min(2 * self._settling_s, LONGEST_SETTLING_S)
        if tasks == 1:
            self._full(live, now)
        else:
            self._below = tasks
            self._not_before = now + (0.0 if is_limit else self._longer_pause_s())
        self._not_before = max(self._not_before, now + took_s)

    def pause(self, now: float) -> None:
        """Pause, for longer each time until something is accepted."""
        self._not_before = now + self._longer_pause_s()

    def _full(self, live: int, now: float) -> None:
        self._fits, self._below, self._step = live, None, 1
        self.pause(now)

    def _longer_pause_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LAST_PAUSE_S)
        return pause_s

    def _note_ended(self, live: int, now: float) -> None:
        self._ended_at = [at for at in self._ended_at if now - at < self._settling_s]
        self._ended_at += [now] * max(0, self._live - live)
        self._live = live
