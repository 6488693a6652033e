"""Microbenchmark kernels that execute a single kind of instruction.

Each thread runs several dependent chains of one instruction: the dependency prevents the compiler
from removing work, and the number of chains hides the latency.
"""

import triton
import triton.language as tl

from elmanctl.kernels.launch import Launch

BLOCK, CHAINS, NUM_WARPS = 128, 8, 4
"""Threads per program, chains per thread, and warps per program."""

KINDS = ("tanh", "exp2", "fma")


@triton.jit
def one_instruction_kernel(
    out,
    rounds,
    KIND: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
    CHAINS: tl.constexpr,  # noqa: N803
    UNROLLED: tl.constexpr,  # noqa: N803
    INTERPRETED: tl.constexpr,  # noqa: N803
):
    """Execute one instruction `rounds * UNROLLED` times on each of BLOCK * CHAINS values."""
    thread = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = 0.5 + 1e-3 * tl.arange(0, CHAINS).to(tl.float32)
    x = start[None, :] + 1e-9 * thread[:, None].to(tl.float32)
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            if KIND == "fma":
                x = x * 0.999 + 0.001
            elif INTERPRETED:
                # The interpreter has no inline assembly; its timing is meaningless anyway.
                x = 2 * tl.sigmoid(2 * x) - 1 if KIND == "tanh" else tl.exp2(-x)
            elif KIND == "tanh":
                x = tl.inline_asm_elementwise(
                    "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
                )
            else:
                x = tl.inline_asm_elementwise(
                    # Negation is free as an operand modifier and keeps the chain finite.
                    "{ .reg .f32 t; neg.f32 t, $1; ex2.approx.ftz.f32 $0, t; }",
                    "=f,f",
                    [x],
                    dtype=tl.float32,
                    is_pure=True,
                    pack=1,
                )
    tl.store(out + thread, tl.sum(x, 1))


def probe(kind: str, *, unrolled: int, interpreted: bool) -> Launch:
    """Return the launch for one kind of instruction."""
    return Launch(
        kernel=one_instruction_kernel,
        pointers={"out": "*fp32"},
        integers=("rounds",),
        constants={
            "KIND": kind,
            "BLOCK": BLOCK,
            "CHAINS": CHAINS,
            "UNROLLED": unrolled,
            "INTERPRETED": interpreted,
        },
        num_warps=NUM_WARPS,
    )


def instructions(rounds: int, unrolled: int, programs: int) -> int:
    """Return how many results of the instruction one launch computes."""
    return rounds * unrolled * programs * BLOCK * CHAINS
