"""Tensor file: named tensors and a card as safetensors, written without a second copy of them.

The writer of the library wants every tensor in the memory of the host at once and knows no
checksums; this one copies a GPU's tensors to the host one by one.  The library reads the result.
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from elmanctl.errors import InvalidModel
from elmanctl.ledger.files import sync_folder
from elmanctl.run.saved_file import CARD, CHECKSUMS, Card, SavedFile, read_header

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

# No text within the header holds it: quotes are escaped there.
_BEFORE_CHECKSUMS = f'"{CHECKSUMS}": "'.encode()


def write(path: Path, tensors: Mapping[str, Tensor], card: Card) -> int:
    """Write a file atomically and return its size in bytes.

    Raises OSError, with ENOSPC before a byte is written if there is no room; a partial file is
    removed.
    """
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    header = _header(tensors, sizes, card)
    _check_room(len(header) + sum(sizes.values()), path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            checksums = ""
            for tensor in tensors.values():
                data = _bytes_of(tensor)
                file.write(data)
                checksums += f"{zlib.crc32(data):08x}"
            # The header stands first, and has room for what is known only now.
            file.seek(header.index(_BEFORE_CHECKSUMS) + len(_BEFORE_CHECKSUMS) + 8)
            file.write(checksums.encode())
            file.flush()
            os.fsync(file.fileno())
            size_bytes = file.seek(0, os.SEEK_END)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return size_bytes


def read(path: Path, *, device: str = "cpu") -> tuple[SavedFile, dict[str, Tensor]]:
    """Return the header and the tensors of a file.

    Raises NotFound, and InvalidModel for what `read_header` refuses and for damaged tensors.
    """
    saved = read_header(path)
    return saved, {name: tensor.to(device) for name, tensor in each(saved)}


def each(saved: SavedFile) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file by name, one in memory at a time; raises as `read`."""
    try:
        with safe_open(saved.path, framework="pt") as file:
            for name, checksum in zip(saved.tensors, saved.checksums, strict=True):
                tensor = file.get_tensor(name)
                if zlib.crc32(_bytes_of(tensor)) != checksum:
                    raise InvalidModel(
                        f"{saved.path} is damaged: the checksum of {name} does not match",
                        hint="copy it again from where it was made",
                    )
                yield name, tensor
    except (SafetensorError, OSError) as exc:
        raise InvalidModel(f"{saved.path} cannot be read: {exc}") from exc


def _header(tensors: Mapping[str, Tensor], sizes: Mapping[str, int], card: Card) -> bytes:
    text = card.encode()
    entries: dict[str, object] = {
        "__metadata__": {
            "format": "pt",
            CARD: text,
            # That of the card first, and room for those of the tensors.
            CHECKSUMS: f"{zlib.crc32(text.encode()):08x}" + "0" * 8 * len(tensors),
        }
    }
    begin = 0
    for name, tensor in tensors.items():
        end = begin + sizes[name]
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    header = json.dumps(entries).encode()
    # Spaces at the end align the tensors.
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, those of one in the host's memory without a copy."""
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _check_room(needed_bytes: int, folder: Path) -> None:
    """Raise OSError if there is no room: a disk that is full for a moment fails other jobs."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        needed, free = f"{needed_bytes / 1e9:.3g} GB", f"{free_bytes / 1e9:.3g} GB"
        raise OSError(errno.ENOSPC, f"{needed} are needed and {free} are free")
