"""The machine on kernels of Triton's and Gluon's, against numpy and torch."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.kernels.machine_cases import (
    ARCHITECTURES,
    BINS,
    BLOCK,
    CASES,
    COLUMNS,
    DTYPES,
    KEPT,
    ROWS,
    SIZE,
    WANTED,
    WARPS,
)
from tests.kernels.machines import Machines, NotCompiled, compiling
from tests.kernels.ptx.faults import DataRace, Misaligned, NeverWritten, OutOfBounds, PtxFault
from tests.kernels.tritons import PINNED, VERSIONS, is_compiled

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Root mean square of the error over that of the truth.
FLOAT32_ERROR = 3e-7
TF32_ERROR = 1.5e-3  # what is cut off both factors
BF16_ERROR = 3e-3

each_version = pytest.mark.parametrize("version", VERSIONS)
each_compiler = pytest.mark.parametrize(
    ("version", "architecture"),
    [(x, number) for x in VERSIONS for number in ARCHITECTURES if is_compiled(x, number)],
)
each_number_of_warps = pytest.mark.parametrize("warps", WARPS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    with compiling(folder) as made:
        for name, architecture in WANTED:
            made.expect(CASES[name], architecture)
        yield made


def draw(*shape: int, dtype: str = "fp32", seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(TORCH[dtype])


def nothing(*shape: int, dtype: str = "fp32") -> Tensor:
    return torch.full(shape, float("nan")).to(TORCH[dtype])


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


# Results.


@each_compiler
@each_number_of_warps
@each_dtype
def test_functions_of_each_number_are_right(
    machines: Machines, version: str, architecture: int, warps: int, dtype: str
) -> None:
    machine = machines.machine(version, CASES[f"elementwise-{dtype}-{warps}"], architecture)
    x, y = draw(3 * BLOCK + 5, dtype=dtype), nothing(3 * BLOCK + 9, dtype=dtype)
    machine.run((4,), [x, y, len(x)], poisoned=[1])
    a = x.double()
    t = a.tanh()
    truth = a.sigmoid() + t.exp() + (a.abs() + 1).log() + a.abs().sqrt()
    truth += (a.abs() + 1).rsqrt() + a / (t + 3) + torch.maximum(a, t) * torch.minimum(a, t)
    assert error(y[: len(x)], truth) < (FLOAT32_ERROR if dtype == "fp32" else BF16_ERROR)
    assert y[len(x) :].isnan().all()


@each_compiler
@each_number_of_warps
@each_dtype
def test_state_is_carried_through_sums_over_both_axes(
    machines: Machines, version: str, architecture: int, warps: int, dtype: str
) -> None:
    machine = machines.machine(version, CASES[f"carried-{dtype}-{warps}"], architecture)
    steps, m = 5, ROWS - 3
    x, state, largest = draw(steps, ROWS, COLUMNS, dtype=dtype), nothing(ROWS, COLUMNS), None
    largest = nothing(COLUMNS)
    machine.run((1,), [x, state, largest, m, steps], poisoned=[1, 2])
    truth = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
    for a in x.double():
        a[m:] = 0
        truth = 0.5 * truth + a.sum(1)[:, None] * a.sum(0)
    assert error(state[:m], truth[:m]) < FLOAT32_ERROR
    assert error(largest, truth.amax(0)) < FLOAT32_ERROR
    assert state[m:].isnan().all()


@each_compiler
@each_number_of_warps
@each_dtype
def test_products_of_matrices_are_right(
    machines: Machines, version: str, architecture: int, warps: int, dtype: str
) -> None:
    machine = machines.machine(version, CASES[f"product-{dtype}-{warps}"], architecture)
    k = 3 * SIZE
    x, y, z = draw(SIZE, k, dtype=dtype), draw(k, SIZE, dtype=dtype, seed=1), nothing(SIZE, SIZE)
    report = machine.run((1,), [x, y, z, k], poisoned=[2])
    assert report.count("mma") > 0
    assert error(z, x.double() @ y.double()) < (FLOAT32_ERROR if dtype == "bf16" else TF32_ERROR)


@each_compiler
@each_number_of_warps
@each_dtype
def test_values_change_lanes_through_shared_memory(
    machines: Machines, version: str, architecture: int, warps: int, dtype: str
) -> None:
    machine = machines.machine(version, CASES[f"transposed-{dtype}-{warps}"], architecture)
    x, y = draw(ROWS, COLUMNS, dtype=dtype), nothing(COLUMNS, ROWS, dtype=dtype)
    report = machine.run((1,), [x, y], poisoned=[1])
    assert report.count("st.shared") + report.count("stmatrix") > 0
    assert torch.equal(y, x.T)


@each_version
@each_number_of_warps
def test_integers_are_right(machines: Machines, version: str, warps: int) -> None:
    machine = machines.machine(version, CASES[f"whole_numbers-{warps}"], 90)
    rng = np.random.default_rng(0)
    a = rng.integers(-(2**31), 2**31, BLOCK).astype(np.int32)
    a[: BLOCK // 2] >>= 20
    y, divisor = np.zeros((8, BLOCK), np.int32), -13
    with np.errstate(over="ignore"):
        machine.run((1,), [a, y, divisor], poisoned=[1])
        wide = a.astype(np.int64)
        truth = [
            np.trunc(wide / divisor),
            np.fmod(wide, divisor),
            (wide.astype(np.uint32).astype(np.uint64) * (a ^ 0x5A5A).astype(np.uint32)) >> 32,
            (wide * wide) >> 17,
            a.astype(np.int8).astype(np.int32) + a.astype(np.int16),
            (a << 3) ^ (a >> 5) | (a.view(np.uint32) >> 7).view(np.int32),
            np.full(BLOCK, wide.sum() + wide.max() + wide.argmax()),
            np.where(a > 0, np.trunc(wide / 7), wide.cumsum()),
        ]
    for row, right in zip(y, truth, strict=True):
        np.testing.assert_array_equal(row, np.asarray(right).astype(np.int64).astype(np.int32))


@each_compiler
@each_number_of_warps
def test_conversions_between_types_are_right(
    machines: Machines, version: str, architecture: int, warps: int
) -> None:
    machine = machines.machine(version, CASES[f"converted-{warps}"], architecture)
    x, y = 20 * draw(BLOCK), nothing(6, BLOCK)
    machine.run((1,), [x, y], poisoned=[1])
    short, half = x.bfloat16(), x.half()
    exact = short.double() * short.double() + short.double()
    assert torch.equal(y[0], short.float())
    assert torch.equal(y[1], half.float())
    assert torch.equal(y[2], x.trunc())
    assert torch.equal(y[3], x.floor() + 100 * x.ceil())
    assert torch.equal(y[4], exact.bfloat16().float())
    assert torch.equal(y[5], (half + half).float())


@each_version
@each_number_of_warps
def test_atomic_updates_of_several_programs_add_up(
    machines: Machines, version: str, warps: int
) -> None:
    machine = machines.machine(version, CASES[f"counted-{warps}"], 90)
    x = np.arange(3 * BLOCK, dtype=np.int32) ** 2 % 1001
    counts, total = np.zeros(BINS, np.int32), np.zeros(1, np.float32)
    machine.run((3,), [x, counts, total])
    np.testing.assert_array_equal(counts, np.bincount(x % BINS, minlength=BINS))
    assert total[0] == x.sum()


@each_version
@each_number_of_warps
def test_threads_take_up_what_others_left_in_global_memory(
    machines: Machines, version: str, warps: int
) -> None:
    machine = machines.machine(version, CASES[f"reversed-{warps}"], 90)
    x, y, scratch = draw(3, BLOCK), nothing(3, BLOCK), nothing(3, BLOCK)
    machine.run((3,), [x, y, scratch], poisoned=[1, 2])
    assert torch.equal(y, 2 * x.flip(1))


@each_version
@each_number_of_warps
def test_programs_go_ways_of_their_own(machines: Machines, version: str, warps: int) -> None:
    machine = machines.machine(version, CASES[f"programs_of_their_own-{warps}"], 90)
    steps = np.array([[3, 0, 7], [8, 1, 4]], np.int32)
    y = np.full((2, 3, 2, BLOCK), np.nan, np.float32)
    machine.run((3, 2), [steps, y], poisoned=[1])
    sums = steps * (steps - 1) / 2 * np.where(steps % 2, -1, 1)
    np.testing.assert_array_equal(y[:, :, 0], np.repeat(sums[..., None], BLOCK, axis=2))
    np.testing.assert_array_equal(np.isnan(y[:, :, 1]).all(-1), steps % 2 == 0)


@each_compiler
def test_gluon_kernel_keeps_its_states_in_shared_memory(
    machines: Machines, version: str, architecture: int
) -> None:
    machine = machines.machine(version, CASES["stashed"], architecture)
    x, y = draw(KEPT, SIZE), nothing(KEPT, SIZE, SIZE)
    report = machine.run((1,), [x, y, KEPT], poisoned=[1])
    state, truth = torch.zeros(SIZE, SIZE, dtype=torch.float64), []
    for a in x.double():
        state = (0.9 * state + a[:, None] * (a - a @ state)).tanh()
        truth.append(state)
    assert error(y, torch.stack(truth[::-1])) < FLOAT32_ERROR
    # One warp has 32 of the 1024 numbers of a state in each lane.
    assert report.instructions["tanh.approx.f32"] == KEPT * SIZE


def test_views_are_written_where_they_lie(machines: Machines) -> None:
    machine = machines.machine(PINNED, CASES["copied_from"], 90)
    whole = torch.zeros(4, BLOCK)
    machine.run((1,), [draw(BLOCK), whole[2], 0])
    assert torch.equal(whole[2], draw(BLOCK))
    assert not whole[[0, 1, 3]].any()


def test_tanh_can_be_given_the_error_that_it_has_on_hardware(machines: Machines) -> None:
    x, exact, near = draw(KEPT, SIZE), nothing(KEPT, SIZE, SIZE), nothing(KEPT, SIZE, SIZE)
    rng = np.random.default_rng(0)

    def perturb(name: str, value: np.ndarray) -> np.ndarray:
        assert name == "tanh"
        return value * (1 + 2.0**-11 * rng.uniform(-1, 1, value.shape))

    machines.machine(PINNED, CASES["stashed"], 90).run((1,), [x, exact, KEPT])
    machines.machine(PINNED, CASES["stashed"], 90, perturb=perturb).run((1,), [x, near, KEPT])
    assert 1e-5 < error(near, exact.double()) < 2.0**-9


# Faults.


def spoilt(ptx: str, barrier: int) -> str:
    """The code without the barrier of this number."""
    lines = ptx.splitlines()
    places = [i for i, line in enumerate(lines) if line.strip().startswith("bar.")]
    del lines[places[barrier]]
    return "\n".join(lines)


@each_compiler
@each_number_of_warps
@each_dtype
def test_missing_barrier_between_a_write_and_a_read_is_found(
    machines: Machines, version: str, architecture: int, warps: int, dtype: str
) -> None:
    case = CASES[f"transposed-{dtype}-{warps}"]
    x, y = draw(ROWS, COLUMNS, dtype=dtype), nothing(COLUMNS, ROWS, dtype=dtype)
    barriers = machines.ptx(version, case, architecture).count("bar.")
    assert barriers > 0
    for i in range(barriers):
        machine = machines.machine(version, case, architecture, change=partial(spoilt, barrier=i))
        with pytest.raises(DataRace, match=r"no barrier lies between.* in `"):
            machine.run((1,), [x, y])
        assert y.isnan().all()


@each_version
@each_number_of_warps
def test_missing_barrier_in_global_memory_is_found(
    machines: Machines, version: str, warps: int
) -> None:
    machine = machines.machine(version, CASES[f"reversed-at-once-{warps}"], 90)
    with pytest.raises(DataRace, match="reads what thread"):
        machine.run((1,), [draw(BLOCK), nothing(BLOCK), nothing(BLOCK)])


@each_number_of_warps
def test_what_is_right_in_lockstep_alone_passes_when_races_are_not_looked_for(
    machines: Machines, warps: int
) -> None:
    machine = machines.machine(PINNED, CASES[f"reversed-at-once-{warps}"], 90, check_races=False)
    x, y = draw(BLOCK), nothing(BLOCK)
    machine.run((1,), [x, y, nothing(BLOCK)])
    assert torch.equal(y, 2 * x.flip(0))


@each_number_of_warps
def test_programs_may_not_read_what_others_write(machines: Machines, warps: int) -> None:
    machine = machines.machine(PINNED, CASES[f"shared_by_programs-{warps}"], 90)
    with pytest.raises(DataRace, match=r"of program 0 reads what thread \d+ of program 1 wrote"):
        machine.run((2,), [draw(2, BLOCK), nothing(2, BLOCK)])
    # Alone, a program reads its own part.
    x, y = draw(1, BLOCK), nothing(1, BLOCK)
    machine.run((1,), [x, y])
    assert torch.equal(y, x)


def test_access_outside_of_an_argument_is_found(machines: Machines) -> None:
    machine = machines.machine(PINNED, CASES["copied_from"], 90)
    x = draw(BLOCK)
    with pytest.raises(OutOfBounds, match=r"bytes from byte 1024 of argument 0, which has 1024"):
        machine.run((1,), [x, nothing(BLOCK), 4])
    with pytest.raises(OutOfBounds, match=r"from byte -16 of argument 0.*machine_kernels.py:"):
        machine.run((1,), [x, nothing(BLOCK), -4])
    with pytest.raises(OutOfBounds, match="of argument 1, which has 1008"):
        machine.run((1,), [x, nothing(BLOCK - 4), 0])


def test_write_to_what_may_only_be_read_is_found(machines: Machines) -> None:
    y = np.zeros(BLOCK, np.float32)
    y.flags.writeable = False
    with pytest.raises(OutOfBounds, match="may only be read"):
        machines.machine(PINNED, CASES["copied_from"], 90).run((1,), [draw(BLOCK), y, 0])


def test_read_of_what_was_never_written_is_found(machines: Machines) -> None:
    machine = machines.machine(PINNED, CASES["copied_from"], 90)
    with pytest.raises(NeverWritten, match=r"in `ld\.global"):
        machine.run((1,), [nothing(BLOCK), nothing(BLOCK), 0], poisoned=[0])


def test_address_that_the_launch_promised_to_align_is_found(machines: Machines) -> None:
    machine = machines.machine(PINNED, CASES["transposed-fp32-1"], 90)
    x = draw(ROWS * COLUMNS + 1)[1:]
    with pytest.raises(Misaligned, match="no multiple of 16"):
        machine.run((1,), [x, nothing(COLUMNS, ROWS)])


def test_wrong_number_of_arguments_is_refused(machines: Machines) -> None:
    machine = machines.machine(PINNED, CASES["copied_from"], 90)
    with pytest.raises(ValueError, match="2 arguments for the parameters"):
        machine.run((1,), [draw(BLOCK), nothing(BLOCK)])


def test_launch_that_cannot_be_compiled_says_why(machines: Machines) -> None:
    incomplete = replace(CASES["copied_from"], pointers={"x": "*fp32"})
    for version in VERSIONS:
        with pytest.raises(NotCompiled, match="not passed exactly once: y"):
            machines.machine(version, incomplete, 90)


def test_nothing_is_written_back_after_a_fault(machines: Machines) -> None:
    machine = machines.machine(PINNED, CASES["copied_from"], 90)
    y = nothing(BLOCK)
    with pytest.raises(PtxFault):
        machine.run((1,), [draw(BLOCK - 1), y, 0])
    assert y.isnan().all()
