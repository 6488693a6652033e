"""Data parallel training: how the ranks of one model share their gradients and their weights.

With `ddp` each rank has the whole model, and torch averages the gradients during the backward pass.
With `fsdp` each has a part of every tensor, which torch puts together layer by layer.  With local
SGD (Stich, 2019, arXiv 1805.09767) each rank makes `exchange_every` steps by itself; then weights
and the state of the optimizer are averaged, which for schedule-free AdamW averages all three of its
sequences, since they are linear in each other.
"""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from elmanctl.jobs.device import autocast
from elmanctl.jobs.generators import Generators
from elmanctl.jobs.optimizer import AdamWScheduleFree
from elmanctl.jobs.ranks import Ranks
from elmanctl.models.buffers import Buffers
from elmanctl.run.training import FSDP, Training

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Objective(nn.Module):
    """The loss that is reported and the one that is minimised, as one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, scalars in nats, for tokens [B, T+1]."""
        loss: Tensor = self.model.loss(tokens)  # type: ignore[operator]
        return loss, loss.float() + self.model.auxiliary_loss()  # type: ignore[operator]


def place(model: nn.Module, device: torch.device, training: Training, ranks: Ranks) -> nn.Module:
    """Put a model on its device; with `fsdp` each rank keeps its part of every layer."""
    if ranks.count > 1 and training.parallel == FSDP:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        # Left to torch, the weights of a training on the CPU would go to a GPU that is there.
        mesh = init_device_mesh(device.type, (ranks.count,))
        for layer in model.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model.to(device)


class Parallel:
    """The forward pass of a model on every rank, whose gradients are those of the whole batch."""

    def __init__(
        self, model: nn.Module, training: Training, ranks: Ranks, *, precision: str = "fp32"
    ) -> None:
        self.ranks = ranks
        self._model = model
        self._objective: nn.Module = Objective(model)
        self._is_local = training.exchange_every > 1
        self._every = training.exchange_every
        self.has_parts = ranks.count > 1 and training.parallel == FSDP
        if ranks.count > 1 and not self.has_parts and not self._is_local:
            shared = nn.parallel.DistributedDataParallel(
                self._objective,
                find_unused_parameters=self._has_unused(training.seq_len, precision),
            )
            # Layers replace their buffers, which the wrapper would not see, and make equal ones.
            # As an argument it is deprecated since torch 2.13, and has another name from then on.
            shared.broadcast_buffers = False
            self._objective = shared

    def losses(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the objective of this rank's tokens [B, T+1], in nats."""
        found: tuple[Tensor, Tensor] = self._objective(tokens)
        return found

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of a micro-batch: only behind the last one gradients are shared.

        With `fsdp` behind every one: until then a rank would hold the gradients of all weights,
        which is the memory that it is to save.
        """
        if isinstance(self._objective, nn.parallel.DistributedDataParallel) and not is_last:
            return self._objective.no_sync()
        return nullcontext()

    def is_exchange(self, step: int) -> bool:
        """Whether all ranks have the same weights after a step."""
        return not self._is_local or step % self._every == 0

    def exchange(self, optimizer: AdamWScheduleFree) -> None:
        """Give every rank the mean of the weights and of the state of the optimizer."""
        if self._is_local:
            self.average(self._model.parameters())
            for state in optimizer.state.values():
                self.average(state.values())
            for buffer in self._model.buffers():
                dist.broadcast(buffer, 0)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the mean of tensors in which local SGD lets the ranks differ."""
        if self._is_local and self.ranks.count > 1:
            with torch.no_grad():
                for tensor in tensors:
                    self.ranks.mean(tensor)

    def forget(self) -> None:
        """Let go of weights that were put together for a forward pass without a backward pass.

        torch would use them in the next one, though an update or a validation lies between.
        """
        if self.has_parts:
            self._model.reshard()  # type: ignore[operator]

    def _has_unused(self, seq_len: int, precision: str) -> bool:
        """Whether a parameter has no part in the loss, on any rank, tried with one sequence."""
        device, buffers = next(self._model.parameters()).device, Buffers(self._model.modules())
        generators = Generators(device)
        tokens = torch.zeros(1, seq_len + 1, dtype=torch.long, device=device)
        with autocast(device, precision):
            _, objective = self._objective(tokens)
        objective.backward()
        is_unused = any(parameter.grad is None for parameter in self._model.parameters())
        self._model.zero_grad(set_to_none=True)
        generators.restore()
        buffers.restore()
        return self.ranks.any(is_unused)


def is_split(value: Tensor) -> "TypeGuard[DTensor]":
    """Whether this rank has only a part of a tensor.

    The module of such tensors takes half a second and 40 MB, so that only FSDP2 imports it.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def whole(value: Tensor) -> Tensor:
    """Return a tensor put together of the ranks' parts, or itself if it is whole."""
    return value.full_tensor() if is_split(value) else value


def part(value: Tensor) -> Tensor:
    """Return what this rank has of a tensor, which shares its memory."""
    return value.to_local() if is_split(value) else value


def rows_of_part(rows: int, ranks: Ranks) -> range:
    """Return the rows of a tensor that this rank has; all ranks but the last have as many."""
    size = -(-rows // ranks.count)
    return range(min(ranks.rank * size, rows), min((ranks.rank + 1) * size, rows))
