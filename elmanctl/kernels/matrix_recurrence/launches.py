"""Launches of the matrix recurrence's kernels from sizes and dtypes; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.matrix_recurrence.sizes import CHECKPOINT_EVERY
from elmanctl.kernels.matrix_recurrence.splits import Direction, Split, split_for

CHUNK = 4
"""Keys that are contiguous in a checkpoint, independent of the tiles of either kernel."""

GLUON_EVERY = 8
"""Positions between two checkpoints for the Gluon backward kernel.

A segment must fit in shared memory a dozen times per multiprocessor."""

GLUON_LANES = 4
"""Key groups into which the Gluon kernel splits a warp."""

ALIGNED_UNIT = 4
"""Unit of strides, in elements, if all strides are multiples of it; enables 4-wide loads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Compile-time parameters of one call.

    `backend`, triton or gluon, selects the backward kernel; `dtype` is that of q, k, v and the
    gate by its Triton name, fp32 or bf16; `given` names the optional tensors that are present;
    `unit` divides all strides of q, k, v and the gate.  The others are arguments of the operation.
    """

    n_key: int
    n_value: int
    dtype: str
    backend: str = "triton"
    given: frozenset[str] = frozenset()
    per_value: bool = False
    linear_state: bool = False
    activate: bool = False
    normalize: bool = True
    self_gate: bool = False
    read_all: bool = True
    fast: bool = False
    eps: float = 1e-12
    unit: int = ALIGNED_UNIT
    checkpoint_dtype: str = "fp32"

    @property
    def is_packed(self) -> bool:
        """Whether a head visits only the positions where it is written."""
        return "written" in self.given and not self.read_all

    @property
    def every(self) -> int:
        """Positions between two checkpoints."""
        return checkpoint_every(self.backend)

    @property
    def stash_dtype(self) -> str:
        """Dtype in which the backward kernel keeps the states of a segment.

        A state after a tanh is at most 1, where fp16 is eight times as precise as bf16; a linear
        state is unbounded.
        """
        return "fp16" if self.fast and not self.linear_state else "fp32"


def checkpoint_every(backend: str) -> int:
    """Return the number of positions between two checkpoints of a backend."""
    return GLUON_EVERY if backend == "gluon" else CHECKPOINT_EVERY


def split_of(direction: Direction, problem: Problem) -> Split:
    """Return how the forward or the backward kernel is split into programs."""
    if direction == "backward" and problem.backend == "gluon":
        # With 64 keys, more values per program would exceed the registers of a lane.
        is_narrow = problem.n_key == 64 or problem.n_value % 32
        return Split(heads=1, values=16 if is_narrow else 32, keys=problem.n_key)
    split = split_for(direction, problem.n_key, problem.n_value)
    # Heads that are written at different positions cannot share a program.
    return replace(split, heads=1) if "written" in problem.given else split


def forward_launch(problem: Problem, *, keep: bool) -> Launch:
    """Return the launch of the forward kernel; `keep` saves checkpoints for a backward pass."""
    from elmanctl.kernels.matrix_recurrence import triton_forward

    pointers = {
        **_input_pointers(problem),
        "initial_state": "*fp32" if "initial_state" in problem.given else None,
        "output": f"*{problem.dtype}",
        "final_state": "*fp32",
        "checkpoints": f"*{problem.checkpoint_dtype}" if keep else None,
        "scratch": "*fp32",
    }
    kernel = triton_forward.matrix_recurrence_forward_kernel
    return _launch(kernel, triton_forward.INTEGERS, pointers, problem, split_of("forward", problem))


def backward_launch(problem: Problem) -> Launch:
    """Return the launch of the backward kernel of the problem's backend."""
    given, dtype = problem.given, f"*{problem.dtype}"
    split = split_of("backward", problem)
    # Partial gradients are summed in float32 before rounding.
    part = dtype if split.parts(problem.n_value) == 1 else "*fp32"
    pointers = {
        **_input_pointers(problem),
        "checkpoints": f"*{problem.checkpoint_dtype}",
        "d_output": dtype,
        "d_final_state": "*fp32",
        "d_q": part,
        "d_k": part,
        "d_v": dtype,
        "d_alpha": "*fp32",
        "d_beta": "*fp32" if "beta" in given else None,
        "d_blend": "*fp32" if "blend" in given else None,
        "d_gate": dtype if "gate" in given else None,
        "d_initial_state": "*fp32" if "initial_state" in given else None,
        "scratch": "*fp32",
        "stash": f"*{problem.stash_dtype}",
    }
    if problem.backend == "gluon":
        from elmanctl.kernels.matrix_recurrence import gluon_backward

        kernel = gluon_backward.matrix_recurrence_backward_in_blocks_kernel
        return _launch(kernel, gluon_backward.INTEGERS, pointers, problem, split)
    from elmanctl.kernels.matrix_recurrence import triton_backward

    kernel = triton_backward.matrix_recurrence_backward_kernel
    return _launch(kernel, triton_backward.INTEGERS, pointers, problem, split)


def _input_pointers(problem: Problem) -> dict[str, str | None]:
    dtype, given = f"*{problem.dtype}", problem.given
    return {
        "q": dtype,
        "k": dtype,
        "v": dtype,
        "alpha": "*fp32",
        "beta": "*fp32" if "beta" in given else None,
        "blend": "*fp32" if "blend" in given else None,
        "written": "*i1" if "written" in given and not problem.is_packed else None,
        "positions": "*i32" if problem.is_packed else None,
        "gate": dtype if "gate" in given else None,
    }


def _launch(
    kernel: Any,
    integers: tuple[str, ...],
    pointers: Mapping[str, str | None],
    problem: Problem,
    split: Split,
) -> Launch:
    """Return the launch of a kernel, restricted to the arguments in its signature."""
    constants: dict[str, Any] = {
        **{name: None for name, kind in pointers.items() if kind is None},
        "N": problem.n_key,
        "M": problem.n_value,
        "CHUNK": CHUNK,
        "EVERY": problem.every,
        "UNIT": problem.unit,
        "PER_VALUE": problem.per_value,
        "LINEAR": problem.linear_state,
        "ACTIVATE": problem.activate,
        "NORMALIZE": problem.normalize,
        "SELF_GATE": problem.self_gate,
        "FAST": problem.fast,
        "EPS": problem.eps,
        "BN": 1 << (problem.n_key - 1).bit_length(),
        "G": split.heads,
        "BV": split.values,
        "BK": split.keys,
        "LK": GLUON_LANES,
    }
    names = kernel.arg_names
    return Launch(
        kernel=kernel,
        pointers={x: kind for x, kind in pointers.items() if kind is not None and x in names},
        integers=integers,
        constants={name: value for name, value in constants.items() if name in names},
        max_registers=split.registers,
    )
