"""Autotuning of the matrix recurrence's splits on this GPU, offline.

The result is a launch table like `kernels/matrix_recurrence/launches.json`, for ELMAN_LAUNCHES.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from elmanctl.bench.size import Size, matrix_size
from elmanctl.errors import UsageError
from elmanctl.kernels.matrix_recurrence.splits import Direction, Split, override_split, split_for

if TYPE_CHECKING:
    import torch

MARGIN = 0.03
"""Minimum relative speedup for a split to replace the current one."""

_SECONDS = 0.5

_GPU_SIZES = (
    matrix_size(16, 512, 76, 16),
    matrix_size(16, 512, 83, 32),
    matrix_size(16, 512, 108, 48),
    matrix_size(16, 512, 40, 64),
)
_TINY_SIZES = (matrix_size(1, 2, 1, 16),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One measured split of one kernel; `ms` is None if it exceeds the GPU's resources.

    `is_current` marks the split of the table in use.
    """

    direction: Direction
    size: Size
    split: Split
    ms: float | None
    is_current: bool

    @property
    def label(self) -> str:
        """Key of the size in the table."""
        return f"{self.size.keys}x{self.size.values}"


def candidates(direction: Direction, n_key: int, n_value: int) -> tuple[Split, ...]:
    """Return the splits to measure, the current one first."""
    current = split_for(direction, n_key, n_value)
    tiles = [keys for keys in (4, 8, 16, 32) if n_key % keys == 0]
    caps = (None, 96, 128, 168) if direction == "forward" else (None, 168, 184)
    possible = (
        Split(heads=heads, values=values, keys=keys, registers=registers)
        for values in (16, 32)
        for heads in (1, 2)
        for keys in tiles
        for registers in caps
        if values <= max(16, n_value) and heads * values <= 32
    )
    return (current, *(split for split in possible if split != current))


def sizes_to_tune(device: "torch.device", only: Sequence[str]) -> tuple[Size, ...]:
    """Return the sizes named in `only`, such as 32x32, or all; raise UsageError if unknown.

    On a CPU there is a single tiny size, for a dry run.
    """
    known = _GPU_SIZES if device.type == "cuda" else _TINY_SIZES
    names = {f"{size.keys}x{size.values}": size for size in known}
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UsageError(f"no size `{unknown[0]}` is tuned; known: {', '.join(names)}")
    return tuple(size for name, size in names.items() if not only or name in only)


def trials(
    sizes: Sequence[Size],
    device: "torch.device",
    choose: Callable[[Direction, int, int], Sequence[Split]] = candidates,
) -> Iterator[Trial]:
    """Measure one split after another; the forward pass includes saving checkpoints."""
    for size in sizes:
        inputs = _inputs(size, device)
        for direction in get_args(Direction):
            current = split_for(direction, size.keys, size.values)
            for split in choose(direction, size.keys, size.values):
                with override_split(direction, size.keys, size.values, split):
                    ms = _time(direction, inputs, device)
                yield Trial(
                    direction=direction, size=size, split=split, ms=ms, is_current=split == current
                )


def table_of(tried: Sequence[Trial]) -> dict[str, dict[str, dict[str, int]]]:
    """Return a table with the fastest split of each size, or the current one within the margin."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for key in dict.fromkeys((trial.direction, trial.label) for trial in tried):
        group = [x for x in tried if (x.direction, x.label) == key and x.ms is not None]
        (current,) = (trial for trial in group if trial.is_current)
        best = min(group, key=lambda trial: trial.ms or 0.0)
        assert best.ms is not None and current.ms is not None
        chosen = best if best.ms < (1 - MARGIN) * current.ms else current
        direction, label = key
        table.setdefault(direction, {})[label] = {
            name: value for name, value in asdict(chosen.split).items() if value is not None
        }
    return table


def dump(table: dict[str, dict[str, dict[str, int]]]) -> str:
    """Format a table as JSON, one line per size."""
    parts = []
    for direction, sizes in table.items():
        lines = [f'    "{size}": {json.dumps(split)}' for size, split in sizes.items()]
        parts.append(f'  "{direction}": {{\n' + ",\n".join(lines) + "\n  }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _inputs(size: Size, device: "torch.device") -> dict[str, Any]:
    import torch

    from elmanctl.bench.operation import Draw
    from elmanctl.bench.recurrences import RECURRENCES

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    drawn = RECURRENCES[0].draw(size, Draw(0, dtype=dtype, device=device), False)
    return {name: x.requires_grad_() for name, x in drawn.items()}


def _time(direction: Direction, inputs: dict[str, Any], device: "torch.device") -> float | None:
    from triton.runtime.errors import OutOfResources

    from elmanctl.bench.timing import measure

    try:
        return measure(partial(_pass, direction, inputs), device, _SECONDS).ms
    except OutOfResources:
        return None


def _pass(direction: Direction, inputs: dict[str, Any], number: int) -> None:
    """Run a forward pass, and for the backward kernel also a backward pass."""
    import torch

    from elmanctl.kernels.matrix_recurrence import matrix_recurrence

    output, _ = matrix_recurrence(**inputs, activation="silu", backend="triton")
    if direction == "backward":
        torch.autograd.grad(output, list(inputs.values()), output)
