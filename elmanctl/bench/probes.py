"""Kernels that do one kind of instruction and nothing else, to find how fast a card does it.

Each thread carries several chains of one instruction whose result is the next one's argument, so
that nothing can be left out, and enough of them that no thread waits for another.
"""

import triton
import triton.language as tl

from elmanctl.kernels.launch import Launch

BLOCK, CHAINS, NUM_WARPS = 128, 8, 4
"""Threads of a program, chains of each thread, and the warps that these threads are."""

KINDS = ("tanh", "exp2", "fma")

SPECIAL = ("tanh", "exp2")
"""What the special-function unit does; `fma` is a product and a sum in float32."""


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
    """Do one instruction `rounds * UNROLLED` times on each of BLOCK * CHAINS numbers."""
    thread = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = 0.5 + 1e-3 * tl.arange(0, CHAINS).to(tl.float32)
    x = start[None, :] + 1e-9 * thread[:, None].to(tl.float32)
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            if KIND == "fma":
                x = x * 0.999 + 0.001
            elif INTERPRETED:
                # The interpreter knows no assembler; what it takes is no measure anyway.
                x = 2 * tl.sigmoid(2 * x) - 1 if KIND == "tanh" else tl.exp2(-x)
            elif KIND == "tanh":
                x = tl.inline_asm_elementwise(
                    "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
                )
            else:
                x = tl.inline_asm_elementwise(
                    # The sign is a part of the instruction, and keeps the chain from infinity.
                    "{ .reg .f32 t; neg.f32 t, $1; ex2.approx.ftz.f32 $0, t; }",
                    "=f,f",
                    [x],
                    dtype=tl.float32,
                    is_pure=True,
                    pack=1,
                )
    tl.store(out + thread, tl.sum(x, 1))


def probe(kind: str, *, unrolled: int, interpreted: bool) -> Launch:
    """Return the launch of the kernel for one kind of instruction."""
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
    """Return how many results of the instruction one launch computes, one for each thread."""
    return rounds * unrolled * programs * BLOCK * CHAINS
