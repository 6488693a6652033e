"""Shards of a checkpoint: any number of ranks reads what any number has written."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.errors import InvalidModel, NotFound
from elmanctl.jobs import shards, tensor_file
from elmanctl.jobs.parallel import rows_of_part
from elmanctl.jobs.ranks import Ranks
from elmanctl.run.saved_file import CHECKPOINT, Card, read_header

CARD = Card(kind=CHECKPOINT, spec={}, state={"position": {"steps": 3}})
ALONE = Ranks()


def written_by(count: int, path: Path, weight: torch.Tensor) -> None:
    """Leave the files of so many ranks that share out `weight`, and have a counter each."""
    names = tuple(f"checkpoint-3-{rank}-of-{count}.safetensors" for rank in range(1, count))
    for rank in range(count):
        own = rows_of_part(len(weight), Ranks(rank, count))
        tensors = {"weight": weight[own.start : own.stop]}
        if rank:
            tensor_file.write(path.with_name(names[rank - 1]), tensors, CARD)
        else:
            card = Card(kind=CHECKPOINT, spec={}, state=CARD.state, shards=names)
            tensor_file.write(path, tensors | {"counter": torch.tensor([7])}, card)


@given(rows=st.integers(0, 9), writers=st.integers(1, 5), readers=st.integers(1, 5))
def test_any_number_of_ranks_reads_what_any_number_wrote(
    rows: int, writers: int, readers: int
) -> None:
    weight = torch.arange(rows * 2.0).reshape(rows, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        written_by(writers, path, weight)
        found = [
            shards.read(read_header(path), lambda name: name == "weight", Ranks(rank, readers))
            for rank in range(readers)
        ]
        whole = shards.read(read_header(path), lambda name: False, ALONE)
    assert torch.equal(torch.cat([tensors["weight"] for tensors in found]), weight)
    assert torch.equal(whole["weight"], weight)
    assert all(int(tensors["counter"]) == 7 for tensors in (whole, *found))


@given(rows=st.integers(0, 20), count=st.integers(1, 9))
def test_a_rank_has_the_rows_that_torch_gives_it(rows: int, count: int) -> None:
    chunks = torch.arange(rows).chunk(count)
    for rank in range(count):
        expected = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(rows_of_part(rows, Ranks(rank, count))) == expected


def test_shards_are_removed_once_nothing_names_them(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    written_by(3, path, torch.ones(4, 2))
    assert len(shards.shards_beside(path)) == 2
    shards.write(path, {"weight": torch.zeros(4, 2)}, [], CARD, ALONE)
    assert list(tmp_path.iterdir()) == [path]
    assert read_header(path).card.shards == ()


def test_a_lost_or_damaged_shard_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    written_by(2, path, torch.ones(4, 2))
    (shard,) = shards.shards_beside(path)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"!")
    with pytest.raises(InvalidModel, match=f"{shard.name} is damaged: the checksum of weight"):
        shards.read(read_header(path), lambda name: False, ALONE)
    shard.unlink()
    with pytest.raises(NotFound, match=shard.name):
        shards.read(read_header(path), lambda name: False, ALONE)
