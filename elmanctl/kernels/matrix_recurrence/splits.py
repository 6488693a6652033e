"""Splits of the matrix recurrence into programs, from the table `launches.json`; imports no torch.

There is no autotuning at run time.  `elmanctl bench tune` measures the possible splits on a GPU and
writes such a table; the environment variable ELMAN_LAUNCHES overrides the path of the default one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import gcd
from pathlib import Path
from typing import Literal

from elmanctl.constants import LAUNCHES_VARIABLE
from elmanctl.errors import ConfigError

Direction = Literal["forward", "backward"]

TABLE = Path(__file__).with_name("launches.json")

TILE_KEYS = 4
"""Default keys per tile of the forward kernel: one instruction loads four float32."""

BACKWARD_TILE_KEYS = 32
"""Maximum keys per tile of the backward kernel, which reduces over values across lanes.

With one key per lane a reduction takes one shuffle per key; with few keys per tile it takes five.
"""

_BACKWARD_WIDE_KEYS = 32
"""With more keys the registers of a lane do not suffice for one value per lane going backward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Work of one program: `heads` of a sequence, `values` of each, in tiles of `keys`.

    `registers` caps the registers of a lane, for higher occupancy; None leaves them to ptxas.
    """

    heads: int
    values: int
    keys: int
    registers: int | None = None

    def grid(self, batch: int, n_heads: int, n_value: int) -> tuple[int, int]:
        """Return the launch grid: programs over groups of heads, and over parts of their values."""
        return batch * -(-n_heads // self.heads), self.parts(n_value)

    def parts(self, n_value: int) -> int:
        """Return the number of parts into which the values of a head are split."""
        return -(-n_value // self.values)


_overrides: dict[tuple[str, str], Split] = {}


@contextmanager
def override_split(direction: Direction, n_key: int, n_value: int, split: Split) -> Iterator[None]:
    """Use `split` for one direction and size within the context."""
    key = (direction, _size(n_key, n_value))
    _overrides[key] = split
    try:
        yield
    finally:
        del _overrides[key]


def split_for(direction: Direction, n_key: int, n_value: int) -> Split:
    """Return the split for a size: the default, with the fields that the table overrides.

    Raises ConfigError for a table that cannot be read.
    """
    size = _size(n_key, n_value)
    if (direction, size) in _overrides:
        return _overrides[direction, size]
    fields = load_table(os.environ.get(LAUNCHES_VARIABLE)).get(direction, {}).get(size, {})
    return replace(_default_split(direction, n_key, n_value), **fields)


def _default_split(direction: Direction, n_key: int, n_value: int) -> Split:
    is_narrow = direction == "backward" and n_key > _BACKWARD_WIDE_KEYS
    values = min(16 if is_narrow or n_value % 32 else 32, n_value)
    return Split(
        # One lane per value; more heads fill the rest of the warp.
        heads=1 if is_narrow else 32 // values,
        values=values,
        keys=TILE_KEYS if direction == "forward" else gcd(n_key, BACKWARD_TILE_KEYS),
    )


@cache
def load_table(path: str | None) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Return the fields of a Split by direction and by size such as `32x32`.

    `path` defaults to the built-in table.  Raises ConfigError for an unreadable or invalid file.
    """
    file = TABLE if path is None else Path(path)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        names = set(Split.__dataclass_fields__)
        is_valid = table.keys() <= {"forward", "backward"} and all(
            fields.keys() <= names and all(isinstance(value, int) for value in fields.values())
            for sizes in table.values()
            for fields in sizes.values()
        )
    except (OSError, ValueError, AttributeError) as exc:
        raise ConfigError(f"cannot read a launch table from {file}: {exc}") from exc
    if not is_valid:
        raise ConfigError(
            f"{file} is not a launch table",
            hint=f"`elmanctl bench tune --out {file.name}` writes one",
        )
    return table  # type: ignore[no-any-return]


def _size(n_key: int, n_value: int) -> str:
    return f"{n_key}x{n_value}"
