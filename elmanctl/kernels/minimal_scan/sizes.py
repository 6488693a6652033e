"""How the fused scan of MinGRU and MinLSTM is shared out on a GPU, and what it moves; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

SCORES: Mapping[str, int] = {"mingru": 2, "minlstm": 3}
"""How many numbers a channel takes of the projection at each position, by the name of the cell."""

CHECKPOINT_EVERY = 16
"""Positions between two states that backend `triton` stores for the backward pass."""

LARGEST_STRIDE = 2**22
"""The first stride of time, in numbers, at which the offsets in a tile leave 32 bits."""

ENOUGH_WARPS = 1500
"""Warps with which a GPU is busy: a dozen on each of the 132 SMs of an H100.

Memory is then asked for what it can deliver, at 3 TB/s and 600 ns some 14 kB on each SM at any
time: a warp of a forward tile asks for 4 kB of bfloat16 at once.
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes at a time: `segments` x CHECKPOINT_EVERY positions of channels."""

    channels: int
    segments: int
    warps: int


# The fewer channels there are, the more of the warps have to find their work along time.  Rows of
# fewer than 64 bytes waste a part of what memory delivers, unless neighbours ask for the rest soon.
# Two numbers of float32 a lane, or two slopes of a gate, are more than the registers hold.
_WIDE, _NARROW = Tile(64, 4, 4), (Tile(32, 4, 4), Tile(32, 8, 8), Tile(16, 16, 8))


def choose_tile(batch: int, width: int, *, is_backward: bool, itemsize: int) -> Tile:
    """Return the tile for so many sequences and channels, and scores of so many bytes each."""
    is_wide = not is_backward and itemsize == 2
    tiles = (_WIDE, *_NARROW[1:]) if is_wide else _NARROW
    for tile in tiles[:-1]:
        if count_programs(tile, batch, width) * tile.warps >= ENOUGH_WARPS:
            return tile
    return tiles[-1]


def count_programs(tile: Tile, batch: int, width: int) -> int:
    """Return how many programs compute so many channels of so many sequences."""
    return batch * -(-width // tile.channels)


def is_exact(tile: Tile, length: int, width: int) -> bool:
    """Whether tiles of a length and blocks of channels leave nothing over."""
    return not (length % (tile.segments * CHECKPOINT_EVERY) or width % tile.channels)


def alignment(stride: int) -> int:
    """Return the largest power of two up to 16 that divides a stride; 16 for a stride of 0."""
    return min(stride & -stride, 16) or 16


def count_checkpoints(length: int) -> int:
    """Return how many states of a sequence are stored."""
    return -(-length // CHECKPOINT_EVERY)


def bytes_moved(cell: str, itemsize: int, *, is_backward: bool) -> float:
    """Return the bytes that a channel reads and writes at one position, results in the same dtype.

    Forward, that is the scores, the state and a share of a checkpoint; backward the scores, the
    gradient of the state, that of the scores, and the checkpoint again.  Over the bandwidth of the
    memory it is the least time that the kernel can take.
    """
    scores = SCORES[cell]
    numbers = 2 * scores + 1 if is_backward else scores + 1
    return numbers * itemsize + 4 / CHECKPOINT_EVERY
