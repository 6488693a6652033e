"""How a kernel of Triton is launched: what is compiled into it, on how many warps; no torch.

A launch is decided from sizes and dtypes alone, so what runs on a GPU can be compiled, counted and
run by other means on a machine that has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel with everything that is fixed before its tensors are known.

    `kernel` is a function under `triton.jit` or `gluon.jit`.  `pointers` are the types of the
    tensors it is given, such as `*bf16`, by argument; `integers` the arguments that are numbers;
    `constants` all others, which are compiled in: a tensor that is left out is None among them.
    """

    kernel: Any
    pointers: Mapping[str, str]
    integers: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 1
    max_registers: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What Triton's compiler is told beside the constants."""
        # Fusing a product and a sum is the default up to Triton 3.9 only.
        options = {"num_warps": self.num_warps, "num_stages": 1, "enable_fp_fusion": True}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options

    def __call__(self, grid: tuple[int, ...], **arguments: Any) -> None:
        """Run the kernel on tensors and numbers by the names of its arguments."""
        self.kernel[grid](**arguments, **self.constants, **self.options)
