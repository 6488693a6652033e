"""Measurement of planned rows one after another, on a device that an error may lose."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

from elmanctl.errors import InvalidConfiguration

logger = logging.getLogger(__name__)


class Planned(Protocol):
    """A row to measure."""

    @property
    def label(self) -> str:
        """Words that `--only` matches."""
        ...

    def unavailable_reason(self, device: torch.device) -> str | None:
        """Return why this row cannot be measured on the device, or None."""
        ...

    def empty(self, status: str, reason: str) -> Any:
        """Return the row without numbers."""
        ...


_Planned = TypeVar("_Planned", bound=Planned)
_Row = TypeVar("_Row")


def select(rows: Sequence[_Planned], only: Sequence[str]) -> list[_Planned]:
    """Return the rows whose label contains one of the texts in `only`, or all without any."""
    return [row for row in rows if not only or any(text in row.label for text in only)]


def measured_rows(
    planned: Sequence[_Planned],
    measure: Callable[[_Planned], _Row],
    device: torch.device,
    is_over: Callable[[], bool],
) -> Iterator[_Row]:
    """Measure the planned rows one after another; yield a row for each.

    The remaining rows are `not measured` once `is_over` returns true (the time is used up) or the
    device is lost.
    """
    lost: str | None = None
    for row in planned:
        if lost or is_over():
            yield row.empty("not measured", lost or "the time limit was reached")
            continue
        unavailable = row.unavailable_reason(device)
        if unavailable:
            yield row.empty("missing", unavailable)
            continue
        try:
            yield measure(row)
        except InvalidConfiguration as exc:
            # Not every implementation supports every size, nor every backend every model.
            yield row.empty("missing", f"refused: {exc.message}")
        except Exception as exc:
            logger.debug("%s failed", row.label, exc_info=True)
            yield row.empty("failed", f"{type(exc).__name__}: {exc}")
            lost = loss_of(device, row.label)
        finally:
            if not lost:
                release(device)


def loss_of(device: torch.device, culprit: str) -> str | None:
    """Return why the device is unusable, or None if it still computes.

    Some CUDA errors are sticky: every later call in the process fails as well.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).item()
    except RuntimeError as exc:
        return f"the device was lost to {culprit}: {exc}"
    return None


def release(device: torch.device) -> None:
    """Release unused memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
