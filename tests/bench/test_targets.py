from typing import Any

import pytest

from elmanctl.bench.shapes import E88, E88_WIDE, GDN, MAMBA2
from elmanctl.bench.targets import MET, MISSED, NOT_MEASURED, Target, judge_targets

H100 = {"device": "cuda", "name": "NVIDIA H100 80GB HBM3"}
SHAPE = "B16 T512 H83 n32"


def kernel(path: str = "triton", **changes: Any) -> dict[str, Any]:
    row = {
        "operation": "matrix_recurrence",
        "path": path,
        "is_ours": path == "triton",
        "size": SHAPE,
        "status": "measured",
        "reason": None,
        "note": None,
        "bound_length": None,
        "is_wrong": False,
        "forward_ms": 0.25,
        "backward_ms": 1.0,
        "forward_backward_ms": 1.25,
    }
    return row | changes


def steps(model: str, tokens_per_s: float | None, **changes: Any) -> dict[str, Any]:
    status = "missing" if tokens_per_s is None else "measured"
    row = {"model": model, "backend": "triton", "status": status, "reason": None, "note": None}
    return row | {"tokens_per_s": tokens_per_s} | changes


def judged(
    kernels: list[dict[str, Any]], trained: list[dict[str, Any]], machine: dict[str, str] = H100
) -> dict[str, Target]:
    return {target.name: target for target in judge_targets(machine, kernels, trained)}


@pytest.mark.parametrize(
    ("changes", "forward", "backward"),
    [
        ({}, MET, MET),
        ({"forward_ms": 0.3, "backward_ms": 1.1}, MET, MET),
        ({"forward_ms": 0.301}, MISSED, MET),
        ({"backward_ms": 1.101}, MET, MISSED),
        ({"status": "missing", "reason": "triton is not installed"}, NOT_MEASURED, NOT_MEASURED),
        ({"is_wrong": True, "note": "WRONG: d_q is off"}, NOT_MEASURED, NOT_MEASURED),
        ({"size": "B16 T512 H99 n32"}, NOT_MEASURED, NOT_MEASURED),
        ({"is_ours": False}, NOT_MEASURED, NOT_MEASURED),
    ],
)
def test_recurrence_is_held_to_its_milliseconds(
    changes: dict[str, Any], forward: str, backward: str
) -> None:
    found = judged([kernel(**changes)], [])
    assert found[f"E88 recurrence forward, {SHAPE}"].verdict == forward
    assert found[f"E88 recurrence backward, {SHAPE}"].verdict == backward


def test_value_and_reason_stand_beside_the_verdict() -> None:
    found = judged([kernel(status="failed", reason="out of memory")], [])
    target = found[f"E88 recurrence forward, {SHAPE}"]
    assert (target.value, target.reason) == (None, "failed: out of memory")
    assert judged([kernel()], [])[f"E88 recurrence forward, {SHAPE}"].value == 0.25


def test_fastest_of_our_kernels_and_of_a_models_backends_counts_and_is_named() -> None:
    slower = kernel(backward_ms=2.0, forward_backward_ms=2.2)
    faster = kernel("gluon", is_ours=True, forward_backward_ms=1.0, backward_ms=0.8)
    wrong = kernel(is_wrong=True, forward_backward_ms=0.1, backward_ms=0.1)
    rows = [steps(E88, 90_000.0), steps(E88, 110_000.0, backend="gluon")]
    found = judged([wrong, slower, faster], rows)
    backward = found[f"E88 recurrence backward, {SHAPE}"]
    assert (backward.verdict, backward.value, backward.reason) == (MET, 0.8, "gluon")
    assert (found[E88].verdict, found[E88].reason) == (MET, "gluon")


def test_models_are_held_to_tokens_and_to_those_beside_them() -> None:
    rows = [steps(E88, 120_000.0), steps(E88_WIDE, 99_000.0), steps(MAMBA2, 110_000.0)]
    found = judged([], [*rows, steps(GDN, None, reason="fla is not installed")])
    assert found[E88].verdict == MET and found[E88_WIDE].verdict == MISSED
    assert found[f"{E88} over {MAMBA2}"].value == pytest.approx(120 / 110)
    assert found[f"{E88} over {MAMBA2}"].verdict == MET
    assert found[f"{E88_WIDE} over {MAMBA2}"].verdict == MISSED
    beside = found[f"{E88} over {GDN}"]
    assert (beside.verdict, beside.reason) == (NOT_MEASURED, "missing: fla is not installed")


def test_plain_torch_is_no_stand_in_for_kernels_of_others() -> None:
    rows = [steps(E88, 120_000.0), steps(MAMBA2, None), steps(MAMBA2, 9.0, backend="torch")]
    assert judged([], rows)[f"{E88} over {MAMBA2}"].verdict == NOT_MEASURED


def test_speed_that_is_timing_only_says_so() -> None:
    rows = [steps(E88, 2.0), steps(GDN, 1.0, backend="fla", note="timing only")]
    assert judged([], rows)[f"{E88} over {GDN}"].reason == "triton over fla: timing only"


@pytest.mark.parametrize(
    ("plain", "verdict"),
    [
        ({"forward_backward_ms": 300.0}, MET),
        ({"forward_backward_ms": 1.2}, MISSED),
        # A shorter call bounds the whole one from below: it can show that ours is faster alone.
        ({"forward_backward_ms": 300.0, "bound_length": 128}, MET),
        ({"forward_backward_ms": 1.2, "bound_length": 128}, NOT_MEASURED),
        ({"status": "failed", "reason": "out of memory"}, NOT_MEASURED),
    ],
)
def test_no_kernel_may_take_longer_than_plain_torch(plain: dict[str, Any], verdict: str) -> None:
    found = judged([kernel(), kernel("torch", **plain)], [])
    target = found[f"matrix_recurrence {SHAPE}: plain torch over triton"]
    assert target.verdict == verdict
    if "bound_length" in plain:
        assert target.reason == "at least: plain torch was timed on the first 128 positions"


def test_every_kernel_of_ours_is_a_target_and_no_other() -> None:
    rows = [kernel(), kernel(size="B1 T2 H3 n16"), kernel("fla"), kernel("torch")]
    names = [name for name in judged(rows, []) if "plain torch" in name]
    assert len(names) == 2


def test_cpu_meets_and_misses_nothing() -> None:
    kernels = [kernel(), kernel("torch", forward_backward_ms=0.1)]
    found = judged(kernels, [steps(E88, 1e9)], {"device": "cpu", "name": "x86_64"})
    assert {target.verdict for target in found.values()} == {NOT_MEASURED}
    assert {target.value for target in found.values()} == {None}


def test_another_card_than_the_one_the_targets_are_for_is_named() -> None:
    found = judged([kernel()], [], {"device": "cuda", "name": "NVIDIA H200"})
    target = found[f"E88 recurrence forward, {SHAPE}"]
    assert target.verdict == MET and target.reason == "on NVIDIA H200, not on an H100; triton"
