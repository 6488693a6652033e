"""The registry that the tests compile: that of benchmarks, and kernels whose code is known.

The second kind is of `sample_kernels`.
"""

import os
from typing import Any

from benchmarks.kernel_code import cases
from benchmarks.kernel_code.cases import ARCHITECTURES, Case, Counted
from elmanctl.kernels.launch import Launch
from tests.kernels.tritons import PINNED, is_compiled
from tests.long import LONG

LENGTH = 16


def _launch(name: str, **changes: Any) -> Launch:
    from tests.kernels import sample_kernels

    fields: dict[str, Any] = {
        "kernel": getattr(sample_kernels, name),
        "pointers": {"p_x": "*fp32", "p_y": "*fp32"},
        "integers": ("steps",),
    }
    return Launch(**fields | changes)


def _end() -> Launch:
    os._exit(3)


SAMPLES = {
    "one-loop": Case(launch=lambda: _launch("one_loop"), loops={"step": 1}),
    "gluon-loop": Case(launch=lambda: _launch("gluon_loop"), loops={"step": 1}),
    "nested-loops": Case(
        launch=lambda: _launch("nested_loops", integers=("segments", "length")),
        loops={"segment": LENGTH, "replay": 1, "reverse": 1},
    ),
    "short-loop": Case(
        launch=lambda: _launch("short_loop"), loops={"step": Counted("MUFU.TANH", 1)}
    ),
    # With a known number of steps four of them are written out in one loop, not in the other.
    "partly-unrolled-loops": Case(
        launch=lambda: _launch(
            "nested_loops", integers=("segments",), constants={"length": LENGTH}
        ),
        loops={
            "segment": LENGTH,
            "replay": Counted("MUFU.TANH", 32),
            "reverse": Counted("MUFU.TANH", 64),
        },
    ),
    "many-values": Case(launch=lambda: _launch("many_values"), loops={"step": 1}),
    "too-few-registers": Case(
        launch=lambda: _launch("many_values", max_registers=64), loops={"step": 1}
    ),
    "argument-left-out": Case(
        launch=lambda: _launch("one_loop", pointers={"p_x": "*fp32"}), loops={"step": 1}
    ),
    "specialized": Case(
        launch=lambda: _launch("specialized", pointers={"p_x": "*i32"}, integers=("number",)),
        loops={},
    ),
    "ends-the-process": Case(launch=_end, loops={}),
}

CASES = SAMPLES | cases.CASES


_SAMPLED = [
    *(("one-loop", architecture) for architecture in ARCHITECTURES),
    *(("many-values", architecture) for architecture in ARCHITECTURES),
    ("gluon-loop", 90),
    ("short-loop", 90),
    ("nested-loops", 90),
    ("partly-unrolled-loops", 90),
    ("too-few-registers", 90),
    ("argument-left-out", 90),
    ("specialized", 90),
]


def kernels_of(version: str) -> list[tuple[str, int]]:
    """Return what of our kernels a Triton compiles, in order: all, or a sample if not pinned.

    The sample is the sizes that E88 trains in and the scans, for one architecture.
    """
    return [
        (name, architecture)
        for name, architecture in cases.WANTED
        if LONG
        or version == PINNED
        or (is_compiled(version, architecture) and cases.CASES[name].architectures == ARCHITECTURES)
    ]


def wanted_of(version: str) -> list[tuple[str, int]]:
    """Return all that a Triton compiles, in order: its process is at its end after the last one."""
    sampled = [pair for pair in _SAMPLED if is_compiled(version, pair[1])]
    return [*sampled, *kernels_of(version), ("ends-the-process", 90)]
