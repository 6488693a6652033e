"""Third-party implementations that ours are compared with."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from elmanctl.kernels.third_party import import_third_party

TIMING_ONLY = "timing only: with this Triton the gradients of the decay and of beta are wrong"

suppress_warnings = partial(warnings.catch_warnings, action="ignore")
"""Context without the warnings of third-party packages, which would clutter the output."""

_GUARDED_MODULE = "fla.ops.common.chunk_o"
_GUARD = "TRITON_ABOVE_3_7_1"


@contextmanager
def fla_gradients_for_timing() -> Iterator[None]:
    """Let fla run its backward pass on a Triton that computes two of its gradients wrong.

    The kernels do the same work, so their timing is valid; their results must not be used.
    """
    module = import_third_party(_GUARDED_MODULE)
    before = getattr(module, _GUARD)
    setattr(module, _GUARD, True)
    try:
        yield
    finally:
        setattr(module, _GUARD, before)


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Tensor]:
    """Compute causal attention with torch's flash attention; q, k, v, output: [B, T, H, D]."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        heads = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
    return {"output": heads.transpose(1, 2)}


def naive_attention(q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Tensor]:
    """Compute causal attention from its definition; q, k, v, output: [B, T, H, D]."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    weights = torch.softmax(scores.masked_fill(later, -torch.inf), -1)
    return {"output": torch.einsum("bhij,bjhd->bihd", weights, v)}
