"""Implementations of others, as they are measured beside ours."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from elmanctl.kernels.third_party import import_third_party

TIMING_ONLY = "timing only: gradients of the decay and of beta are not to be trusted on this Triton"

_GUARDED = "fla.ops.common.chunk_o"
_GUARD = "TRITON_ABOVE_3_7_1"


@contextmanager
def fla_gradients_for_timing() -> Iterator[None]:
    """Let fla run its backward pass on a Triton that gets two of its gradients wrong.

    The kernels do the same work, so their time is that of right ones; nothing else may use them.
    """
    module = import_third_party(_GUARDED)
    before = getattr(module, _GUARD)
    setattr(module, _GUARD, True)
    try:
        yield
    finally:
        setattr(module, _GUARD, before)


def on_flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Tensor]:
    """Attend causally by torch's flash attention; q, k, v, output: [B, T, H, D]."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        heads = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
    return {"output": heads.transpose(1, 2)}


def attention_as_defined(q: Tensor, k: Tensor, v: Tensor) -> Mapping[str, Tensor]:
    """Attend causally by the definition; q, k, v, output: [B, T, H, D]."""
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    weights = torch.softmax(scores.masked_fill(later, -torch.inf), -1)
    return {"output": torch.einsum("bhij,bjhd->bihd", weights, v)}


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what other packages warn of: it is theirs, and a table is being made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
