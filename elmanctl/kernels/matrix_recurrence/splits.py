"""How the matrix recurrence is split over programs, by the table `launches.json`; no torch.

Nothing is tuned when a kernel is first called.  `elmanctl bench tune` measures the possible splits
on a GPU and writes such a table; the file that ELMAN_LAUNCHES names stands in for the one here.
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
"""Keys of a tile where the table says nothing: four float32 are what one instruction loads."""

BACKWARD_TILE_KEYS = 32
"""The most keys of a tile in the backward kernel, where sums over a lane's values are exchanged.

With a key to each lane a sum takes one exchange a key, and five where a tile has but a few keys.
"""

_BACKWARD_WIDE_KEYS = 32
"""States of more keys leave a lane of the backward kernel no registers for a value to each lane."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What one program has: `heads` of a sequence, `values` of each, in tiles of `keys`.

    `registers` is the most that a lane may take, where fewer than it would leave room for more
    programs on a multiprocessor.
    """

    heads: int
    values: int
    keys: int
    registers: int | None = None

    def grid(self, batch: int, n_heads: int, n_value: int) -> tuple[int, int]:
        """Return how many programs there are: of groups of heads, and of parts of their values."""
        return batch * -(-n_heads // self.heads), self.parts(n_value)

    def parts(self, n_value: int) -> int:
        """Return into how many parts the values of a head are split."""
        return -(-n_value // self.values)


_tried: dict[tuple[str, str], Split] = {}


@contextmanager
def trying(direction: Direction, n_key: int, n_value: int, split: Split) -> Iterator[None]:
    """Let the kernel of one direction and size be split like this for a while."""
    place = (direction, _size(n_key, n_value))
    _tried[place] = split
    try:
        yield
    finally:
        del _tried[place]


def told_split(direction: Direction, n_key: int, n_value: int) -> Split:
    """Return what the table says for a size, or what follows from it where it says nothing.

    Raises ConfigError for a table that cannot be read.
    """
    size = _size(n_key, n_value)
    if (direction, size) in _tried:
        return _tried[direction, size]
    told = load_table(os.environ.get(LAUNCHES_VARIABLE)).get(direction, {}).get(size, {})
    return replace(_usual_split(direction, n_key, n_value), **told)


def _usual_split(direction: Direction, n_key: int, n_value: int) -> Split:
    is_narrow = direction == "backward" and n_key > _BACKWARD_WIDE_KEYS
    values = min(16 if is_narrow or n_value % 32 else 32, n_value)
    return Split(
        # A lane for each value, and what is left of a warp for more heads.
        heads=1 if is_narrow else 32 // values,
        values=values,
        keys=TILE_KEYS if direction == "forward" else gcd(n_key, BACKWARD_TILE_KEYS),
    )


@cache
def load_table(path: str | None) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Return a table: by direction, by size such as `32x32`, the fields of a Split.

    Raises ConfigError for a file that is none.
    """
    file = TABLE if path is None else Path(path)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        fields = set(Split.__dataclass_fields__)
        is_one = table.keys() <= {"forward", "backward"} and all(
            told.keys() <= fields and all(isinstance(number, int) for number in told.values())
            for sizes in table.values()
            for told in sizes.values()
        )
    except (OSError, ValueError, AttributeError) as exc:
        raise ConfigError(f"no table of launches can be read from {file}: {exc}") from exc
    if not is_one:
        raise ConfigError(
            f"{file} is no table of launches",
            hint=f"`elmanctl bench tune --out {file.name}` writes one",
        )
    return table  # type: ignore[no-any-return]


def _size(n_key: int, n_value: int) -> str:
    return f"{n_key}x{n_value}"
