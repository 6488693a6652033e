"""Learning curves: held-out losses against tokens, time and FLOPs, compared at equal budgets."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Measure = Literal["tokens", "time", "flops"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
UNITS: Mapping[Measure, str] = {"tokens": "tokens", "time": "s", "flops": "flops"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Held-out losses in nats per byte at budgets that increase, or why there are none.

    The budgets are tokens, seconds after the warm-up, or FLOPs.
    """

    budgets: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    missing: str | None = None

    def at(self, budget: float) -> float:
        """Return the loss at a budget from the first to the last one.

        Between two measurements it is linear in the logarithm of the budget.
        """
        index = max(1, bisect_left(self.budgets, budget))
        if len(self.budgets) == 1:
            return self.losses[0]
        (low, high), (before, after) = (
            self.budgets[index - 1 : index + 1],
            self.losses[index - 1 : index + 1],
        )
        share = math.log(budget / low) / math.log(high / low)
        return (1 - share) * before + share * after


def curve_of(
    result: Mapping[str, Any], measure: Measure, flops_per_token: int | None, warmup_steps: int
) -> Curve:
    """Return the curve of a result by one measure of its budget."""
    validations = result.get("validations") or ()
    if not validations:
        return Curve(missing="nothing was validated")
    if measure == "flops" and not flops_per_token:
        return Curve(missing="FLOPs are not counted")
    warmup_s = _warmup_s(result, warmup_steps)
    if measure == "time" and warmup_s is None:
        return Curve(missing="the training ended within its warm-up")
    points = {}
    for each in validations:
        budgets = {
            "tokens": float(each["tokens"]),
            "time": each["elapsed_s"] - (warmup_s or 0.0),
            "flops": float(each["tokens"] * (flops_per_token or 0)),
        }
        if budgets[measure] > 0:
            points[budgets[measure]] = float(each["val_loss"])
    if not points:
        return Curve(missing="nothing was validated after the warm-up")
    budgets_in_order = tuple(sorted(points))
    return Curve(budgets=budgets_in_order, losses=tuple(points[b] for b in budgets_in_order))


def common_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Return the budgets from which and to which all curves have measurements, None without any."""
    low = max(curve.budgets[0] for curve in curves)
    high = min(curve.budgets[-1] for curve in curves)
    return (low, high) if low <= high else None


def _warmup_s(result: Mapping[str, Any], warmup_steps: int) -> float | None:
    """Return how long the warm-up took, None where nothing followed it.

    The speed of a result is that of the rest.
    """
    tokens_per_s = result.get("tokens_per_s")
    if tokens_per_s is None:
        return None
    warm_tokens = warmup_steps * result["tokens_per_step"]
    counted_s = float((result["tokens"] - warm_tokens) / tokens_per_s)
    return max(0.0, float(result["elapsed_s"]) - counted_s)
