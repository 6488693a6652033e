"""Saved file: a checkpoint or a model as safetensors, whose header says all about it.

The header of a safetensors file is JSON, so what a file holds is read without torch.  Beside the
tensors it has a card: the spec of the training and, of a model, its result.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl.codec import decode, encode, json_field
from elmanctl.errors import InvalidModel, NotFound
from elmanctl.ledger.files import open_regular
from elmanctl.run.paths import AttemptPaths

VERSION = 1

CHECKPOINT, MODEL = KINDS = ("checkpoint", "model")

# Their names within the folder of an attempt.
CHECKPOINT_FILE = AttemptPaths(Path()).checkpoint.name
MODEL_FILE = AttemptPaths(Path()).model.name

# The key of our own metadata in the header, and that of the checksums.
CARD = "elmanctl"
CHECKSUMS = "crc32"

# A header of a model of 10,000 tensors has 1.5 MB.
_LARGEST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a saved file says about itself.

    `kind` is checkpoint, the whole state of a training, or model, its averaged weights alone.
    `spec` is the content of the attempt's spec.json, `result` that of its result.json so far, and
    `state` what a checkpoint holds besides tensors.  `shards` names the further files of a
    checkpoint that several ranks have written.  `saved_at` is the time of writing in UTC, as
    `clock.to_text` has it.
    """

    version: int = VERSION
    kind: str
    spec: dict[str, Any]
    result: dict[str, Any] = json_field(default_factory=dict, omit=True)
    state: dict[str, Any] = json_field(default_factory=dict, omit=True)
    shards: tuple[str, ...] = json_field(default=(), omit=True)
    saved_at: str | None = json_field(default=None, omit=True)

    def encode(self) -> str:
        """Return the card as the text that the header holds."""
        return json.dumps(encode(self), allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedFile:
    """The header of a saved file: its card, and the dtype and shape of each tensor by name.

    `checksums` are the CRC-32 of the tensors' bytes, in the order in which they lie in the file.
    """

    path: Path
    card: Card
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    checksums: tuple[int, ...]
    size_bytes: int

    @property
    def parameters(self) -> int:
        """The number of all elements."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())


def locate_model(path: Path) -> Path:
    """Return the file of a model: `path` itself, or the one in that folder.

    Raises NotFound for a folder without a model; a file that is absent is found out in reading.
    """
    if not path.is_dir():
        return path
    if (path / MODEL_FILE).exists():
        return path / MODEL_FILE
    if (path / CHECKPOINT_FILE).exists():
        hint = f"its {CHECKPOINT_FILE} is of a training that has not ended, or was to be continued"
    else:
        hint = f"a model is kept as {MODEL_FILE} in the folder of its attempt"
    raise NotFound(f"{path} holds no model", hint=hint)


def read_header(path: Path) -> SavedFile:
    """Read what a file says about itself.

    Raises NotFound when there is none, InvalidModel for anything that elmanctl has not saved, for
    another version, and for a file that was cut.
    """
    try:
        with open_regular(path) as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER_BYTES, size_bytes - 8):
                raise InvalidModel(f"{path} is no saved model: it has no header of safetensors")
            raw = file.read(length)
    except FileNotFoundError as exc:
        raise NotFound(f"there is no file {path}") from exc
    except OSError as exc:
        raise InvalidModel(f"cannot read {path}: {exc.strerror}") from exc
    try:
        header = decode(dict[str, dict[str, Any]], json.loads(raw), "header", InvalidModel)
        own = header.pop("__metadata__", {})
        if CARD not in own:
            raise InvalidModel(f"{path} is no model that elmanctl has saved")
        card = _card(json.loads(own[CARD]), path)
        order = sorted(header, key=lambda name: header[name]["data_offsets"][0])
        ends = [header[name]["data_offsets"][1] for name in order]
        tensors = {name: (header[name]["dtype"], tuple(header[name]["shape"])) for name in order}
        digits = own.get(CHECKSUMS, "")
        of_card, *checksums = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as exc:
        raise InvalidModel(f"{path} has a damaged header: {type(exc).__name__}: {exc}") from exc
    if zlib.crc32(own[CARD].encode()) != of_card:
        raise InvalidModel(f"{path} has a damaged header: its checksum does not match")
    expected_bytes = 8 + length + max(ends, default=0)
    if size_bytes != expected_bytes:
        raise InvalidModel(
            f"{path} has {size_bytes} bytes, {expected_bytes} were written",
            hint="it was cut or damaged on the way; copy it again from where it was made",
        )
    return SavedFile(
        path=path,
        card=card,
        tensors=tensors,
        checksums=tuple(checksums),
        size_bytes=size_bytes,
    )


def _card(data: Any, path: Path) -> Card:
    version = data.get("version") if isinstance(data, dict) else None
    if version != VERSION:
        raise InvalidModel(
            f"{path} is of version {version}, this elmanctl reads {VERSION}",
            hint="use the elmanctl that wrote it, or a newer one",
        )
    card = decode(Card, data, "card", InvalidModel)
    if card.kind not in KINDS:
        raise InvalidModel(f"{path} is of the unknown kind `{card.kind[:40]}`")
    return card
