"""Shards of a checkpoint: the files in which every rank but the first writes its rows of tensors.

The file of the first rank, which is the checkpoint, names them and has everything else.
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from elmanctl.jobs import tensor_file
from elmanctl.jobs.parallel import rows_of_part
from elmanctl.jobs.ranks import Ranks
from elmanctl.run.saved_file import Card, SavedFile, read_header


def write(
    path: Path, tensors: Mapping[str, Tensor], parts: list[str], card: Card, ranks: Ranks
) -> int:
    """Write a state of all ranks and return the size in bytes of what this one wrote.

    `parts` are the names of the tensors of which each rank has some rows.  The shards have the
    step in their names, and the file of the first rank is written last, so that a kill at any time
    leaves the old state or the new one.  Raises OSError and RuntimeError, on every rank if on one.
    """
    step, count = card.state["position"]["steps"], ranks.count if parts else 1
    shards = tuple(f"{path.stem}-{step}-{rank}-of-{count}{path.suffix}" for rank in range(1, count))
    size_bytes = 0
    if shards:
        with _failing_together(ranks):
            if not ranks.is_first:
                own = {name: tensors[name] for name in parts}
                shard = path.with_name(shards[ranks.rank - 1])
                size_bytes = tensor_file.write(shard, own, replace(card, state={}))
    with _failing_together(ranks):
        if ranks.is_first:
            size_bytes = tensor_file.write(path, tensors, replace(card, shards=shards))
            for old in shards_beside(path):
                if old.name not in shards:
                    old.unlink(missing_ok=True)
    return size_bytes


def shards_beside(path: Path) -> list[Path]:
    """Return the shards beside a checkpoint, those of any step."""
    return sorted(path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"))


def read(saved: SavedFile, is_shared_out: Callable[[str], bool], ranks: Ranks) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, of those that are shared out this rank's rows alone.

    Any number of ranks may have written it.  No more is in memory at once than what is returned
    and one tensor of a file.  Raises NotFound and InvalidModel as `tensor_file.read`.
    """
    beside = [saved.path.with_name(Path(name).name) for name in saved.card.shards]
    files = [saved, *map(read_header, beside)]
    shared = {name for name in saved.tensors if is_shared_out(name)}
    total = {
        name: sum(file.tensors[name][1][0] for file in files if name in file.tensors)
        for name in shared
    }
    pieces: dict[str, list[Tensor]] = {}
    first = dict.fromkeys(shared, 0)
    for file in files:
        for name, tensor in tensor_file.each(file):
            piece = tensor
            if name in shared:
                own, begin = rows_of_part(total[name], ranks), first[name]
                # A copy, so that the rest is freed.
                piece = tensor[max(own.start - begin, 0) : max(own.stop - begin, 0)].clone()
                first[name] += len(tensor)
            pieces.setdefault(name, []).append(piece)
    return {
        name: found[0] if len(found) == 1 else torch.cat(found) for name, found in pieces.items()
    }


@contextmanager
def _failing_together(ranks: Ranks) -> Iterator[None]:
    """Raise an error of the disk or of a GPU on every rank, though only one had it."""
    error = None
    try:
        yield
    except (OSError, RuntimeError) as exc:
        error = exc
    if ranks.any(error is not None):
        raise error or OSError(errno.EIO, "another rank could not write its part")
