"""Ahead-of-time compilation of a launch for a GPU that need not be present; no torch."""

from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from elmanctl.kernels.launch import Launch

WARP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Compiled:
    """Compiled launch: PTX, cubin, and the resources of the kernel."""

    name: str
    ptx: str
    cubin: bytes
    shared_bytes: int
    warps: int


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile a launch as Triton would at its first call; `capability` is 90 for sm_90.

    All pointers are assumed to be aligned to 16 bytes, as Triton infers for whole allocations and
    views at such offsets.  Integers are not specialized: our kernels mark them `do_not_specialize`,
    so one binary serves all values below 2**31.

    Raises ValueError for a missing or extra argument and for a specialized integer.
    """
    kernel = launch.kernel
    kinds = dict.fromkeys(launch.constants, "constexpr")
    kinds |= dict.fromkeys(launch.integers, "i32")
    kinds |= launch.pointers
    arguments = [*launch.constants, *launch.integers, *launch.pointers]
    if sorted(arguments) != sorted(kernel.arg_names):
        wrong = sorted(set(arguments) ^ set(kernel.arg_names)) or arguments
        raise ValueError(f"{kernel.__name__}: not passed exactly once: {', '.join(wrong)}")
    specialized = [
        parameter.name
        for parameter in kernel.params
        if parameter.name in launch.integers and not parameter.do_not_specialize
    ]
    if specialized:
        raise ValueError(f"{kernel.__name__}: specialized on {', '.join(specialized)}")
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    compiled = triton.compile(
        source(
            kernel,
            {name: kinds[name] for name in kernel.arg_names},
            constexprs=dict(launch.constants),
            attrs={
                (index,): [["tt.divisibility", 16]]
                for index, name in enumerate(kernel.arg_names)
                if name in launch.pointers
            },
        ),
        target=GPUTarget("cuda", capability, WARP_SIZE),
        options=launch.options,
    )
    return Compiled(
        name=compiled.metadata.name,
        ptx=compiled.asm["ptx"],
        cubin=compiled.asm["cubin"],
        shared_bytes=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
    )
