"""Micro-batch of a training: the sequences of a step that are in memory at once.

It is halved when the memory of the device runs out, and the step is done again, so that the tokens
of a step stay the same.  With a micro-batch of one sequence the activations of the layers are
recomputed in the backward pass, if that is left to the need.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from elmanctl.jobs.failure import classify_exception
from elmanctl.ledger.records import Cause, VerdictKind
from elmanctl.run.training import Training
from elmanctl.verdicts.causes import find_cause
from elmanctl.verdicts.policy import halved

logger = logging.getLogger(__name__)

# Of a message, so much goes into the result; torch's own names every process on the GPU.
_TEXT_LIMIT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """One time that memory ran out, and the micro-batch before and after.

    With `begins_recomputing` the micro-batch stayed the same, and activations are recomputed.
    """

    step: int
    before: int
    after: int
    in_validation: bool
    begins_recomputing: bool
    text: str

    def encode(self) -> dict[str, Any]:
        """Return the shortage as plain data, for the result."""
        table: dict[str, Any] = {"step": self.step, "from": self.before, "to": self.after}
        if self.in_validation:
            table["in"] = "validation"
        if self.begins_recomputing:
            table["activation_checkpointing"] = True
        return table | {"text": self.text}


class MicroBatch:
    """The micro-batch of an attempt, which shrinks by need.

    `rows` sequences are in memory at once in training, on each rank, and `validation_rows` in
    validation, which are never more.  `is_recomputing`: the backward pass recomputes activations.
    """

    def __init__(self, training: Training, *, remembered: int | None = None) -> None:
        self._batch = training.batch // training.ranks
        self._setting = training.activation_checkpointing
        sizes = (self._batch, training.micro_batch or self._batch, remembered)
        self.rows = min(size for size in sizes if size is not None)
        self.is_recomputing = self._setting == "on"
        self._validation_rows = self.rows
        self._shortages: list[Shortage] = []

    @property
    def validation_rows(self) -> int:
        """The windows that are in memory at once in a validation."""
        return min(self.rows, self._validation_rows)

    def shrink(self, exc: Exception, device: torch.device, step: int) -> bool:
        """Shrink after an error in the gradients of a step; return whether to do it again."""
        text = shortage_text(exc, device)
        return text is not None and self._shrink(step, text)

    def follow(self, step: int) -> None:
        """Shrink as another rank did, whose memory ran out."""
        self._shrink(step, "memory ran out on another rank")

    def _shrink(self, step: int, text: str) -> bool:
        half = halved(self._batch, self.rows)
        begins = half == self.rows and self._setting == "auto" and not self.is_recomputing
        if half == self.rows and not begins:
            return False
        self._note(step, self.rows, half, text, begins_recomputing=begins)
        self.rows, self.is_recomputing = half, self.is_recomputing or begins
        return True

    def shrink_validation(self, exc: Exception, device: torch.device, step: int) -> bool:
        """Shrink after an error in a validation; return whether to do its part again."""
        text, rows = shortage_text(exc, device), self.validation_rows
        if text is None or rows == 1:
            return False
        self._validation_rows = rows // 2
        self._note(step, rows, self._validation_rows, text, in_validation=True)
        return True

    def record(self) -> Mapping[str, Any]:
        """Return the entries of the result about memory."""
        by_need = any(each.begins_recomputing for each in self._shortages)
        checkpointing = {"activation_checkpointing": "by need" if by_need else "on"}
        halvings = [each.encode() for each in self._shortages]
        return {
            "micro_batch": self.rows,
            **(checkpointing if self.is_recomputing else {}),
            **({"halvings": halvings} if halvings else {}),
        }

    def _note(
        self,
        step: int,
        before: int,
        after: int,
        text: str,
        *,
        in_validation: bool = False,
        begins_recomputing: bool = False,
    ) -> None:
        if begins_recomputing:
            change = "activations are recomputed from now on"
        else:
            change = f"micro-batch {before} becomes {after}"
        where = "validation after step" if in_validation else "step"
        logger.warning("memory ran out in %s %d, %s: %s", where, step, change, text)
        self._shortages.append(
            Shortage(
                step=step,
                before=before,
                after=after,
                in_validation=in_validation,
                begins_recomputing=begins_recomputing,
                text=text,
            )
        )


def shortage_text(exc: Exception, device: torch.device) -> str | None:
    """Return the message of a lack of memory that a smaller micro-batch may remedy, else None.

    Memory that another process on the GPU holds is not ours to save, nor is that of a GPU's host.
    """
    kind, text = classify_exception(exc)
    if kind is not VerdictKind.OOM:
        return None
    cause = find_cause(kind, (text,))
    if cause is Cause.NEIGHBOUR or (cause is Cause.HOST and device.type == "cuda"):
        return None
    return text[:_TEXT_LIMIT]
