"""Training step: gradients of one batch in micro-batches, clipping, and the update."""

import time
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from elmanctl.jobs.device import autocast, free_cache
from elmanctl.jobs.generators import Generators
from elmanctl.jobs.micro_batch import MicroBatch
from elmanctl.jobs.optimizer import AdamWScheduleFree
from elmanctl.jobs.parallel import Parallel, whole
from elmanctl.jobs.ranks import Ranks
from elmanctl.models.buffers import Buffers, holders
from elmanctl.models.lm import LanguageModel
from elmanctl.run.training import Training

# The optimizer has its state from the second step on.
_PROBED_STEPS = 2


class Stepper:
    """Makes the steps of a model, whose weights stay float32 in any precision.

    Where memory runs out in the gradients of a step, they are computed again with less of it.
    Several ranks wait for each other in a step, so that they agree beforehand, in a probe of the
    first two.  `lost_s` are the seconds that probes and attempts in vain have taken.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: AdamWScheduleFree,
        *,
        device: torch.device,
        precision: str,
        micro_batch: MicroBatch,
        grad_clip: float,
        parallel: Parallel | None = None,
    ) -> None:
        self._model = model
        self._parallel = parallel or Parallel(model, Training(), Ranks())
        self._parameters = list(model.parameters())
        self._holders = holders(model)
        self._optimizer = optimizer
        self._device = device
        self._precision = precision
        self._micro_batch = micro_batch
        self._grad_clip = grad_clip
        self._update_norm: Tensor | None = None
        self.lost_s = 0.0
        # With `fsdp` the ranks wait for each other in every layer.
        is_probed = self._parallel.ranks.count > 1 and not self._parallel.has_parts
        self._probes = _PROBED_STEPS if is_probed else 0
        self._set_recomputing()

    def gradients(
        self, rows: npt.NDArray[np.uint8], step: int
    ) -> tuple[float, float, float | None]:
        """Compute the gradients of a step, of which rows [B, T+1] are this rank's, and clip them.

        Returns the mean loss in nats, the norm before clipping, and the norm of the last update.
        """
        generators, buffers = Generators(self._device), Buffers(self._holders)
        if self._probes:
            self._probes -= 1
            self._probe(rows, step, generators, buffers)
        while True:
            began = time.monotonic()
            try:
                return self._gradients(rows)
            except Exception as exc:
                # The other ranks wait for this one's gradients, and cannot be notified.
                is_alone = self._parallel.ranks.count == 1
                if not is_alone or not self._micro_batch.shrink(exc, self._device, step):
                    raise
            # What the failed step holds is freed only where its exception is gone.
            self._start_again(generators, buffers)
            self.lost_s += time.monotonic() - began

    def _probe(
        self,
        rows: npt.NDArray[np.uint8],
        step: int,
        generators: Generators,
        buffers: Buffers,
    ) -> None:
        """Shrink the micro-batch of every rank until two of them fit on each.

        The second meets the gradients of the first.  Nothing is exchanged here but whether memory
        ran out.
        """
        began, ran_out = time.monotonic(), True
        while ran_out:
            is_short = False
            try:
                self._backward(rows, only=2)
            except Exception as exc:
                if not self._micro_batch.shrink(exc, self._device, step):
                    raise
                is_short = True
            ran_out = self._parallel.ranks.any(is_short)
            if ran_out and not is_short:
                self._micro_batch.follow(step)
            self._start_again(generators, buffers)
        self.lost_s += time.monotonic() - began

    def _backward(self, rows: npt.NDArray[np.uint8], *, only: int | None = None) -> Tensor:
        """Add up the gradients of rows [B, T+1] and return their mean loss.

        With `only` they are those of so many micro-batches, which no other rank gets.
        """
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        batch = torch.from_numpy(rows).to(self._device).long()
        parts = batch.split(self._micro_batch.rows)
        for number, part in enumerate(parts[:only], start=1):
            is_last = only is None and number == len(parts)
            with self._parallel.accumulating(is_last=is_last):
                with self.autocast():
                    loss, objective = self._parallel.losses(part)
                share = len(part) / len(batch)
                (objective * share).backward()
            total += loss.detach() * share
        return total

    def _gradients(self, rows: npt.NDArray[np.uint8]) -> tuple[float, float, float | None]:
        total = self._backward(rows)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = whole(get_total_norm(gradients))
        if self._grad_clip:
            clip_grads_with_norm_(self._parameters, self._grad_clip, norm)
        # The only synchronisation of a step: the numbers are copied to the host together.
        update_norm = self._update_norm
        known = [] if update_norm is None else [update_norm.to(total)]
        numbers = torch.stack([total, norm.to(total), *known])
        values = self._parallel.ranks.mean(numbers).tolist()
        return values[0], values[1], values[2] if known else None

    def update(self) -> None:
        """Update the weights; the norm of the change stays on the device until the next step."""
        before = [parameter.detach().clone() for parameter in self._parameters]
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_sub_(before, [parameter.detach() for parameter in self._parameters])
            self._update_norm = whole(get_total_norm(before))

    def skip_update(self) -> None:
        """Leave the weights as they are, a change of norm 0."""
        self._update_norm = torch.zeros((), device=self._device)

    @property
    def update_norm(self) -> float | None:
        """The norm of the last update, None before the first."""
        return None if self._update_norm is None else float(self._update_norm)

    def restore(self, update_norm: float | None) -> None:
        """Take up the norm of the last update of an earlier worker."""
        if update_norm is not None:
            self._update_norm = torch.tensor(update_norm, device=self._device)

    def _start_again(self, generators: Generators, buffers: Buffers) -> None:
        """Free the memory of gradients, and go back to the state before them."""
        self._optimizer.zero_grad(set_to_none=True)
        for module in self._model.modules():
            if isinstance(module, LanguageModel):
                module.drop_auxiliary_loss()
        free_cache(self._device)
        if self._device.type == "cuda":
            # The peak that is reported is not that of what did not fit.
            torch.cuda.reset_peak_memory_stats(self._device)
        self._set_recomputing()
        generators.restore()
        buffers.restore()

    def _set_recomputing(self) -> None:
        for module in self._model.modules():
            if isinstance(module, LanguageModel):
                module.is_recomputing = self._micro_batch.is_recomputing

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return autocast(self._device, self._precision)
