"""Every kernel, compiled for three architectures under three Tritons, against what is on record."""

import pytest

from benchmarks.kernel_code import budgets
from benchmarks.kernel_code.cases import ARCHITECTURES, BATCH, CASES, WANTED
from benchmarks.kernel_code.children import NotCompiled
from benchmarks.kernel_code.steps import step_cost
from tests.kernels.compilation import Compilation
from tests.kernels.sample_cases import LENGTH, SAMPLES, kernels_of
from tests.kernels.tritons import OLD, PINNED, ROOT, VERSIONS, is_compiled

pytestmark = pytest.mark.timeout(900)  # for the compiler, on a machine that has other work

each_version = pytest.mark.parametrize("version", VERSIONS)
each_compiler = pytest.mark.parametrize(
    ("version", "architecture"),
    [(x, number) for x in VERSIONS for number in ARCHITECTURES if is_compiled(x, number)],
)


# What reads machine code, held to kernels of which it is known what they must come to.


@pytest.mark.parametrize(
    ("version", "case", "architecture"),
    [
        *((x, "one-loop", a) for x in VERSIONS for a in ARCHITECTURES if is_compiled(x, a)),
        *((version, "gluon-loop", 90) for version in VERSIONS),
    ],
)
def test_counts_of_a_loop_are_those_of_its_source(
    compilation: Compilation, version: str, case: str, architecture: int
) -> None:
    answer = compilation.answer(version, case, architecture)
    (loop,) = answer.measured.loops
    # A sum over 32 lanes takes five exchanges and five additions.
    source = {"LDG": 1, "STG": 1, "SHFL": 5, "FADD": 5, "FMUL": 1, "MUFU.TANH": 1, "BRA": 1}
    found = loop.kinds | {"FADD": loop.kinds["FADD"] + loop.kinds["FFMA"] - 1}
    assert {kind: found[kind] for kind in source} == source
    assert sum(loop.kinds.values()) == loop.instructions < 40
    assert (loop.depth, loop.guarded) == (0, 0)


@each_compiler
def test_loop_of_which_ptxas_writes_the_exit_as_a_call_is_found(
    compilation: Compilation, version: str, architecture: int
) -> None:
    measured = compilation.answer(version, "many-values", architecture).measured
    (loop,) = measured.loops
    assert (loop.kinds["MUFU.TANH"], loop.kinds["FMUL"]) == (128, 128)
    assert loop.kinds.get("CALL", 0) == (architecture < 90)
    assert 128 < measured.registers < 168
    assert not measured.spills


@each_version
def test_loops_inside_a_loop_count_for_themselves(compilation: Compilation, version: str) -> None:
    loops = compilation.answer(version, "nested-loops", 90).measured.loops
    assert [loop.depth for loop in loops] == [0, 1, 1]
    assert [loop.kinds.get("MUFU.TANH", 0) for loop in loops] == [0, 32, 64]
    assert [loop.kinds.get("FADD", 0) for loop in loops] == [32, 32, 0]
    cost = step_cost(loops, SAMPLES["nested-loops"].loops)
    assert cost.instructions == sum(
        loop.instructions / steps for loop, steps in zip(loops, (LENGTH, 1, 1), strict=True)
    )


@each_version
def test_steps_that_are_written_out_in_one_pass_are_told_apart(
    compilation: Compilation, version: str
) -> None:
    short = compilation.answer(version, "short-loop", 90).measured.loops
    assert [loop.kinds["MUFU.TANH"] for loop in short] == [4, 1]  # four steps, and what is left
    cost = step_cost(short, SAMPLES["short-loop"].loops)
    assert (cost.covered, cost.specials) == ({"step": 4}, 1)

    long = compilation.answer(version, "partly-unrolled-loops", 90).measured.loops
    cost = step_cost(long, SAMPLES["partly-unrolled-loops"].loops)
    assert (cost.covered, cost.specials) == ({"segment": 16, "replay": 4, "reverse": 1}, 96)


@each_version
def test_registers_that_run_out_are_seen(compilation: Compilation, version: str) -> None:
    answer = compilation.answer(version, "too-few-registers", 90)
    measured = answer.measured
    assert measured.registers == 64
    # 128 values have to fit beside addresses into 64 registers of 4 bytes.
    assert measured.stack_bytes > (128 - 64) * 4
    assert min(measured.local_stores, measured.local_loads) > 128 - 64
    found = budgets.record_of(measured, SAMPLES["too-few-registers"].loops, answer.warps)
    assert any("it spills" in wrong for wrong in budgets.differences(None, found))


@each_version
def test_launch_that_leaves_an_argument_out_is_refused(
    compilation: Compilation, version: str
) -> None:
    with pytest.raises(NotCompiled, match="one_loop: not passed exactly once: p_y"):
        compilation.answer(version, "argument-left-out", 90)


@each_version
def test_launch_of_a_kernel_that_triton_specializes_is_refused(
    compilation: Compilation, version: str
) -> None:
    with pytest.raises(NotCompiled, match="specialized on number"):
        compilation.answer(version, "specialized", 90)


@each_version
def test_process_that_ends_says_so_and_keeps_what_it_had_answered(
    compilation: Compilation, version: str
) -> None:
    with pytest.raises(NotCompiled, match="the process ended with 3"):
        compilation.answer(version, "ends-the-process", 90)
    assert compilation.answer(version, "one-loop", 90).triton == version


@each_version
def test_nothing_that_compiles_needs_torch(compilation: Compilation, version: str) -> None:
    answer = compilation.answer(version, "e88-32x32-forward", 90)
    assert (answer.triton, answer.torch) == (version, False)
    assert answer.ptx.read_text().count(".entry") == 1


# The kernels themselves.


def test_installed_triton_is_the_one_that_the_numbers_are_of() -> None:
    pinned = [
        line.removeprefix("triton==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("triton==")
    ]
    assert pinned == [PINNED]
    assert set(budgets.load()) == set(VERSIONS)


def test_every_case_is_on_record_and_nothing_else_is() -> None:
    recorded = {
        (version, architecture, case)
        for version, architectures in budgets.load().items()
        for architecture, cases in architectures.items()
        for case in cases
    }
    assert recorded == {
        (version, f"sm_{architecture}", case)
        for version in VERSIONS
        for case, architecture in WANTED
    }


@pytest.mark.parametrize(
    ("version", "case", "architecture"),
    [(version, *pair) for version in VERSIONS for pair in kernels_of(version)],
)
def test_machine_code_is_within_its_budget(
    compilation: Compilation, version: str, case: str, architecture: int
) -> None:
    answer = compilation.answer(version, case, architecture)
    found = budgets.record_of(answer.measured, CASES[case].loops, answer.warps)
    recorded = budgets.load().get(version, {}).get(f"sm_{architecture}", {}).get(case)
    assert budgets.differences(recorded, found) == []


# What a first design of these kernels came to for sm_90.  Instructions and shuffles are a step's of
# one head, whose work may be shared by programs or take a part of one.
LIMITS = [
    (PINNED, "e88-16x16-forward", {"instructions": 184, "shuffles": 10, "registers": 2 * 64}),
    (PINNED, "e88-32x32-forward", {"instructions": 295, "shuffles": 10, "registers": 96}),
    # The design had silu of q, k and v outside: three instructions for each number of theirs.
    (
        PINNED,
        "e88-64x64-forward",
        {"instructions": 936 + 2 * 3 * (64 + 64 + 32) / 32, "shuffles": 10},
    ),
    (OLD, "e88-32x32-forward", {"instructions": 422}),
    (PINNED, "e88-32x32-backward", {"instructions": 1582, "shuffles": 350, "registers": 252}),
    (PINNED, "e88-64x64-backward", {"instructions": 4 * 2275, "shuffles": 4 * 415}),
    (OLD, "e88-32x32-backward", {"instructions": 1738, "registers": 242}),
    (PINNED, "e88-32x32-backward-gluon", {"instructions": 1335, "shuffles": 101}),
    (OLD, "e88-32x32-backward-gluon", {"instructions": 1268, "shuffles": 101, "registers": 168}),
]


@pytest.mark.parametrize(("version", "case", "limits"), LIMITS)
def test_kernels_are_no_worse_than_they_were_designed_to_be(
    compilation: Compilation, version: str, case: str, limits: dict[str, float]
) -> None:
    answer = compilation.answer(version, case, 90)
    cost = step_cost(answer.measured.loops, CASES[case].loops)
    layer = CASES[case].layer
    assert layer is not None
    warps_of_a_head = layer.programs * answer.warps / (BATCH * layer.heads)
    found = {
        "instructions": cost.instructions * warps_of_a_head,
        "shuffles": cost.shuffles * warps_of_a_head,
        "registers": answer.measured.registers,
    }
    worse = {name: found[name] for name, limit in limits.items() if found[name] > limit}
    assert worse == {}
    assert not answer.measured.spills
