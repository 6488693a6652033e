"""Gated delta rule on the Triton kernels of flash-linear-attention (fla)."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.third_party import import_third_party


def fla_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute `naive_gated_delta_rule` with fla's kernels; same arguments.

    Tensors must be on a CUDA device and not float64; raises InvalidConfiguration otherwise.  The
    kernels use the same epsilon of 1e-6 in the norm of q and k, and round them and the products of
    a chunk to the dtype of q.
    """
    if k.device.type != "cuda" or k.dtype == torch.float64:
        raise InvalidConfiguration(
            f"backend `fla` computes on CUDA devices in 16 or 32 bits, not on {k.device} in "
            f"{k.dtype}",
            hint="use backend `torch`",
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
    """Import the kernel on first use: importing fla takes seconds."""
    return import_third_party("fla.ops.gated_delta_rule").chunk_gated_delta_rule
