"""Early stopping in a worker: its losses at the looks, and the request to end before the budget."""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elmanctl.constants import LOOKS

logger = logging.getLogger(__name__)

# A mean of fewer losses says little, and the look has none.
_LEAST_STEPS = 10

# Window and look have ends at half looks.
_PARTS = 2 * LOOKS


class LossCurve:
    """Mean training losses at the looks of a training, of which only sums are kept.

    Look number k, from 1 to `LOOKS`, is at k / `LOOKS` of the budget, and its loss is the mean
    over the steps of the later half of what was trained by then.
    """

    def __init__(self) -> None:
        self._sums = [0.0] * (_PARTS + 1)
        self._counts = [0] * (_PARTS + 1)
        self._share = 0.0
        self._known_from = 0

    def resume(self, share: float) -> None:
        """Go on after steps that other workers made, whose losses are not known here."""
        self._share = share
        self._known_from = _part(share) + 1

    def add(self, share: float, loss: float) -> bool:
        """Add a step after which so much of the budget is spent; return whether a look is new."""
        looks = self.looks
        self._share = max(self._share, min(share, 1.0))
        if math.isfinite(loss):
            self._sums[_part(self._share)] += loss
            self._counts[_part(self._share)] += 1
        return self.looks > looks

    @property
    def looks(self) -> int:
        """The number of looks so far."""
        return math.floor(self._share * LOOKS + 1e-9)

    @property
    def share(self) -> float:
        """The share of the budget that is spent."""
        return self._share

    @property
    def losses(self) -> tuple[float | None, ...]:
        """The loss at each look so far, None for a look whose steps are few or not all known."""
        return tuple(self._loss(look) for look in range(1, self.looks + 1))

    def _loss(self, look: int) -> float | None:
        window = slice(look + 1, 2 * look + 1)
        count = sum(self._counts[window])
        if look + 1 < self._known_from or count < _LEAST_STEPS:
            return None
        return round(math.fsum(self._sums[window]) / count, 6)


class EarlyStop:
    """The looks of a training, which are noted, and the controller's request to end it.

    The request is a file, which is looked for at most every `interval_s` seconds.
    """

    def __init__(
        self,
        request: Path,
        *,
        interval_s: float,
        note: Callable[[tuple[float | None, ...]], None],
    ) -> None:
        self.curve = LossCurve()
        self._request = request
        self._interval_s = interval_s
        self._note = note
        self._looked_at = -math.inf

    def add(self, share: float, loss: float) -> None:
        """Add the loss of a step, and note the losses so far at a new look."""
        if self.curve.add(share, loss):
            self._note(self.curve.losses)

    def record(self) -> dict[str, Any]:
        """Return the entries of the result about it."""
        return {"share": self.curve.share, "curve": self.curve.losses}

    def is_asked(self) -> bool:
        """Whether the controller has asked the training to end now."""
        if time.monotonic() - self._looked_at < self._interval_s:
            return False
        self._looked_at = time.monotonic()
        if not self._request.exists():
            return False
        logger.info("asked to stop at %.0f %% of the budget", 100 * self.curve.share)
        return True


def _part(share: float) -> int:
    """Return the half look that a share of the budget belongs to, 0 before the first step."""
    return min(_PARTS, math.ceil(share * _PARTS - 1e-9))
