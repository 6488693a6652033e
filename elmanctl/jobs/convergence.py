"""Convergence: whether a loss has stopped improving, judged against its own noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from elmanctl.jobs.losses import TrainingLosses

# Parts of a window: their means are nearly independent, unlike the losses of neighbouring steps.
PARTS = 10

# Standard errors that the improvement must stay below the threshold: a run is judged again and
# again, ten times a window, and must not stop early by luck.
MARGIN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """Whether a loss converged; the step, tokens, time and FLOPs are those of the end.

    `loss` is the mean training loss of the last window, `improvement` that over the window before,
    both in nats, and `improvement_se` its standard error.  A loss that is still improving at the
    cap is not converged.
    """

    is_converged: bool
    step: int
    tokens: int
    elapsed_s: float
    flops: float | None
    loss: float | None
    improvement: float | None
    improvement_se: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """The fall of the mean loss from one window to the next, in nats, and its standard error."""

    nats: float
    se: float

    def has_converged(self, threshold: float) -> bool:
        """Whether the improvement is below the threshold, noise considered."""
        return self.nats + MARGIN * self.se < threshold


def judge(
    losses: TrainingLosses,
    window: int,
    threshold: float,
    *,
    step: int,
    tokens: int,
    elapsed_s: float,
    flops: float | None,
) -> Convergence:
    """Return whether the loss has converged at this step."""
    found = improvement(tuple(losses.kept), window)
    return Convergence(
        is_converged=found is not None and found.has_converged(threshold),
        step=step,
        tokens=tokens,
        elapsed_s=elapsed_s,
        flops=flops,
        loss=losses.mean_of_last(window),
        improvement=None if found is None else found.nats,
        improvement_se=None if found is None else found.se,
    )


def improvement(losses: Sequence[float], window: int) -> Improvement | None:
    """Return the improvement over the last two windows, None while there are fewer steps."""
    if len(losses) < 2 * window:
        return None
    before, after = losses[-2 * window : -window], losses[-window:]
    difference = math.fsum(before) / window - math.fsum(after) / window
    return Improvement(nats=difference, se=math.hypot(_error(before), _error(after)))


def is_look(step: int, window: int) -> bool:
    """Return whether convergence is judged after this step: ten times a window."""
    return step >= 2 * window and step % max(1, window // PARTS) == 0


def _error(losses: Sequence[float]) -> float:
    """Return the standard error of a window's mean, from the means of its parts.

    A straight line is taken out first: what a window improves within itself is not noise.
    """
    size = len(losses) // PARTS
    parts = [math.fsum(losses[i * size : (i + 1) * size]) / size for i in range(PARTS)]
    mean, middle = math.fsum(parts) / PARTS, (PARTS - 1) / 2
    slope = math.fsum((i - middle) * part for i, part in enumerate(parts)) / math.fsum(
        (i - middle) ** 2 for i in range(PARTS)
    )
    squares = math.fsum((part - mean - slope * (i - middle)) ** 2 for i, part in enumerate(parts))
    return math.sqrt(squares / (PARTS - 2) / PARTS)
