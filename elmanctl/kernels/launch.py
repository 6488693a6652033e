"""Launch of a Triton kernel: its signature, compile-time constants and options; imports no torch.

A launch follows from sizes and dtypes alone, so the code that runs on a GPU can be compiled,
analyzed and emulated on a machine without one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A kernel and everything that is fixed before its tensors are known.

    `kernel` is a `triton.jit` or `gluon.jit` function.  `pointers` maps tensor arguments to their
    Triton types, such as `*bf16`; `integers` names the integer arguments; `constants` holds all
    other arguments, which are compile-time constants, with None for an omitted tensor.
    """

    kernel: Any
    pointers: Mapping[str, str]
    integers: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 1
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Compile options for Triton."""
        # FMA contraction is the default only up to Triton 3.9.
        options = {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": True}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options

    def __call__(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Launch the kernel on `grid` with its runtime arguments by name."""
        self.kernel[grid](**arguments, **self.constants, **self.options)
