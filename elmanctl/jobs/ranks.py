"""Ranks: the processes that train one model together, and their collective operations."""

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

# Kernels may compile for minutes on one rank while the others wait.
_TIMEOUT = timedelta(minutes=30)


class Ranks:
    """One process among those that train a model; by itself it is the only one.

    `rank` counts from 0 to `count` - 1 over all nodes, `local_rank` on this node, which is the
    number of its GPU.  Numbers of the training travel between the devices, decisions between the
    CPUs.  Every rank makes the same calls in the same order.
    """

    def __init__(self, rank: int = 0, count: int = 1, local_rank: int = 0) -> None:
        self.rank = rank
        self.count = count
        self.local_rank = local_rank

    @classmethod
    def join(
        cls,
        store: dist.Store,  # type: ignore[name-defined]
        *,
        rank: int,
        count: int,
        local_rank: int,
        device: str,
    ) -> "Ranks":
        """Meet the other ranks at a store that all of them reach; `device` is cpu or cuda.

        Raises torch's DistError when they do not come.
        """
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=_TIMEOUT,
            device_id=torch.device("cuda", local_rank) if device == "cuda" else None,
        )
        return cls(rank, count, local_rank)

    @property
    def gpu(self) -> int | None:
        """The number of this rank's GPU, None for the only rank, which takes the current one."""
        return self.local_rank if self.count > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def decide(self, flag: bool) -> bool:
        """Return the decision of rank 0, whatever the others say."""
        if self.count == 1:
            return flag
        chosen = torch.tensor([int(flag)])
        dist.broadcast(chosen, 0)
        return bool(chosen)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self.most(int(flag)) > 0

    def most(self, number: int) -> int:
        """Return the largest number of any rank."""
        if self.count == 1:
            return number
        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def least(self, number: int) -> int:
        """Return the smallest number of any rank."""
        return -self.most(-number)

    def gathered(self, own: Tensor) -> list[Tensor]:
        """Return the tensor of every rank, all of one shape and dtype, on the CPU."""
        if self.count == 1:
            return [own]
        all_of_them = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(all_of_them, own)
        return all_of_them

    def interleaved(self, numbers: Sequence[float], total: int) -> list[float]:
        """Return the numbers of all ranks, of which each has every `count`-th, in order."""
        if self.count == 1:
            return list(numbers)
        # Sums with zeros are exact.
        all_of_them = torch.zeros(total, dtype=torch.float64)
        all_of_them[self.rank :: self.count] = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(all_of_them)
        return all_of_them.tolist()

    def leave(self) -> None:
        """Destroy the process group."""
        if self.count > 1:
            dist.destroy_process_group()
