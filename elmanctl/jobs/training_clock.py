"""Clock of a training run, across interruptions."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingClock:
    """Seconds since the first step, and since the end of the warm-up, which a budget counts.

    It may resume from the count of an earlier worker, and pauses while it is stopped.
    """

    def __init__(
        self, *, elapsed_s: float = 0.0, counted_s: float | None = None, warm_tokens: int = 0
    ) -> None:
        now = time.monotonic()
        self._start = now - elapsed_s
        self._warm = None if counted_s is None else now - counted_s
        self.warm_tokens = warm_tokens

    def warm_up_ends(self, tokens: int) -> None:
        """Start the clock of the budget."""
        self._warm = time.monotonic()
        self.warm_tokens = tokens

    @property
    def is_warm(self) -> bool:
        """Whether the clock of the budget is running."""
        return self._warm is not None

    def elapsed_s(self) -> float:
        """Return the seconds since the first step began."""
        return time.monotonic() - self._start

    def counted_s(self) -> float:
        """Return the seconds since the end of the warm-up."""
        return 0.0 if self._warm is None else time.monotonic() - self._warm

    def tokens_per_s(self, tokens: int) -> float | None:
        """Return the speed after the warm-up, None if nothing followed it."""
        counted = tokens - self.warm_tokens
        return counted / self.counted_s() if self._warm is not None and counted > 0 else None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Pause the clock inside the context."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.leave_out(time.monotonic() - began)

    def leave_out(self, lost_s: float) -> None:
        """Do not count seconds that have just passed."""
        self._start += lost_s
        if self._warm is not None:
            self._warm += lost_s
