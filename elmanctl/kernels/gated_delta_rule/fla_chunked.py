"""The gated delta rule on the Triton kernels of flash-linear-attention."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.foreign import import_foreign


def fla_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute what `naive_gated_delta_rule` does with the kernels of fla; see there.

    The tensors are on a CUDA device and not in float64.  The kernels guard the length of q and k
    by the same 1e-6, and round them and the products of a chunk to the dtype of q.
    Raises InvalidConfiguration for other tensors.
    """
    if k.device.type != "cuda" or k.dtype == torch.float64:
        raise InvalidConfiguration(
            f"backend `fla` computes on CUDA devices in 16 or 32 bits, not on {k.device} in "
            f"{k.dtype}",
            hint="backend `torch` does",
        )
    output, state = _kernel()(
        q=q,
        k=k,
        v=v,
        g=log_decay,
        beta=beta,
        scale=k.shape[-1] ** -0.5,
        initial_state=initial_state,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    return output, state


@cache
def _kernel() -> Any:
    """The import takes seconds: it is made when a model first runs, and once."""
    return import_foreign("fla.ops.gated_delta_rule").chunk_gated_delta_rule
