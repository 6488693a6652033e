"""Convergence: whether a loss has stopped improving, judged against its own noise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from elmanctl.jobs.losses import TrainingLosses

# A straight line is fitted to so many windows at least, and to a quarter of the run: one that falls
# slowly meets the threshold slowly, at many looks, and has the steps to be sure.
LEAST_WINDOWS = 4
SHARE_OF_RUN = 4

# Means of so many parts are fitted, since losses of neighbouring steps are not independent.
PARTS = 20

LOOKS_PER_WINDOW = 2

# Standard errors that the improvement must stay below the threshold.  With the above, measured by
# benchmarks/convergence.py.
MARGIN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """Whether a loss converged; the step, tokens, time and FLOPs are those of the end.

    `loss` is the mean training loss of the last window, `improvement` its fall over one window,
    both in nats, and `improvement_se` the standard error of that.  A loss that is still improving
    at the cap is not converged.
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
    """The fall of the loss over one window, in nats, and its standard error."""

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
    """Return the improvement over a window at the end, None with fewer than four windows of steps.

    It is the slope of a straight line, fitted by least squares to the means of equal parts.  Its
    standard error is widened by the correlation r of neighbouring parts, to the error that
    (1 - r) / (1 + r) times as many independent ones would give (Santer et al., 2000, J. Geophys.
    Res. 105, 7337, equation 6).
    """
    span = max(LEAST_WINDOWS * window, len(losses) // SHARE_OF_RUN)
    if len(losses) < span:
        return None
    size = span // PARTS
    last = losses[-PARTS * size :]
    parts = [math.fsum(last[i * size : (i + 1) * size]) / size for i in range(PARTS)]
    mean = math.fsum(parts) / PARTS
    places = [i - (PARTS - 1) / 2 for i in range(PARTS)]
    spread = math.fsum(place**2 for place in places)
    slope = math.fsum(place * part for place, part in zip(places, parts, strict=True)) / spread
    rest = [part - mean - slope * place for place, part in zip(places, parts, strict=True)]
    squares = math.fsum(each**2 for each in rest)
    error = math.sqrt(squares / (PARTS - 2) / spread * _widening(rest, squares))
    return Improvement(nats=-slope * window / size, se=error * window / size)


def is_look(step: int, window: int) -> bool:
    """Return whether convergence is judged after this step: twice a window."""
    return step >= LEAST_WINDOWS * window and step % (window // LOOKS_PER_WINDOW) == 0


def _widening(rest: Sequence[float], squares: float) -> float:
    """Return the factor of a variance for the correlation of neighbours, at least 1."""
    if not squares:
        return 1.0
    # The line that was taken out leaves about 2/PARTS less of it.
    found = math.fsum(a * b for a, b in pairwise(rest)) / squares + 2 / PARTS
    r = min(max(found, 0.0), 0.9)
    return (1 + r) / (1 - r)
