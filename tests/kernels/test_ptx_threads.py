"""Threads of the machine among themselves: branches, barriers, shuffles, and races."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kernels.ptx.faults import (
    DataRace,
    Divergence,
    NeverWritten,
    PtxFault,
    Trapped,
    Unsupported,
)
from tests.kernels.ptx.machine import PtxMachine, Report
from tests.kernels.ptx.races import WARP, Clock, Shadow

Array = NDArray[Any]


def module(code: str) -> str:
    """A kernel whose %t is the number of a thread, %out its word of the result, %s its own bytes.

    %p, %q are predicates, %a to %e words, %w is the number of the thread's warp.
    """
    return f"""
.version 8.0
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry tested(.param .u64 .ptr .global .align 1 tested_out, .param .u32 tested_n)
{{
    .reg .pred %p, %q;
    .reg .b32 %t, %w, %s, %n, %a, %b, %c, %d, %e;
    .reg .b64 %out, %first;
    ld.param.b64 %first, [tested_out];
    ld.param.b32 %n, [tested_n];
    mov.u32 %a, %ctaid.x;
    mov.u32 %t, %ntid.x;
    mul.lo.s32 %a, %a, %t;
    mov.u32 %t, %tid.x;
    shr.u32 %w, %t, 5;
    add.s32 %a, %a, %t;
    mad.wide.u32 %out, %a, 4, %first;
    shl.b32 %s, %t, 2;
    mov.b32 %b, global_smem;
    add.s32 %s, %s, %b;
    {code}
    ret;
}}
"""


def execute(
    code: str, *, warps: int = 1, programs: int = 1, n: int = 0, **settings: Any
) -> tuple[Array, Report]:
    """The words that the threads leave at %out, [programs, threads], and the report."""
    out = np.zeros((programs, warps * WARP), np.uint32)
    machine = PtxMachine(module(code), num_warps=warps, shared_bytes=4 * warps * WARP, **settings)
    return out, machine.run((programs,), [out, n])


THREADS = np.arange(WARP)


# Branches.

LOOP_OF_OWN_LENGTH = """
    mov.b32 %a, 0;
    mov.b32 %b, 0;
again:
    setp.ge.u32 %p, %a, %t;
    @%p bra done;
    add.s32 %a, %a, 1;
    add.s32 %b, %b, %a;
    bra again;
done:
"""


def test_threads_loop_as_often_as_each_of_them_should() -> None:
    out, _ = execute(LOOP_OF_OWN_LENGTH + "st.global.b32 [%out], %b;", warps=2, programs=2)
    t = np.arange(2 * WARP)
    np.testing.assert_array_equal(out, np.broadcast_to(t * (t + 1) // 2, out.shape))


def test_threads_that_parted_meet_again_before_a_shuffle() -> None:
    out, _ = execute(
        LOOP_OF_OWN_LENGTH + "shfl.sync.idx.b32 %c, %b, 31, 31, -1; st.global.b32 [%out], %c;"
    )
    np.testing.assert_array_equal(out, np.full((1, WARP), 31 * 32 // 2))


def test_threads_meet_after_a_part_that_stands_behind_their_meeting() -> None:
    """A compiler may put a rare part at the end, from which a thread comes back."""
    out, _ = execute("""
        mov.b32 %a, 1;
        setp.lt.u32 %p, %t, 5;
        @%p bra rare;
    meeting:
        redux.sync.add.s32 %b, %a, -1;
        st.global.b32 [%out], %b;
        ret;
    rare:
        mov.b32 %a, 100;
        bra meeting;
    """)
    np.testing.assert_array_equal(out, np.full((1, WARP), 5 * 100 + 27))


def test_instructions_are_counted_for_warps_that_execute_them() -> None:
    _, report = execute(
        """
        setp.eq.u32 %p, %w, 1;
        @%p bra done;
        add.s32 %a, %a, 1;
    done:
        """,
        warps=4,
        programs=2,
    )
    assert report.instructions["setp.eq.u32"] == 8
    assert report.instructions["bra"] == 8
    assert report.count("add.s32") == 8 * 2 + 6


def test_thread_that_has_ended_is_not_waited_for_by_its_program() -> None:
    out, _ = execute(
        """
        setp.lt.u32 %p, %t, 40;
        @%p ret;
        bar.sync 0;
        st.global.b32 [%out], 7;
        """,
        warps=2,
    )
    np.testing.assert_array_equal(out[0], np.where(np.arange(2 * WARP) < 40, 0, 7))


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("@%p bra else; bar.sync 0; else: bar.sync 0;", "bar.sync"),
        ("@%p bra else; bar.warp.sync -1; else:", "bar.warp.sync"),
        ("@%p bra else; shfl.sync.bfly.b32 %a, %t, 1, 31, -1; else:", "shfl.sync"),
        ("@%p ret; shfl.sync.bfly.b32 %a, %t, 1, 31, -1;", "shfl.sync"),
    ],
)
def test_waiting_for_threads_that_do_not_come_is_a_fault(code: str, what: str) -> None:
    with pytest.raises(Divergence, match=what):
        execute(f"setp.eq.u32 %p, %t, 3; {code}")


def test_trap_that_a_thread_reaches_is_a_fault() -> None:
    code = "setp.ne.u32 %p, %t, %n; @%p bra fine; trap; fine:"
    with pytest.raises(Trapped):
        execute(code, n=7)
    execute(code, n=WARP)


@pytest.mark.parametrize(
    "code",
    [
        "sad.s32 %a, %a, %a, %a;",
        "add.rz.f32 %a, %a, %a;",
        "fma.rn.f64 %first, %first, %first, %first;",
        "shfl.sync.bfly.b32 %a, %t, 1, 31, 15;",
        "bar.sync 0, 16;",
        "bar.arrive 0, 32;",
        "ld.volatile.global.b32 %a, [%first];",
        "ld.global.b128 %a, [%first];",
        "mov.b32 %a, %clock;",
        "@%p bar.sync 0;",
        "add.s32 %a, %missing, 1;",
        "add.f32 %a, %a, 1;",
        "mov.b64 %first, %a;",
        "add.u64 %a, %first, %first;",
        "shl.b128 %a, %a, 1;",
        "cvt.rn.f32.e4m3 %a, %a;",
    ],
)
def test_what_the_machine_does_not_have_is_refused_by_name(code: str) -> None:
    with pytest.raises(Unsupported) as raised:
        execute(code, warps=1)
    assert code.rstrip(";") in str(raised.value) or "%missing" in str(raised.value)


def test_division_by_zero_is_a_fault_of_the_threads_that_do_it() -> None:
    guarded = "setp.ne.u32 %p, %t, 0; @%p div.u32 %a, 100, %t;"
    execute(guarded)
    with pytest.raises(PtxFault, match="division by zero"):
        execute("div.u32 %a, 100, %t;")


# Shuffles, votes.


def shuffled(mode: str, lane: int, source: int, clamp: int) -> tuple[int, bool]:
    """The lane that is read, and whether it is the one asked for, in the words of PTX's manual."""
    cval, segmask = clamp & 31, clamp >> 8 & 31
    max_lane = (lane & segmask) | (cval & ~segmask)
    min_lane = lane & segmask
    if mode == "up":
        j = lane - source
        found = j >= max_lane
    elif mode == "down":
        j = lane + source
        found = j <= max_lane
    elif mode == "bfly":
        j = lane ^ source
        found = j <= max_lane
    else:
        j = min_lane | (source & ~segmask)
        found = j <= max_lane
    return (j if found else lane), found


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("segment", [32, 16, 8])
@pytest.mark.parametrize("source", [0, 1, 3, 16, 31])
def test_shuffle_reads_the_lane_that_its_definition_says(
    mode: str, segment: int, source: int
) -> None:
    clamp = (32 - segment) << 8 | (0 if mode == "up" else 31)
    expected = [shuffled(mode, lane, source, clamp) for lane in range(WARP)]
    words = [64 * found + lane for lane, found in expected]
    for operand, given_clamp in ((str(source), str(clamp)), ("%d", "%e")):
        out, _ = execute(
            f"""
            mov.b32 %d, {source};
            mov.b32 %e, {clamp};
            shfl.sync.{mode}.b32 %a|%p, %t, {operand}, {given_clamp}, -1;
            selp.b32 %b, 64, 0, %p;
            and.b32 %a, %a, 31;
            add.s32 %a, %a, %b;
            st.global.b32 [%out], %a;
            """,
            warps=2,
        )
        np.testing.assert_array_equal(out, np.tile(words, (1, 2)))


def test_votes_and_reductions_are_of_a_warp() -> None:
    out, _ = execute(
        """
        setp.eq.u32 %p, %t, 33;
        vote.sync.any.pred %q, %p, -1;
        selp.b32 %a, 1, 0, %q;
        vote.sync.ballot.b32 %b, %p, -1;
        redux.sync.max.u32 %c, %t, -1;
        mad.lo.s32 %a, %b, 100, %a;
        mad.lo.s32 %a, %c, 1000, %a;
        st.global.b32 [%out], %a;
        """,
        warps=2,
    )
    np.testing.assert_array_equal(out[0], np.repeat([31_000, 63_201], WARP))


# Races.

WRITE = "st.shared.b32 [%s], %t;"
NEIGHBOUR = "xor.b32 %a, %s, 4; ld.shared.b32 %b, [%a];"
OTHER_WARP = "xor.b32 %a, %s, 128; ld.shared.b32 %b, [%a];"
KEEP = "st.global.b32 [%out], %b;"


@pytest.mark.parametrize(
    ("barrier", "read", "is_ordered"),
    [
        ("", NEIGHBOUR, False),
        ("shfl.sync.bfly.b32 %c, %t, 1, 31, -1;", NEIGHBOUR, False),
        ("fence.acq_rel.cta;", NEIGHBOUR, False),
        ("bar.warp.sync -1;", NEIGHBOUR, True),
        ("bar.sync 0;", NEIGHBOUR, True),
        ("bar.warp.sync -1;", OTHER_WARP, False),
        ("bar.sync 0;", OTHER_WARP, True),
        ("barrier.sync.aligned 0, 64;", OTHER_WARP, True),
        ("", "ld.shared.b32 %b, [%s];", True),
    ],
)
def test_barriers_order_reads_after_writes(barrier: str, read: str, is_ordered: bool) -> None:
    code = WRITE + barrier + read + KEEP
    if is_ordered:
        execute(code, warps=2)
    else:
        with pytest.raises(DataRace, match="reads what thread"):
            execute(code, warps=2)


@pytest.mark.parametrize(
    ("barrier", "is_ordered"), [("", False), ("bar.warp.sync -1;", False), ("bar.sync 0;", True)]
)
def test_barriers_order_writes_after_reads(barrier: str, is_ordered: bool) -> None:
    code = f"{WRITE} bar.sync 0; {OTHER_WARP} {barrier} st.shared.b32 [%s], %w;"
    if is_ordered:
        execute(code, warps=2)
    else:
        with pytest.raises(DataRace, match="writes what thread"):
            execute(code, warps=2)


def test_threads_may_write_the_same_to_one_address_but_nothing_else() -> None:
    execute("mov.b32 %a, global_smem; st.shared.b32 [%a], 5;", warps=2)
    different = "mov.b32 %a, global_smem; st.shared.b32 [%a], %t;"
    with pytest.raises(DataRace, match="at once"):
        execute(different)
    with pytest.raises(DataRace, match="at once"):
        execute(different, warps=2)


def test_shared_memory_of_a_program_is_its_own_and_empty_at_first() -> None:
    with pytest.raises(NeverWritten):
        execute(NEIGHBOUR)
    out, _ = execute(
        f"mov.u32 %c, %ctaid.x; st.shared.b32 [%s], %c; bar.sync 0; {NEIGHBOUR} {KEEP}", programs=3
    )
    np.testing.assert_array_equal(out, np.repeat([[0], [1], [2]], WARP, axis=1))


def test_what_is_updated_atomically_may_not_be_read_plainly() -> None:
    with pytest.raises(DataRace, match="an atomic update"):
        execute("red.global.add.u32 [%first], 1; bar.sync 0; ld.global.b32 %a, [%first];")


@dataclass(frozen=True)
class Access:
    """One thread's, or `many` threads', from `thread` on."""

    writes: bool
    thread: int
    many: int


@dataclass(frozen=True)
class Barrier:
    """Of the program, or of the warp, that `thread` is in."""

    of_warp: bool
    thread: int


PROGRAMS, WARPS = 2, 2
THREADS_EACH = WARPS * WARP
# Threads of all the neighbourhoods that there are, and so few that they meet often.
EVENTS: tuple[Access | Barrier, ...] = (
    *(Access(writes, thread, 1) for writes in (False, True) for thread in (0, 1, WARP, 2 * WARP)),
    Access(False, 0, 2),
    Access(False, 0, WARP + 1),
    Access(False, 1, THREADS_EACH),
    *(Barrier(of_warp=True, thread=thread) for thread in (0, WARP)),
    *(Barrier(of_warp=False, thread=thread) for thread in (0, THREADS_EACH)),
)


class Witness:
    """All that was ever done to one place, each access with the barriers that came after it."""

    def __init__(self) -> None:
        self.past: list[tuple[bool, int, set[str]]] = []

    def meets(self, event: Barrier) -> None:
        groups = {f"warp {event.thread // WARP}"}
        if not event.of_warp:
            program = event.thread // THREADS_EACH
            groups = {f"warp {program * WARPS + i}" for i in range(WARPS)} | {f"all {program}"}
        for _, _, passed in self.past:
            passed |= groups

    def races(self, event: Access) -> bool:
        threads = range(event.thread, event.thread + event.many)
        raced = any(
            (event.writes or wrote) and not self._is_ordered(other, passed, thread)
            for wrote, other, passed in self.past
            for thread in threads
        )
        self.past += [(event.writes, thread, set()) for thread in threads]
        return raced

    @staticmethod
    def _is_ordered(other: int, passed: set[str], thread: int) -> bool:
        if other == thread:
            return True
        if other // WARP == thread // WARP and f"warp {thread // WARP}" in passed:
            return True
        program = thread // THREADS_EACH
        return other // THREADS_EACH == program and f"all {program}" in passed


def test_shadow_finds_the_races_that_a_record_of_everything_finds() -> None:
    rng = np.random.default_rng(0)
    cases: list[tuple[Access | Barrier, ...]] = list(itertools.product(EVENTS, repeat=3))
    cases += [tuple(EVENTS[i] for i in rng.integers(0, len(EVENTS), 6)) for _ in range(4000)]
    raced = sum(shadow_and_witness_agree(case) for case in cases)
    assert 1000 < raced < len(cases) - 1000


def shadow_and_witness_agree(events: Sequence[Access | Barrier]) -> bool:
    """Whether there is a race among the events, of which both must say the same."""
    clock = Clock(PROGRAMS, THREADS_EACH)
    shadow, witness = Shadow(1, clock, written=True), Witness()
    for event in events:
        if isinstance(event, Barrier):
            witness.meets(event)
            size = WARP if event.of_warp else THREADS_EACH
            start = event.thread // size * size
            meet = clock.warp_barrier if event.of_warp else clock.program_barrier
            meet(np.arange(start, start + size))
            continue
        threads = np.arange(event.thread, event.thread + event.many)
        granules = np.zeros(len(threads), np.int64)
        expected, found = witness.races(event), False
        try:
            if event.writes:
                shadow.write(granules, threads, np.ones(len(threads), bool))
            else:
                shadow.read(granules, threads)
        except DataRace:
            found = True
        assert found == expected, events
        if found:
            return True
    return False
