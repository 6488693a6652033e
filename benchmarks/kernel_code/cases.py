"""Registry of kernels to compile and count, with an entry per size, dtype and set of flags.

A new kernel needs an entry in `CASES`: a name, a function that returns its `Launch`, and its loops
in address order, outer ones first, each with the time steps that one iteration covers.  The
function imports the kernel lazily, so that names are available without Triton.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.kernels.launch import Launch
from elmanctl.kernels.matrix_recurrence import launches as matrix
from elmanctl.kernels.matrix_recurrence.sizes import SUPPORTED
from elmanctl.kernels.matrix_recurrence.splits import Split
from elmanctl.kernels.minimal_scan.sizes import CHECKPOINT_EVERY as TILE_STEPS
from elmanctl.kernels.minimal_scan.sizes import SCORES, choose_tile

ARCHITECTURES = (80, 89, 90)

# Shape of the estimated times in docs/kernels.md.
BATCH, STEPS = 16, 512


@dataclass(frozen=True, slots=True)
class Counted:
    """A loop with `each` instructions of `kind` per step, such as 32 of MUFU.TANH.

    Compilers unroll short loops and add a remainder loop; the main loop, which comes first, is the
    one that counts.
    """

    kind: str
    each: int


@dataclass(frozen=True, slots=True)
class Layer:
    """Heads of a layer, and its programs for a batch of BATCH."""

    heads: int
    programs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A kernel to compile, and its loops.

    `loops` maps the name of each loop to the time steps that one iteration covers: a number if the
    compiler does not unroll it, or an instruction to count.  Times are estimated for `layer`.
    """

    launch: Callable[[], Launch]
    loops: Mapping[str, int | Counted]
    architectures: tuple[int, ...] = ARCHITECTURES
    layer: Layer | None = None


# E88 as in training: bfloat16, silu and normalized keys and queries, a gate, the fast tanh.
_E88 = matrix.Problem(
    n_key=32,
    n_value=32,
    dtype="bf16",
    given=frozenset({"gate"}),
    activate=True,
    fast=True,
)

# Heads by state size: three layers of the study, and one as wide as that with 83 heads.
_HEADS = {16: 76, 32: 83, 48: 108, 64: 42}

# Options of its relatives, and other sizes and dtypes.  Their code differs too little between
# sm_80, sm_89 and sm_90 to compile them three times.
_UNGATED: Mapping[str, Any] = {"given": frozenset(), "activate": False, "normalize": False}
_OTHER_SIZES: dict[str, Mapping[str, Any]] = {
    f"e88-{n}x{n}": {"n_key": n, "n_value": n} for n in SUPPORTED["triton"] if n not in _HEADS
}
_VARIANTS: dict[str, Mapping[str, Any]] = {
    **{
        f"e88-exact-{n}x{n}": {"n_key": n, "n_value": n, "dtype": "fp32", "fast": False}
        for n in _HEADS
    },
    "e88-32x64": {"n_value": 64},
    "e90-32x32": {"given": frozenset({"beta", "initial_state"})},
    # These two pass float32 tensors that come from products in bfloat16.
    "e75-32x32": {**_UNGATED, "dtype": "fp32", "per_value": True, "self_gate": True},
    "e87-32x32": {
        **_UNGATED,
        "dtype": "fp32",
        "given": frozenset({"written", "blend"}),
        "per_value": True,
        "self_gate": True,
    },
    "mom-e88-32x32": {"given": frozenset({"written"}), "read_all": False},
}


def _matrix_recurrence() -> Iterator[tuple[str, Case]]:
    for n, heads in _HEADS.items():
        problem = replace(_E88, n_key=n, n_value=n)
        yield f"e88-{n}x{n}-forward", _matrix_forward(problem, heads)
        yield f"e88-{n}x{n}-backward", _matrix_backward(problem, heads)
        if n in SUPPORTED["gluon"]:
            problem = replace(problem, backend="gluon", checkpoint_dtype="fp16")
            yield f"e88-{n}x{n}-backward-gluon", _matrix_backward(problem, heads)
    # The forward kernel differs in its checkpoint interval.
    gluon = replace(_E88, backend="gluon", checkpoint_dtype="fp16")
    forward = _matrix_forward(gluon, _HEADS[32])
    yield "e88-32x32-forward-for-gluon", replace(forward, architectures=(90,))
    for name, changes in (_OTHER_SIZES | _VARIANTS).items():
        problem = replace(_E88, **changes)
        for direction, case in (
            ("forward", _matrix_forward(problem)),
            ("backward", _matrix_backward(problem)),
        ):
            yield f"{name}-{direction}", replace(case, architectures=(90,))


def _matrix_forward(problem: matrix.Problem, heads: int | None = None) -> Case:
    return Case(
        launch=lambda: matrix.forward_launch(problem, keep=True),
        loops={"segment": matrix.checkpoint_every(problem.backend), "step": 1},
        layer=_layer(matrix.split_of("forward", problem), heads, problem.n_value),
    )


def _matrix_backward(problem: matrix.Problem, heads: int | None = None) -> Case:
    # The Gluon kernel walks back two steps per iteration.
    steps_back = 2 if problem.backend == "gluon" else 1
    every = matrix.checkpoint_every(problem.backend)
    return Case(
        launch=lambda: matrix.backward_launch(problem),
        loops={"segment": every, "replay": 1, "reverse": steps_back},
        layer=_layer(matrix.split_of("backward", problem), heads, problem.n_value),
    )


def _layer(split: Split, heads: int | None, n_value: int) -> Layer | None:
    if heads is None:
        return None
    groups, parts = split.grid(BATCH, heads, n_value)
    return Layer(heads, groups * parts)


# Channels of the study's MinGRU and MinLSTM.
_WIDTHS = {"mingru": 2944, "minlstm": 1792}


def _minimal_scan() -> Iterator[tuple[str, Case]]:
    for is_backward, direction in ((False, "forward"), (True, "backward")):
        yield f"mingru-{direction}", _scan("mingru", is_backward=is_backward)
        yield f"minlstm-{direction}", _scan("minlstm", is_backward=is_backward)
        # A length that is not a multiple of the tile adds a predicate to every position.
        ragged = _scan("mingru", is_backward=is_backward, length=STEPS - 1)
        yield f"mingru-ragged-{direction}", replace(ragged, architectures=(90,))


def _scan(
    cell: str,
    *,
    is_backward: bool,
    length: int = STEPS,
) -> Case:
    def launch() -> Launch:
        from elmanctl.kernels.minimal_scan import launches

        row = _WIDTHS[cell] * SCORES[cell]
        problem = launches.Problem(
            cell=cell,
            batch=BATCH,
            length=length,
            width=_WIDTHS[cell],
            row=row,
            batch_stride=row * length,
            scores="bf16",
            hidden="bf16",
        )
        if is_backward:
            return launches.backward_launch(problem, has_d_final=False)
        return launches.forward_launch(problem, has_initial=False)

    tile = choose_tile(BATCH, _WIDTHS[cell], is_backward=is_backward, itemsize=2)
    return Case(launch=launch, loops={"tile": tile.segments * TILE_STEPS})


CASES: dict[str, Case] = dict([*_matrix_recurrence(), *_minimal_scan()])

WANTED = [
    (name, architecture)
    for architecture in reversed(ARCHITECTURES)
    for name, case in CASES.items()
    if architecture in case.architectures
]
