"""The recurrence of E88: a delta rule on a matrix state, squashed at every position."""

from typing import TYPE_CHECKING

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.arguments import check_tensors
from elmanctl.kernels.matrix_recurrence.sizes import SUPPORTED, check_size, resolve_backend

# The command line asks for sizes here and must not wait for torch.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BACKENDS", "SUPPORTED", "check_size", "matrix_recurrence", "resolve_backend"]

BACKENDS = tuple(SUPPORTED)


def matrix_recurrence(
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    alpha: "Tensor",
    gate: "Tensor | None" = None,
    *,
    beta: "Tensor | None" = None,
    blend: "Tensor | None" = None,
    initial_state: "Tensor | None" = None,
    linear_state: bool = False,
    normalize: bool = True,
    eps: float = 1e-12,
    backend: str = "auto",
) -> "tuple[Tensor, Tensor]":
    """Run the recurrence on a named backend; return the output and the final state.

    With S the state, key by value, and k, q of unit length (`normalize`, guarded by `eps`):
    `C = tanh(alpha S + beta k (v - S^T k)^T)`, then `S <- S + blend (C - S)`, then `o = S^T q`,
    then `o * silu(gate)`.
    This is the delta rule of Schlag, Irie and Schmidhuber (2021, arXiv 2102.11174) with a decay
    and a tanh; `linear_state` leaves the tanh out, beta and blend are 1 where left out.

    q, k: [B, T, H, N]; v, gate, output: [B, T, H, M], all of one floating dtype.
    beta, blend: [B, T, H]; alpha: [B, T, H], or [B, T, H, M] with a decay for each value;
    states: [B, H, N, M]; these four in float64 if q is, float32 for any other dtype.
    Raises InvalidConfiguration on an N without code, on shapes or dtypes that do not fit and on
    an unknown backend; nothing is ever computed by another path than the one named.
    """
    resolve_backend(backend)
    check_size(backend, k.shape[-1])
    _check_tensors(q, k, v, alpha, gate, beta, blend, initial_state)
    import torch

    from elmanctl.kernels.matrix_recurrence.checkpointed import checkpointed_matrix_recurrence

    # Autocast would run the products of the state in half precision.
    with torch.autocast(q.device.type, enabled=False):
        return checkpointed_matrix_recurrence(
            q,
            k,
            v,
            alpha,
            gate,
            beta=beta,
            blend=blend,
            initial_state=initial_state,
            linear_state=linear_state,
            normalize=normalize,
            eps=eps,
        )


def _check_tensors(
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    alpha: "Tensor",
    gate: "Tensor | None",
    beta: "Tensor | None",
    blend: "Tensor | None",
    initial_state: "Tensor | None",
) -> None:
    import torch

    if k.ndim != 4 or v.ndim != 4 or 0 in k.shape or 0 in v.shape:
        raise InvalidConfiguration(
            f"k and v must be [B, T, H, N] and [B, T, H, M] with no empty axis, "
            f"not {list(k.shape)} and {list(v.shape)}"
        )
    if not k.is_floating_point():
        raise InvalidConfiguration(f"k must be a floating-point tensor, not {k.dtype}")
    steps = k.shape[:3]
    state_dtype = torch.promote_types(k.dtype, torch.float32)
    state_shape = (k.shape[0], k.shape[2], k.shape[3], v.shape[3])
    demands = (
        ("q", q, tuple(k.shape), k.dtype),
        ("v", v, (*steps, v.shape[3]), k.dtype),
        ("gate", gate, (*steps, v.shape[3]), k.dtype),
        ("alpha", alpha, (*steps, v.shape[3]) if alpha.ndim == 4 else tuple(steps), state_dtype),
        ("beta", beta, tuple(steps), state_dtype),
        ("blend", blend, tuple(steps), state_dtype),
        ("initial_state", initial_state, state_shape, state_dtype),
    )
    check_tensors("k", k, demands)
