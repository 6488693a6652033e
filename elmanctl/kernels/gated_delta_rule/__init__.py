"""Recurrence of the gated delta net: a delta rule on a linear matrix state with decay."""

from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration, meant
from elmanctl.kernels.arguments import check_tensors

# `kernels` imports torch lazily, only when an operation runs.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BACKENDS", "gated_delta_rule"]

BACKENDS = ("torch", "fla")


def gated_delta_rule(
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    log_decay: "Tensor",
    beta: "Tensor",
    *,
    initial_state: "Tensor | None" = None,
    backend: str = "torch",
) -> "tuple[Tensor, Tensor]":
    """Run the recurrence on a named backend; return the output and the final state.

    With S the state, key by value, k and q of unit length (x / sqrt(|x|^2 + 1e-6)) and q scaled by
    1 / sqrt(K): `S <- alpha S`, then `S <- S + beta k (v - S^T k)^T`, then `o = S^T q`.
    This is the gated delta rule of Yang, Kautz and Hatamizadeh (2024, arXiv 2412.06464).

    q, k: [B, T, H, K]; v, output: [B, T, H, V], all of one floating dtype.
    log_decay (the logarithm of alpha, at most 0), beta: [B, T, H]; states: [B, H, K, V]; these in
    float64 if q is, float32 for any other dtype.
    Raises InvalidConfiguration for mismatched shapes or dtypes, an unknown backend, and tensors
    that the backend does not support.
    """
    if backend not in BACKENDS:
        raise InvalidConfiguration(
            f"gated_delta_rule has no backend `{backend}`; it has: {', '.join(BACKENDS)}",
            hint=meant(backend, BACKENDS),
        )
    import torch

    from elmanctl.kernels.gated_delta_rule.chunked import chunked_gated_delta_rule
    from elmanctl.kernels.gated_delta_rule.fla_chunked import fla_gated_delta_rule

    if k.ndim != 4 or v.ndim != 4 or 0 in k.shape or 0 in v.shape:
        raise InvalidConfiguration(
            f"k and v must be [B, T, H, K] and [B, T, H, V] with no empty axis, "
            f"not {list(k.shape)} and {list(v.shape)}"
        )
    if not k.is_floating_point():
        raise InvalidConfiguration(f"k must be a floating-point tensor, not {k.dtype}")
    steps = tuple(k.shape[:3])
    state_dtype = torch.promote_types(k.dtype, torch.float32)
    requirements = (
        ("q", q, tuple(k.shape), k.dtype),
        ("v", v, (*steps, v.shape[3]), k.dtype),
        ("log_decay", log_decay, steps, state_dtype),
        ("beta", beta, steps, state_dtype),
        ("initial_state", initial_state, (*steps[::2], k.shape[3], v.shape[3]), state_dtype),
    )
    check_tensors("k", k, requirements)
    compute = fla_gated_delta_rule if backend == "fla" else chunked_gated_delta_rule
    # Autocast would run the matrix products with the state in half precision.
    with torch.autocast(q.device.type, enabled=False):
        return compute(q, k, v, log_decay, beta, initial_state=initial_state)
