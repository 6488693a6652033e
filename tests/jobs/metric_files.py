"""Readers of the files that TensorBoard and W&B read."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WANDB_BLOCK = 32768
_WANDB_HEADER = 7


def events(path: Path) -> list[Any]:
    """Return the events of a TensorBoard file, with their checksums checked.

    Each record is its length (uint64), the masked CRC-32C of that, the bytes, and theirs.
    """
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data: bytes) -> int:
        checksum = crc32c(data)
        return int((((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    data, found, position = path.read_bytes(), [], 0
    while position < len(data):
        head = data[position : position + 8]
        (length,) = struct.unpack("<Q", head)
        record = data[position + 12 : position + 12 + length]
        checksums = struct.unpack_from("<I", data, position + 8) + struct.unpack_from(
            "<I", data, position + 12 + length
        )
        assert checksums == (masked(head), masked(record))
        found.append(Event.FromString(record))
        position += 16 + length
    return found


def scalars(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and numbers of each event of a TensorBoard file that has some."""
    return [
        (event.step, {value.tag: value.simple_value for value in event.summary.value})
        for event in events(path)
        if event.WhichOneof("what") == "summary"
    ]


def wandb_records(path: Path) -> Iterator[Any]:
    """Yield the records of a W&B run's file, which has the layout of a log of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = _WANDB_HEADER, b""
    while position + 7 <= len(data):
        left = _WANDB_BLOCK - position % _WANDB_BLOCK
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7
        parts += data[position : position + length]
        position += length
        # The whole of a record, or its last part.
        if kind in (1, 4):
            yield Record.FromString(parts)
            parts = b""
