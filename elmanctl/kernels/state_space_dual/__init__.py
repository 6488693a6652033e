"""Recurrence of Mamba2: a linear state with one scalar decay per head and position."""

from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration, meant
from elmanctl.kernels.arguments import check_tensors

# `kernels` imports torch lazily, only when an operation runs.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BACKENDS", "state_space_dual"]

BACKENDS = ("torch",)


def state_space_dual(
    x: "Tensor",
    step: "Tensor",
    rate: "Tensor",
    write: "Tensor",
    read: "Tensor",
    *,
    initial_state: "Tensor | None" = None,
    backend: str = "torch",
) -> "tuple[Tensor, Tensor]":
    """Run the recurrence on a named backend; return the output and the final state.

    With h the state of a head, value by key: `h <- exp(-rate step) h + step x write^T`, then
    `y = h read` (Dao and Gu, 2024, arXiv 2405.21060; there step is dt, -rate A, write B, read C).

    x, y: [B, T, H, P]; write, read: [B, T, N], shared by all heads; all of one floating dtype.
    step: [B, T, H], rate: [H], states: [B, H, P, N]; these in float64 if x is, float32 for any
    other dtype.  Any T; rate and step are non-negative.
    Raises InvalidConfiguration for mismatched shapes or dtypes and for an unknown backend.
    """
    if backend not in BACKENDS:
        raise InvalidConfiguration(
            f"unknown backend `{backend}` of the state-space recurrence; "
            f"known: {', '.join(BACKENDS)}",
            hint=meant(backend, BACKENDS),
        )
    import torch

    from elmanctl.kernels.state_space_dual.chunked import chunked_state_space_dual

    if x.ndim != 4 or write.ndim != 3 or 0 in x.shape or 0 in write.shape:
        raise InvalidConfiguration(
            f"x and write must be [B, T, H, P] and [B, T, N] with no empty axis, "
            f"not {list(x.shape)} and {list(write.shape)}"
        )
    if not x.is_floating_point():
        raise InvalidConfiguration(f"x must be a floating-point tensor, not {x.dtype}")
    batch, length, heads, width = x.shape
    keys = (batch, length, write.shape[2])
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    requirements = (
        ("write", write, keys, x.dtype),
        ("read", read, keys, x.dtype),
        ("step", step, (batch, length, heads), state_dtype),
        ("rate", rate, (heads,), state_dtype),
        ("initial_state", initial_state, (batch, heads, width, keys[2]), state_dtype),
    )
    check_tensors("x", x, requirements)
    # Autocast would run the matrix products with the state in half precision.
    with torch.autocast(x.device.type, enabled=False):
        return chunked_state_space_dual(x, step, rate, write, read, initial_state=initial_state)
