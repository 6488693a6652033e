"""From a launch to machine code, for a GPU that need not be there; no torch."""

from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from elmanctl.kernels.launch import Launch

WARP_SIZE = 32


@dataclass(frozen=True, slots=True)
class Compiled:
    """What Triton made of a launch: two texts and what the kernel asks of the GPU."""

    name: str
    ptx: str
    cubin: bytes
    shared_bytes: int
    warps: int


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile a launch as Triton would at its first call on a GPU, such as 90 for sm_90.

    Every pointer is taken to be a multiple of 16 bytes, which is what Triton finds where tensors
    are whole allocations, or views at such offsets.  Of integers nothing is taken: our kernels
    mark them `do_not_specialize`, so Triton compiles one code for all their values below 2**31.

    Raises ValueError on a launch that leaves an argument out or has one too many, and on an
    integer that Triton would look at.
    """
    kernel = launch.kernel
    kinds = dict.fromkeys(launch.constants, "constexpr")
    kinds |= dict.fromkeys(launch.integers, "i32")
    kinds |= launch.pointers
    given = [*launch.constants, *launch.integers, *launch.pointers]
    if sorted(given) != sorted(kernel.arg_names):
        odd = sorted(set(given) ^ set(kernel.arg_names)) or given
        raise ValueError(f"{kernel.__name__}: not given once and only once: {', '.join(odd)}")
    looked_at = [
        parameter.name
        for parameter in kernel.params
        if parameter.name in launch.integers and not parameter.do_not_specialize
    ]
    if looked_at:
        raise ValueError(f"{kernel.__name__}: specialized on {', '.join(looked_at)}")
    source = GluonASTSource if kernel.is_gluon() else ASTSource
    compiled = triton.compile(
        source(
            kernel,
            {name: kinds[name] for name in kernel.arg_names},
            constexprs=dict(launch.constants),
            attrs={
                (place,): [["tt.divisibility", 16]]
                for place, name in enumerate(kernel.arg_names)
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
