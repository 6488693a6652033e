"""Launches of the minimal scan's kernels from sizes and dtypes; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.minimal_scan import sizes, triton_kernels

ITEM_SIZES: Mapping[str, int] = {"bf16": 2, "fp32": 4}
"""Supported dtypes by their Triton names, with their sizes in bytes."""

# By default ptxas targets a round register count and spills one or two registers when each
# position has a predicate.
_MASKED_FORWARD, _MASKED_BACKWARD = 128, 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One call: sizes, dtypes; `row` and `batch_stride` are the scores' strides, in elements."""

    cell: str
    batch: int
    length: int
    width: int
    row: int
    batch_stride: int
    scores: str
    hidden: str

    def tile(self, *, is_backward: bool) -> sizes.Tile:
        """Return the tile of one program."""
        itemsize = ITEM_SIZES[self.scores]
        return sizes.choose_tile(self.batch, self.width, is_backward=is_backward, itemsize=itemsize)

    def grid(self, *, is_backward: bool) -> tuple[int]:
        """Return the launch grid: the number of programs."""
        return (sizes.count_programs(self.tile(is_backward=is_backward), self.batch, self.width),)


def forward_launch(problem: Problem, *, has_initial: bool) -> Launch:
    """Return the launch of the forward kernel, which computes the states."""
    pointers = {
        "p_scores": f"*{problem.scores}",
        "p_hidden": f"*{problem.hidden}",
        "p_checkpoints": "*fp32",
        "p_final": "*fp32",
        "p_initial": "*fp32" if has_initial else None,
    }
    return _launch(triton_kernels.gated_scan_forward_kernel, problem, pointers, is_backward=False)


def backward_launch(problem: Problem, *, has_d_final: bool) -> Launch:
    """Return the launch of the backward kernel, which computes the gradients."""
    pointers = {
        "p_scores": f"*{problem.scores}",
        "p_checkpoints": "*fp32",
        "p_d_hidden": f"*{problem.hidden}",
        "p_d_scores": f"*{problem.scores}",
        "p_d_initial": "*fp32",
        "p_d_final": "*fp32" if has_d_final else None,
    }
    return _launch(triton_kernels.gated_scan_backward_kernel, problem, pointers, is_backward=True)


def _launch(
    kernel: Any, problem: Problem, pointers: Mapping[str, str | None], *, is_backward: bool
) -> Launch:
    tile = problem.tile(is_backward=is_backward)
    exact = sizes.is_exact(tile, problem.length, problem.width)
    constants = {
        "SCORES": sizes.SCORES[problem.cell],
        "WIDTH": problem.width,
        "ROW": problem.row,
        "ALIGNED": sizes.alignment(problem.batch_stride),
        "SEGMENTS": tile.segments,
        "STEPS": sizes.CHECKPOINT_EVERY,
        "BLOCK": tile.channels,
        "EXACT": exact,
    }
    masked_registers = _MASKED_BACKWARD if is_backward else _MASKED_FORWARD
    return Launch(
        kernel=kernel,
        pointers={name: kind for name, kind in pointers.items() if kind is not None},
        integers=("length", "batch_stride", "n_checkpoints"),
        constants=constants | {name: None for name, kind in pointers.items() if kind is None},
        num_warps=tile.warps,
        max_registers=None if exact else masked_registers,
    )
