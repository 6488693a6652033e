"""Checkpoints and models as files: what is read back, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from elmanctl.errors import InvalidModel, NotFound
from elmanctl.jobs import tensor_file
from elmanctl.run.saved_file import MODEL, Card, read_header

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "narrow": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "state": torch.tensor([1, 2, 255], dtype=torch.uint8),
    "scalar": torch.tensor(3.25, dtype=torch.float64),
    "none": torch.empty(0, 5),
}
CARD = Card(kind=MODEL, spec={"level": "e88", "note": '"crc32": "'}, result={"loss": 1.25})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    size_bytes = tensor_file.write(path, TENSORS, CARD)
    assert path.stat().st_size == size_bytes
    assert list(tmp_path.iterdir()) == [path]
    return path


def test_what_is_written_is_read_back_to_the_bit(saved: Path) -> None:
    header, tensors = tensor_file.read(saved)
    assert header.card == CARD
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert header.parameters == 12 + 6 + 2 + 3 + 1


def test_the_library_reads_it(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        assert torch.equal(file.get_tensor("turned"), TENSORS["turned"])
        assert json.loads(file.metadata()["elmanctl"])["result"] == {"loss": 1.25}


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.binary(max_size=40), max_size=5))
def test_any_names_and_bytes_come_back(contents: dict[str, bytes]) -> None:
    import tempfile

    contents.pop("__metadata__", None)
    tensors = {name: torch.tensor(list(data), dtype=torch.uint8) for name, data in contents.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        tensor_file.write(path, tensors, CARD)
        header, found = tensor_file.read(path)
    assert {name: bytes(tensor.tolist()) for name, tensor in found.items()} == contents
    assert header.card == CARD


def refused(path: Path, words: str) -> None:
    for read in (read_header, tensor_file.read):
        with pytest.raises(InvalidModel, match=words):
            read(path)


@pytest.mark.parametrize("left", [0, 7, 8, 200, -1])
def test_a_file_that_was_cut_is_refused_by_its_header(saved: Path, left: int) -> None:
    saved.write_bytes(saved.read_bytes()[:left])
    refused(saved, "no header of safetensors" if 0 <= left <= 200 else "bytes were written|were w")


def test_a_file_that_grew_is_refused(saved: Path) -> None:
    with saved.open("ab") as file:
        file.write(b"x")
    refused(saved, "were written")


@pytest.mark.parametrize("place", [-1, -60])
def test_damaged_weights_are_found_by_their_checksum(saved: Path, place: int) -> None:
    data = bytearray(saved.read_bytes())
    data[place] ^= 1
    saved.write_bytes(data)
    read_header(saved)
    with pytest.raises(InvalidModel, match=r"is damaged: the checksum of \w+ does"):
        tensor_file.read(saved)


def test_a_file_of_another_program_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    refused(path, "is no model that elmanctl has saved")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 100, b"\xff" * 100, b"{}" * 50])
def test_what_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, "has no header of safetensors")


def changed(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the header of a file, and leave the rest as it was."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def test_a_card_that_was_changed_is_found_by_its_checksum(saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data.replace(b"1.25", b"1.24"))
    refused(saved, "has a damaged header: its checksum does not match")


def test_another_version_is_named(saved: Path) -> None:
    def newer(header: dict[str, object]) -> None:
        own = header["__metadata__"]
        assert isinstance(own, dict)
        own["elmanctl"] = json.dumps({**json.loads(own["elmanctl"]), "version": 2})

    changed(saved, newer)
    refused(saved, "is of version 2, this elmanctl reads 1")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(weight={"dtype": "F32"}),
        lambda header: header.update(weight=[]),
        lambda header: header["weight"].update(data_offsets=["a", "b"]),
        lambda header: header["__metadata__"].update(crc32="xyz"),
        lambda header: header["__metadata__"].update(elmanctl="{"),
        lambda header: header["__metadata__"].update(elmanctl='{"version": 1, "kind": "model"}'),
        lambda header: header["__metadata__"].update(
            elmanctl='{"version": 1, "kind": "zip", "spec": {}}'
        ),
    ],
)
def test_a_damaged_header_is_one_line(
    saved: Path, change: Callable[[dict[str, object]], object]
) -> None:
    changed(saved, change)
    with pytest.raises(InvalidModel) as raised:
        read_header(saved)
    assert "\n" not in raised.value.message


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        read_header(tmp_path / "model.safetensors")
