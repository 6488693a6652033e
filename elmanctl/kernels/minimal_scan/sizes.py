"""Tiling and memory traffic of the fused scan of MinGRU and MinLSTM; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

SCORES: Mapping[str, int] = {"mingru": 2, "minlstm": 3}
"""Scores per channel and position, by cell."""

CHECKPOINT_EVERY = 16
"""Positions between the states that backend `triton` saves for the backward pass."""

LARGEST_STRIDE = 2**22
"""Exclusive limit of the time stride, in elements: offsets within a tile fit in 32 bits."""

ENOUGH_WARPS = 1500
"""Warps that saturate a GPU: a dozen on each of the 132 SMs of an H100.

At 3 TB/s and 600 ns latency, saturating the memory takes some 14 kB in flight per SM; one warp of
a forward tile has 4 kB of bfloat16 loads in flight.
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """Tile of one program: `channels` x (`segments` x CHECKPOINT_EVERY) positions, on `warps`."""

    channels: int
    segments: int
    warps: int


# With fewer channels, more of the parallelism must come from time.  Rows shorter than 64 bytes
# waste bandwidth unless neighboring programs soon load the rest.  Two float32 elements, or two gate
# gradients, per lane do not fit in the registers.
_WIDE, _NARROW = Tile(64, 4, 4), (Tile(32, 4, 4), Tile(32, 8, 8), Tile(16, 16, 8))


def choose_tile(batch: int, width: int, *, is_backward: bool, itemsize: int) -> Tile:
    """Return the tile for `batch` sequences of `width` channels; scores have `itemsize` bytes."""
    is_wide = not is_backward and itemsize == 2
    tiles = (_WIDE, *_NARROW[1:]) if is_wide else _NARROW
    for tile in tiles[:-1]:
        if count_programs(tile, batch, width) * tile.warps >= ENOUGH_WARPS:
            return tile
    return tiles[-1]


def count_programs(tile: Tile, batch: int, width: int) -> int:
    """Return the number of programs for `batch` sequences of `width` channels."""
    return batch * -(-width // tile.channels)


def is_exact(tile: Tile, length: int, width: int) -> bool:
    """Whether tiles divide the length and the channels evenly, so that no masks are needed."""
    return not (length % (tile.segments * CHECKPOINT_EVERY) or width % tile.channels)


def alignment(stride: int) -> int:
    """Return the largest power of two up to 16 that divides a stride; 16 for a stride of 0."""
    return min(stride & -stride, 16) or 16


def count_checkpoints(length: int) -> int:
    """Return the number of checkpoints of a sequence."""
    return -(-length // CHECKPOINT_EVERY)
