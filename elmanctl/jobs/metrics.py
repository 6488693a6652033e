"""Metrics of an attempt: one JSON line per training step."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One training step: mean loss in nats, gradient norm before clipping, totals so far.

    `update_norm` is that of the change that the step before made to the weights, which is known by
    now without waiting for the device; None at the first step.
    """

    step: int
    loss: float
    grad_norm: float
    tokens: int
    elapsed_s: float
    update_norm: float | None = None

    @property
    def finite_loss(self) -> float | None:
        """The loss, or None when it is not finite."""
        return _finite(self.loss)

    def line(self) -> str:
        """Return the step as one line of JSON; a number that is not finite is null."""
        record = {
            "step": self.step,
            "loss": self.finite_loss,
            "grad_norm": _finite(self.grad_norm),
            "tokens": self.tokens,
            "elapsed_s": round(self.elapsed_s, 3),
            "update_norm": None if self.update_norm is None else _finite(self.update_norm),
        }
        return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


class MetricsLog:
    """Appends steps to metrics.jsonl, each with one write.

    Nothing is buffered in the process, so a killed worker leaves every step that it finished.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)

    def append(self, record: StepRecord) -> None:
        """Write one step; raises OSError, for example on a full disk."""
        rest = record.line().encode("ascii")
        while rest:
            # After a short write on a full disk the next one raises.
            rest = rest[os.write(self._descriptor, rest) :]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
