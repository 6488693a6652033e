"""Recurrence of E88: a delta rule on a matrix state that goes through tanh at every position."""

from typing import TYPE_CHECKING, Literal

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.arguments import check_tensors
from elmanctl.kernels.matrix_recurrence.sizes import (
    AUTO,
    SUPPORTED,
    check_size,
    check_values,
    choose_backend,
    resolve_backend,
)

# `kernels` imports torch lazily, only when an operation runs.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BACKENDS",
    "SUPPORTED",
    "check_size",
    "check_values",
    "matrix_recurrence",
    "resolve_backend",
]

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
    written: "Tensor | None" = None,
    initial_state: "Tensor | None" = None,
    read: Literal["all", "written"] = "all",
    activation: Literal["silu"] | None = None,
    self_gate: bool = False,
    linear_state: bool = False,
    normalize: bool = True,
    eps: float = 1e-12,
    tanh: Literal["auto", "exact", "fast"] = "auto",
    checkpoints: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    backend: str = AUTO,
) -> "tuple[Tensor, Tensor]":
    """Run the recurrence on a named backend; return the output and the final state.

    With S the state, key by value, and k, q of unit length (`normalize`, with epsilon `eps`):
    `C = tanh(alpha S + beta k (v - S^T k)^T)`, then `S <- S + blend (C - S)` where `written`, then
    `o = S^T q`, then `o * silu(o)` with `self_gate`, then `o * silu(gate)`.
    This is the delta rule of Schlag, Irie and Schmidhuber (2021, arXiv 2102.11174) with a decay
    and a tanh; `linear_state` omits the tanh, beta and blend default to 1.  q, k and v go through
    `activation` first.  With `read` "written", positions that are not written are not read
    either: their output is 0.  A position that is not written has gradients only for its query
    and gate, and with `read` "written" none at all.

    q, k: [B, T, H, N]; v, gate, output: [B, T, H, M], all of one floating dtype.
    beta, blend: [B, T, H]; alpha: [B, T, H], or [B, T, H, M] with one decay per value;
    states: [B, H, N, M]; these four in float64 if q is, float32 for any other dtype.
    written: bool [B, T, H], or int64 [B, T, K], the indices of the K heads that are written.

    Backend `torch` supports every dtype on every device.  Backend `triton` supports float32 and
    bfloat16 on CUDA devices, for the sizes in `SUPPORTED`, and takes views without a copy if their
    last stride is 1; `auto` selects `triton` where it applies, else `torch`.
    `tanh` "fast" uses the GPU's special-function unit (relative error 2^-11), forward and
    backward.  "auto" means "fast" on `triton` in bfloat16 and under autocast, where float32 from a
    projection is no more precise, and "exact" everywhere else, including Triton's interpreter,
    which has no such unit.
    `checkpoints` is the dtype of the states saved for the backward pass, where it can be chosen:
    "auto" is "fp32" on `triton`, every 16 positions, and "fp16" on `gluon`, every 8, since states
    after a tanh are at most 1.
    Backend `gluon` is `triton` with another backward kernel, which needs a fraction of the
    shuffles.  It is written in Triton's experimental language Gluon, has only the fast tanh, and
    does not support `linear_state`, `blend`, `written`, `self_gate` or one decay per value.
    Autocast changes no dtype here: the operation computes in those of its arguments.
    Raises InvalidConfiguration for an unsupported size, dtype, device, stride or option, for
    mismatched shapes and for an unknown backend; it never falls back to another backend.

    With `read` "written" backend `triton` visits only the positions where a head is written, and
    checkpoints every 16th of them.  The memory for checkpoints is bounded by K; for a mask the
    bound assumes that all heads may be written.
    """
    _check_tensors(q, k, v, alpha, gate, beta, blend, written, initial_state)
    _check_options(read=read, activation=activation, tanh=tanh, checkpoints=checkpoints)
    backend = choose_backend(
        backend,
        n_key=k.shape[3],
        n_value=v.shape[3],
        device=k.device.type,
        dtype=str(k.dtype).removeprefix("torch."),
    )
    if backend != "torch":
        from elmanctl.kernels.matrix_recurrence import triton

        if tanh == "fast" and triton.IS_INTERPRETED:
            raise InvalidConfiguration(
                "Triton's interpreter has no fast tanh, which is an instruction of GPUs"
            )
        is_low = not triton.IS_INTERPRETED and _has_low_precision(k)
        fast = tanh == "fast" or (tanh == AUTO and is_low)
        if backend == "gluon":
            _check_gluon(
                fast=fast,
                blend=blend is not None,
                written=written is not None,
                per_value=alpha.ndim == 4,
                self_gate=self_gate,
                linear_state=linear_state,
            )
        if checkpoints == AUTO:
            checkpoints = "fp16" if backend == "gluon" else "fp32"
        flags = triton.Flags(
            linear_state=linear_state,
            normalize=normalize,
            activate=activation == "silu",
            self_gate=self_gate,
            read_all=read == "all",
            fast=fast,
            eps=eps,
            checkpoint_dtype=checkpoints,
            backend=backend,
        )
        tensors = triton.Tensors(q, k, v, alpha, beta, blend, written, gate, initial_state)
        return triton.triton_matrix_recurrence(tensors, flags)
    if tanh == "fast" or checkpoints not in (AUTO, "fp32"):
        raise InvalidConfiguration(
            f'backend `torch` supports only the exact tanh and fp32 checkpoints, not "{tanh}" and '
            f'"{checkpoints}"'
        )
    from elmanctl.kernels.matrix_recurrence.checkpointed import torch_matrix_recurrence
    from elmanctl.kernels.matrix_recurrence.routing import write_mask

    return torch_matrix_recurrence(
        q,
        k,
        v,
        alpha,
        gate,
        beta=beta,
        blend=blend,
        written=None if written is None else write_mask(written, k.shape[2]),
        initial_state=initial_state,
        read=read,
        activation=activation,
        self_gate=self_gate,
        linear_state=linear_state,
        normalize=normalize,
        eps=eps,
    )


def _has_low_precision(k: "Tensor") -> bool:
    """Whether a tensor comes from a 16-bit matrix product."""
    import torch

    return k.element_size() == 2 or torch.is_autocast_enabled(k.device.type)


_OPTIONS = {
    "read": ("all", "written"),
    "activation": (None, "silu"),
    "tanh": ("auto", "exact", "fast"),
    "checkpoints": ("auto", "fp32", "bf16", "fp16"),
}


def _check_options(**options: str | None) -> None:
    for name, value in options.items():
        if value not in _OPTIONS[name]:
            known = ", ".join(map(repr, _OPTIONS[name]))
            raise InvalidConfiguration(f"{name} must be one of {known}, not {value!r}")


def _check_gluon(*, fast: bool, **unsupported: bool) -> None:
    requested = [name for name, is_requested in unsupported.items() if is_requested]
    if requested:
        raise InvalidConfiguration(
            f"backend `gluon` does not support {' and '.join(requested)}",
            hint="use backend `triton`",
        )
    if not fast:
        raise InvalidConfiguration(
            "backend `gluon` supports only the fast tanh",
            hint='compute in bfloat16, or set tanh to "fast"',
        )


def _check_tensors(
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    alpha: "Tensor",
    gate: "Tensor | None",
    beta: "Tensor | None",
    blend: "Tensor | None",
    written: "Tensor | None",
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
    written_shape, written_dtype = tuple(steps), torch.bool
    if written is not None and written.dtype == torch.int64:
        written_shape, written_dtype = (*steps[:2], written.shape[-1]), torch.int64
    state_dtype = torch.promote_types(k.dtype, torch.float32)
    state_shape = (k.shape[0], k.shape[2], k.shape[3], v.shape[3])
    requirements = (
        ("q", q, tuple(k.shape), k.dtype),
        ("v", v, (*steps, v.shape[3]), k.dtype),
        ("gate", gate, (*steps, v.shape[3]), k.dtype),
        ("alpha", alpha, (*steps, v.shape[3]) if alpha.ndim == 4 else tuple(steps), state_dtype),
        ("beta", beta, tuple(steps), state_dtype),
        ("blend", blend, tuple(steps), state_dtype),
        ("written", written, written_shape, written_dtype),
        ("initial_state", initial_state, state_shape, state_dtype),
    )
    check_tensors("k", k, requirements)
