"""Training losses of a run so far: the last ones and the mean of all, in nats per byte."""

import math
from collections import deque

from elmanctl.run.protocol import LOSS_WINDOW_STEPS
from elmanctl.run.training import Training


class TrainingLosses:
    """The losses of the finite steps; only as many as are needed are kept."""

    def __init__(self, training: Training) -> None:
        # Convergence is judged by a share of all.
        most = None if training.budget.kind == "converge" else LOSS_WINDOW_STEPS
        self.kept: deque[float] = deque(maxlen=most)
        self.total = 0.0
        self.count = 0

    def append(self, loss: float) -> None:
        """Add the loss of the next step."""
        self.kept.append(loss)
        self.total += loss
        self.count += 1

    @property
    def last(self) -> float | None:
        """The loss of the last step, None before the first."""
        return self.kept[-1] if self.kept else None

    @property
    def window_steps(self) -> int:
        """The number of steps that `last100` is the mean of."""
        return min(len(self.kept), LOSS_WINDOW_STEPS)

    @property
    def last100(self) -> float | None:
        """The mean of the last hundred steps, or of all there are."""
        return self.mean_of_last(LOSS_WINDOW_STEPS)

    @property
    def mean(self) -> float | None:
        """The mean of all steps."""
        return self.total / self.count if self.count else None

    def mean_of_last(self, steps: int) -> float | None:
        """Return the mean of so many last steps, or of all that are kept."""
        last = list(self.kept)[-steps:]
        return math.fsum(last) / len(last) if last else None
