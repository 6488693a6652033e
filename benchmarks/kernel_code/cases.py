"""Every kernel that is compiled and counted: one entry a size, a dtype and a set of flags.

A new kernel needs an entry in `CASES`: a name, a function that returns its `Launch`, and its loops
in the order of their addresses, outer ones first, each with the steps of time that one pass covers.
That function imports the kernel, so that the names can be had without Triton.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.matrix_recurrence import launches as matrix
from elmanctl.kernels.matrix_recurrence.sizes import CHECKPOINT_EVERY

ARCHITECTURES = (80, 89, 90)

# What the times of docs/kernels.md are estimated for.
BATCH, STEPS = 16, 512


@dataclass(frozen=True, slots=True)
class Counted:
    """A loop whose step has so many instructions of a kind, such as 32 of MUFU.TANH.

    Compilers write several steps of a short loop out in one pass, and add a loop for what is left.
    Then the first of them, which most steps are done by, is the one that is meant.
    """

    kind: str
    each: int


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of so many heads, and the programs that do its work for a batch of BATCH."""

    heads: int
    programs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kernel to compile, and how its loops are to be read.

    `loops` gives for each loop its name, and how many steps of time one pass covers: a number where
    the compiler leaves the loop as it is, or what to count.  A time is estimated for `layer`.
    """

    launch: Callable[[], Launch]
    loops: Mapping[str, int | Counted]
    architectures: tuple[int, ...] = ARCHITECTURES
    layer: Layer | None = None


# E88 as it trains: bfloat16, silu and unit length of keys and queries, a gate, the fast tanh.
_E88 = matrix.Problem(
    n_key=32,
    n_value=32,
    dtype="bf16",
    given=frozenset({"gate"}),
    activate=True,
    fast=True,
)

# Layers by the size of their states: three of the study, and one as wide as that with 83 heads.
_HEADS = {16: 76, 32: 83, 48: 108, 64: 42}

# Flags and sizes beside it; their code differs too little between sm_80, sm_89 and sm_90 to be
# compiled three times.
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "exact-32x32": {"dtype": "fp32", "fast": False},
    "unaligned-32x32": {"unit": 1},
    "linear-32x32": {"linear_state": True, "activate": False},
    "write-gate-32x32": {"given": _E88.given | {"beta", "initial_state"}},
    "blend-32x32": {"given": _E88.given | {"beta", "blend"}},
    "routed-32x32": {"given": _E88.given | {"written"}, "read_all": False},
    "e75-32x32": {"given": frozenset(), "per_value": True, "self_gate": True},
    "bf16-checkpoints-32x32": {"checkpoint_dtype": "bf16"},
    "32x64": {"n_value": 64},
    "64x32": {"n_key": 64},
}


def _matrix_recurrence() -> Iterator[tuple[str, Case]]:
    for n, heads in _HEADS.items():
        problem = replace(_E88, n_key=n, n_value=n)
        yield from _both_ways(f"e88-{n}x{n}", problem, heads)
    for name, changes in _VARIANTS.items():
        for way, case in _both_ways(f"matrix-{name}", replace(_E88, **changes), None):
            yield way, replace(case, architectures=(90,))


def _both_ways(name: str, problem: matrix.Problem, heads: int | None) -> Iterator[tuple[str, Case]]:
    forward = matrix.forward_split(problem)
    backward = matrix.backward_split(problem)
    yield (
        f"{name}-forward",
        Case(
            launch=lambda: matrix.forward_launch(problem, keep=True),
            loops={"segment": CHECKPOINT_EVERY, "step": 1},
            layer=_layer(forward, heads, problem.n_value),
        ),
    )
    yield (
        f"{name}-backward",
        Case(
            launch=lambda: matrix.backward_launch(problem),
            loops={"segment": CHECKPOINT_EVERY, "replay": 1, "reverse": 1},
            layer=_layer(backward, heads, problem.n_value),
        ),
    )


def _layer(split: matrix.Split, heads: int | None, n_value: int) -> Layer | None:
    if heads is None:
        return None
    groups, parts = split.grid(BATCH, heads, n_value)
    return Layer(heads, groups * parts)


CASES: dict[str, Case] = dict(_matrix_recurrence())

WANTED = [
    (name, architecture)
    for architecture in reversed(ARCHITECTURES)
    for name, case in CASES.items()
    if architecture in case.architectures
]
