"""Process group of the ranks of an attempt, which meet at a store of rank 0.

The store is torch's own; the roll call has brought the ranks together before.
"""

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from elmanctl.jobs.device import choose_device
from elmanctl.jobs.place import Place
from elmanctl.jobs.ranks import Ranks
from elmanctl.run.training import Training


def open_store(count: int) -> TCPStore:
    """Open the store of so many ranks on a free port of this node."""
    return TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)


def reach_store(host: str, port: int, count: int) -> TCPStore:
    """Return the store of rank 0; raises torch's DistError if it cannot be reached."""
    return TCPStore(host, port, count, is_master=False)


def join(store: TCPStore, place: Place, training: Training) -> Ranks:
    """Return the ranks of the training once all have come; raises torch's DistError."""
    # Where each task is given a GPU of its own, it sees no other, and that is its first.
    local_rank = place.local_rank if torch.cuda.device_count() > 1 else 0
    return Ranks.join(
        store,
        rank=place.rank,
        count=place.count,
        local_rank=local_rank,
        device=choose_device(training.device).type,
    )
