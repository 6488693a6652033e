"""Loops and counts from the text of a disassembly, without a compiler."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.kernel_code.cases import Counted
from benchmarks.kernel_code.flow import Loop, find_loops
from benchmarks.kernel_code.measure import LoopCount, measure
from benchmarks.kernel_code.sass import count, read_listing, read_resources
from benchmarks.kernel_code.steps import LoopsDiffer, step_cost

RESOURCES = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function kernel:
  REG:{registers} STACK:{stack} SHARED:1024 LOCAL:{local} CONSTANT[0]:624 TEXTURE:0
"""


def listing(code: str) -> str:
    """What nvdisasm would print of lines `opcode operands`, labels on lines of their own."""
    lines = ["\t.target\tsm_90a", '\t.section\t.text.kernel,"ax",@progbits', "kernel:"]
    address = 0
    for line in filter(None, map(str.strip, code.splitlines())):
        if line.endswith(":"):
            lines.append(line)
            continue
        lines.append(f"        /*{address:04x}*/              {line} ;")
        address += 16
    return "\n".join([*lines, ".L_end:"])


def loops(code: str) -> list[Loop]:
    return find_loops(read_listing(listing(code)))


def opcodes(loop: Loop) -> str:
    return " ".join(instruction.opcode for instruction in loop.own)


def test_instruction_is_read_with_its_predicate_and_its_kind() -> None:
    code = read_listing(
        listing("""
            @!P0 BRA `(.L_x_0)
            MUFU.TANH R94, R94
            STG.E.U16 desc[UR16][R8.64], R62
            LDS.128 R64, [UR13+0x20]
            .L_x_0:
            EXIT
        """)
    )
    assert [(i.guard, i.kind, i.targets) for i in code.instructions] == [
        ("!P0", "BRA", [".L_x_0"]),
        (None, "MUFU.TANH", []),
        (None, "STG", []),
        (None, "LDS", []),
        (None, "EXIT", []),
    ]
    assert code.addresses[".L_x_0"] == 0x40
    assert count(code.instructions)["LDS"] == 1


def test_disassembly_of_two_kernels_or_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one kernel"):
        read_listing(listing("EXIT") + listing("EXIT"))
    with pytest.raises(ValueError, match="no instruction"):
        read_listing("\t.target\tsm_90a\n")


def test_resources_are_read() -> None:
    found = read_resources(RESOURCES.format(registers=96, stack=8, local=16))
    assert (found.registers, found.stack_bytes, found.local_bytes) == (96, 8, 16)
    with pytest.raises(ValueError, match="not the resources"):
        read_resources(RESOURCES.format(registers=96, stack=8, local=16) * 2)


def test_loop_whose_last_part_stands_behind_its_exit_is_counted_whole() -> None:
    (loop,) = loops("""
        MOV R0, RZ
        .L_x_0:
        LDG.E R1, [R2.64]
        ISETP.NE.AND P0, PT, R0, R3, PT
        @!P0 EXIT
        FMUL R1, R1, R1
        BRA `(.L_x_0)
        .L_x_1:
        BRA `(.L_x_1)
    """)
    assert opcodes(loop) == "LDG.E ISETP.NE.AND EXIT FMUL BRA"
    assert (loop.address, loop.depth, loop.guarded) == (0x10, 0, 0)


def test_seldom_part_at_the_end_of_the_kernel_belongs_to_its_loop() -> None:
    (loop,) = loops("""
        .L_x_0:
        @P1 BRA `(.L_x_2)
        .L_x_1:
        FADD R0, R0, R1
        @P0 BRA `(.L_x_0)
        STG.E [R2.64], R0
        EXIT
        .L_x_2:
        MUFU.RCP R1, R1
        BRA `(.L_x_1)
    """)
    assert opcodes(loop) == "BRA FADD BRA MUFU.RCP BRA"
    assert loop.guarded == 2


def test_slow_copy_of_a_shuffle_is_not_counted() -> None:
    (loop,) = loops("""
        .L_x_0:
        BRA.DIV UR4, `(.L_x_2)
        SHFL.BFLY PT, R1, R0, 0x1, 0x1f
        .L_x_1:
        FADD R0, R0, R1
        @P0 BRA `(.L_x_0)
        EXIT
        .L_x_2:
        WARPSYNC.COLLECTIVE R5, `(.L_x_3)
        .L_x_3:
        SHFL.BFLY PT, R1, R0, 0x1, 0x1f
        BRA `(.L_x_1)
    """)
    assert opcodes(loop) == "BRA.DIV SHFL.BFLY FADD BRA"


def test_branch_that_asks_a_predicate_among_its_operands_may_go_on() -> None:
    (loop,) = loops("""
        .L_x_0:
        FADD R0, R0, R1
        BRA.U UP0, `(.L_x_0)
        EXIT
    """)
    assert opcodes(loop) == "FADD BRA.U"


def test_lanes_that_wait_for_each_other_go_on_where_they_were_told() -> None:
    (loop,) = loops("""
        .L_x_0:
        BSSY B0, `(.L_x_2)
        @P1 BRA `(.L_x_1)
        MUFU.EX2 R0, R0
        BSYNC B0
        .L_x_1:
        FMUL R0, R0, R0
        BSYNC B0
        NOP
        .L_x_2:
        @P0 BRA `(.L_x_0)
        EXIT
    """)
    # The NOP stands behind a BSYNC that never falls through.
    assert opcodes(loop) == "BSSY BRA MUFU.EX2 BSYNC FMUL BSYNC BRA"
    assert loop.guarded == 4


def test_lanes_that_meet_go_on_where_the_last_of_several_told_them() -> None:
    (loop,) = loops("""
        .L_x_0:
        BSSY B0, `(.L_x_2)
        @P1 BRA `(.L_x_1)
        MUFU.EX2 R0, R0
        .L_x_1:
        BSYNC B0
        .L_x_2:
        @P0 BRA `(.L_x_0)
        BSSY B0, `(.L_x_4)
        @P1 BRA `(.L_x_3)
        MUFU.RCP R0, R0
        .L_x_3:
        BSYNC B0
        .L_x_4:
        EXIT
    """)
    assert opcodes(loop) == "BSSY BRA MUFU.EX2 BSYNC BRA"
    with pytest.raises(ValueError, match="without a BSSY"):
        loops("BSYNC B0\nEXIT")


def test_loop_is_left_by_a_call_that_never_returns() -> None:
    (loop,) = loops("""
        .L_x_1:
        FMUL R0, R0, R0
        @!P0 CALL.REL.NOINC `(.L_x_0)
        BRA `(.L_x_1)
        .L_x_0:
        STG.E [R2.64], R0
        EXIT
    """)
    assert opcodes(loop) == "FMUL CALL.REL.NOINC BRA"


def test_body_of_a_function_is_not_part_of_the_loop_that_calls_it() -> None:
    (loop,) = loops("""
        .L_x_1:
        CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath)
        @P0 BRA `(.L_x_1)
        EXIT
        $__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath:
        MUFU.RCP R0, R0
        RET.REL.NODEC R2, `(kernel)
    """)
    assert opcodes(loop) == "CALL.REL.NOINC BRA"


def test_jump_to_an_address_in_a_register_is_refused() -> None:
    with pytest.raises(ValueError, match="BRX at 0x0 is an indirect jump"):
        loops("BRX R2 -0x10\nEXIT")


def test_loop_with_two_entries_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one entry"):
        loops("""
            @P0 BRA `(.L_x_1)
            .L_x_0:
            FADD R0, R0, R1
            .L_x_1:
            FMUL R0, R0, R1
            @P1 BRA `(.L_x_0)
            EXIT
        """)


@dataclass
class Program:
    """The text of a random program as it grows, and its loops by their first address."""

    lines: list[str] = field(default_factory=list)
    later: list[list[str]] = field(default_factory=list)
    labels: int = 0
    own: dict[str, Counter[str]] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)

    def label(self) -> str:
        self.labels += 1
        return f".L_x_{self.labels}"


# A program is a list of parts: work, a loop over a program, or a program that may be gone around,
# which stands where it is or at the end of the kernel.
Part = tuple[str, object]
PROGRAMS: st.SearchStrategy[list[Part]] = st.recursive(
    st.lists(st.tuples(st.just("work"), st.sampled_from(["FFMA", "SHFL", "LDG"])), max_size=3),
    lambda inner: st.lists(
        st.one_of(
            st.tuples(st.just("work"), st.sampled_from(["FADD", "FMUL"])),
            st.tuples(st.just("loop"), inner),
            st.tuples(st.just("around"), inner),
            st.tuples(st.just("away"), inner),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


def write(program: Program, parts: list[Part], inside: tuple[str, ...], lines: list[str]) -> None:
    """Write parts that are inside of loops named by their labels, the innermost last."""

    def put(line: str) -> None:
        lines.append(line)
        if inside:
            program.own[inside[-1]][line.split()[1 if line.startswith("@") else 0]] += 1

    for kind, what in parts:
        if kind == "work":
            put(f"{what} R0, R1, R2")
            continue
        assert isinstance(what, list)
        label, other = program.label(), program.label()
        if kind == "loop":
            lines.append(f"{label}:")
            lines.append("NOP")  # else a loop at the beginning of this one would be the same
            program.own[label], program.depth[label] = Counter(["NOP"]), len(inside)
            write(program, what, (*inside, label), lines)
            lines.append(f"@P0 BRA `({label})")
            program.own[label]["BRA"] += 1
        elif kind == "around":
            put(f"@P1 BRA `({label})")
            write(program, what, inside, lines)
            lines.append(f"{label}:")
        else:
            put(f"@P2 BRA `({label})")
            lines.append(f"{other}:")
            away = [f"{label}:"]
            write(program, what, inside, away)
            away.append(f"BRA `({other})")
            if inside:
                program.own[inside[-1]]["BRA"] += 1
            program.later.append(away)


@given(PROGRAMS)
def test_loops_of_any_program_are_those_that_were_written(parts: list[Part]) -> None:
    program = Program()
    write(program, parts, (), program.lines)
    text = "\n".join([*program.lines, "EXIT", *(line for away in program.later for line in away)])
    code = read_listing(listing(text))
    found = {
        loop.address: (loop.depth, Counter(i.opcode for i in loop.own)) for loop in find_loops(code)
    }
    written = {
        code.addresses[label]: (program.depth[label], own) for label, own in program.own.items()
    }
    assert found == written


def test_measured_are_spills_and_what_a_pass_of_a_loop_issues() -> None:
    text = listing("""
        STL [R1], R4
        .L_x_0:
        LDL R4, [R1]
        MUFU.TANH R4, R4
        SHFL.BFLY PT, R5, R4, 0x1, 0x1f
        @P0 BRA `(.L_x_0)
        EXIT
    """)
    found = measure(text, RESOURCES.format(registers=64, stack=8, local=0), 128)
    assert found.spills
    assert (found.local_stores, found.local_loads, found.stack_bytes) == (1, 1, 8)
    assert (found.registers, found.shared_bytes, found.instructions) == (64, 128, 6)
    kinds = {"BRA": 1, "LDL": 1, "MUFU.TANH": 1, "SHFL": 1}
    assert found.loops == [LoopCount(depth=0, instructions=4, guarded=0, kinds=kinds)]
    assert type(found).decode(found.encode()) == found


def loop_count(depth: int = 0, guarded: int = 0, **kinds: int) -> LoopCount:
    named = {kind.replace("_", "."): number for kind, number in kinds.items()}
    return LoopCount(depth, sum(named.values()), guarded, named)


def test_outer_loop_counts_by_its_share_of_a_step() -> None:
    found = [
        loop_count(STG=32, SHFL=16, guarded=8),
        loop_count(1, MUFU_TANH=32, SHFL=5, FFMA=63),
    ]
    cost = step_cost(found, {"segment": 16, "step": 1})
    assert cost.by_loop == {"segment": 3, "step": 100}
    assert (cost.instructions, cost.guarded, cost.shuffles, cost.specials) == (103, 0.5, 6, 32)


def test_loop_for_the_steps_that_are_left_is_not_counted_again() -> None:
    found = [loop_count(MUFU_TANH=8, FFMA=20), loop_count(MUFU_TANH=2, FFMA=6)]
    cost = step_cost(found, {"step": Counted("MUFU.TANH", 2)})
    assert (cost.instructions, cost.covered) == (7, {"step": 4})


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "no loop for step"),
        ([loop_count(MUFU_TANH=3)], "no loop for step"),
        ([loop_count(FADD=3)], "no loop for step"),
        ([loop_count(MUFU_TANH=2)] * 2, "loops other than step"),
        # Deeper, or with other work in it: not what is left of the first.
        ([loop_count(MUFU_TANH=8), loop_count(1, MUFU_TANH=2)], "loops other than step"),
        ([loop_count(MUFU_TANH=8), loop_count(MUFU_TANH=2, SHFL=1)], "loops other than step"),
    ],
)
def test_loops_that_are_not_the_declared_ones_are_refused(
    found: list[LoopCount], message: str
) -> None:
    with pytest.raises(LoopsDiffer, match=message):
        step_cost(found, {"step": Counted("MUFU.TANH", 2)})
