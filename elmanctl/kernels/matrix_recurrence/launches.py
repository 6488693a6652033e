"""How the kernels of the matrix recurrence are launched for given sizes; imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.matrix_recurrence.sizes import CHECKPOINT_EVERY
from elmanctl.kernels.matrix_recurrence.splits import Direction, Split, told_split

CHUNK = 4
"""Keys that lie side by side in a checkpoint, whatever the tiles of the kernels around it are."""

GLUON_EVERY = 8
"""Positions between two checkpoints for the backward kernel in Gluon.

What it holds of a segment must leave a multiprocessor room for a dozen programs."""

GLUON_LANES = 4
"""Groups of keys into which that kernel splits a warp."""

ALIGNED_UNIT = 4
"""Elements in which strides are counted where all allow it, so that four are loaded at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is computed, as far as it is compiled in.

    `backend` is triton or gluon, which is the kernel that goes back; `dtype` is that of q, k, v
    and the gate as Triton names it, fp32 or bf16; `given` names the tensors that may be left out
    and are not; `unit` divides all strides of q, k, v and the gate.  The others are the arguments
    of the operation.
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
        """Whether a head walks through those positions alone where it is written."""
        return "written" in self.given and not self.read_all

    @property
    def every(self) -> int:
        """Positions between two checkpoints."""
        return checkpoint_every(self.backend)

    @property
    def stash_dtype(self) -> str:
        """How the backward kernel keeps the states of a segment.

        A squashed state is at most 1, where fp16 is eight times as fine as bf16; one that is not
        squashed knows no bound.
        """
        return "fp16" if self.fast and not self.linear_state else "fp32"

    @property
    def constants(self) -> dict[str, Any]:
        """What both kernels are compiled with."""
        return {
            "N": self.n_key,
            "M": self.n_value,
            "CHUNK": CHUNK,
            "EVERY": self.every,
            "UNIT": self.unit,
            "PER_VALUE": self.per_value,
            "LINEAR": self.linear_state,
            "ACTIVATE": self.activate,
            "NORMALIZE": self.normalize,
            "SELF_GATE": self.self_gate,
            "FAST": self.fast,
            "EPS": self.eps,
        }


def checkpoint_every(backend: str) -> int:
    """Return how many positions lie between two checkpoints of a backend."""
    return GLUON_EVERY if backend == "gluon" else CHECKPOINT_EVERY


def forward_split(problem: Problem) -> Split:
    """Return what a program of the forward kernel has."""
    return _split("forward", problem)


def backward_split(problem: Problem) -> Split:
    """Return what a program of the backward kernel has."""
    return _split("backward", problem)


def _split(direction: Direction, problem: Problem) -> Split:
    if direction == "backward" and problem.backend == "gluon":
        # So many registers of a lane hold a state of 64 keys.
        narrow = problem.n_key == 64 or problem.n_value % 32
        return Split(heads=1, values=16 if narrow else 32, keys=problem.n_key)
    told = told_split(direction, problem.n_key, problem.n_value)
    # Heads that are written at different positions have nothing to share.
    return replace(told, heads=1) if "written" in problem.given else told


def forward_launch(problem: Problem, *, keep: bool) -> Launch:
    """Return the launch of the forward kernel; `keep` is whether a gradient will be asked for."""
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
    return _launch(kernel, triton_forward.INTEGERS, pointers, problem, forward_split(problem))


def backward_launch(problem: Problem) -> Launch:
    """Return the launch of the backward kernel of the problem's backend."""
    given, dtype = problem.given, f"*{problem.dtype}"
    split = backward_split(problem)
    # Parts are added in float32 before they are rounded.
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

        in_blocks = gluon_backward.matrix_recurrence_backward_in_blocks_kernel
        return _launch(in_blocks, gluon_backward.INTEGERS, pointers, problem, split)
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
        "places": "*i32" if problem.is_packed else None,
        "gate": dtype if "gate" in given else None,
    }


def _launch(
    kernel: Any,
    integers: tuple[str, ...],
    pointers: Mapping[str, str | None],
    problem: Problem,
    split: Split,
) -> Launch:
    """The launch of a kernel with those of the arguments that it has."""
    constants = {
        **{name: None for name, kind in pointers.items() if kind is None},
        **problem.constants,
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
