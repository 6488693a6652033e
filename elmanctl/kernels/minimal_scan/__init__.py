"""Recurrence of MinGRU and MinLSTM: elementwise and linear in the state."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from elmanctl.constants import INSTALL_GPU
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration, meant
from elmanctl.kernels.arguments import check_tensors
from elmanctl.kernels.minimal_scan.sizes import SCORES

# `kernels` imports torch lazily, only when an operation runs.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["BACKENDS", "gated_scan", "minimal_scan"]

AUTO = "auto"
BACKENDS = ("triton", "torch")

_HAS_TRITON = find_spec("triton") is not None


def minimal_scan(
    decay: "Tensor", written: "Tensor", initial_state: "Tensor | None" = None
) -> "Tensor":
    """Return all states [B, T, D] of `h_t = decay_t h_{t-1} + written_t`.

    decay, written: [B, T, D], both float32 or both float64; initial_state: [B, D] of the same
    dtype, zero by default.  Decays lie in [0, 1], both ends included: the scan neither divides by
    them nor takes logarithms.  There is no double backward.
    Raises InvalidConfiguration for mismatched shapes, dtypes or devices.
    """
    import torch

    from elmanctl.kernels.minimal_scan.chunked import chunked_minimal_scan

    if decay.ndim != 3 or 0 in decay.shape:
        raise InvalidConfiguration(
            f"decay must be [B, T, D] with no empty axis, not {list(decay.shape)}"
        )
    if decay.dtype not in (torch.float32, torch.float64):
        raise InvalidConfiguration(f"decay must be float32 or float64, not {decay.dtype}")
    batch, length, width = decay.shape
    requirements = (
        ("written", written, (batch, length, width), None),
        ("initial_state", initial_state, (batch, width), None),
    )
    check_tensors("decay", decay, requirements)
    if initial_state is None:
        initial_state = decay.new_zeros(batch, width)
    return chunked_minimal_scan(decay, written, initial_state)


def gated_scan(
    scores: "Tensor",
    cell: str,
    initial_state: "Tensor | None" = None,
    *,
    dtype: "torch.dtype | None" = None,
    backend: str = AUTO,
) -> "tuple[Tensor, Tensor]":
    """Run MinGRU or MinLSTM on gate pre-activations (scores); return all states and the last one.

        mingru    c, g       h <- (1 - z) h + z phi(c)       z = sigma(g)
        minlstm   c, f, i    h <- F h + (1 - F) phi(c)       F = sigma(f) / (sigma(f) + sigma(i))

    phi(c) is c + 1/2 for c >= 0 and sigma(c) for c < 0.

    scores: [B, T, 2 D] or [B, T, 3 D] of any floating dtype, the layout of one fused projection:
    all c first, then the gates.  initial_state: [B, D], zero by default, float64 if the scores
    are, else float32; the last state [B, D] likewise.  The states [B, T, D] are computed in that
    dtype and returned in `dtype`, by default that of the scores.

    Backend `torch` supports any floating dtype on any device.  `triton` supports bfloat16 and
    float32 on CUDA devices, reads the scores once and writes the states once; `auto` selects
    `triton` wherever it can run.  `triton` is memory-bound: for each of B T D elements it moves, in
    bfloat16, 6.25 bytes forward and 10.25 backward for MinGRU, 8.25 and 14.25
    for MinLSTM; MinGRU at B 16, T 512, D 1920 takes at least 33 us forward and 54 us backward at
    3 TB/s.  There is no double backward.

    Raises InvalidConfiguration for an unknown cell or backend, for mismatched shapes, dtypes or
    devices, and for those that the backend does not support; it never falls back to another
    backend.  Raises EnvironmentNotReady if `triton` is named and not installed.
    """
    _check(scores, cell, initial_state, backend)
    dtype = dtype or scores.dtype
    if backend == AUTO:
        backend = "triton" if _runs_on_triton(scores, dtype) else "torch"
    if backend == "torch":
        return _torch_gated_scan(scores, cell, initial_state, dtype)
    if not _HAS_TRITON:
        raise EnvironmentNotReady("triton is not installed", hint=INSTALL_GPU)
    # Imported lazily: Triton is optional.
    from elmanctl.kernels.minimal_scan.triton import triton_gated_scan

    return triton_gated_scan(scores, cell, initial_state, dtype)


def _runs_on_triton(scores: "Tensor", dtype: "torch.dtype") -> bool:
    import torch

    supported = (torch.bfloat16, torch.float32)
    return (
        _HAS_TRITON
        and scores.is_cuda
        and scores.dtype in supported
        and dtype in supported
        and scores.stride(2) == 1
    )


def _torch_gated_scan(
    scores: "Tensor", cell: str, initial_state: "Tensor | None", dtype: "torch.dtype"
) -> "tuple[Tensor, Tensor]":
    import torch

    from elmanctl.kernels.minimal_scan.gates import gate_weights, positive

    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    candidate, *gates = scores.chunk(SCORES[cell], dim=-1)
    keep, write = gate_weights(cell, *gates)
    states = minimal_scan(keep, write * positive(candidate), initial_state)
    return states.to(dtype), states[:, -1]


def _check(scores: "Tensor", cell: str, initial_state: "Tensor | None", backend: str) -> None:
    import torch

    for option, name, known in (
        ("cell", cell, tuple(SCORES)),
        ("backend", backend, (AUTO, *BACKENDS)),
    ):
        if name not in known:
            raise InvalidConfiguration(
                f"gated_scan has no {option} `{name}`; it has: {', '.join(known)}",
                hint=meant(name, known),
            )
    if not scores.is_floating_point():
        raise InvalidConfiguration(f"scores must be a floating-point tensor, not {scores.dtype}")
    if scores.ndim != 3 or 0 in scores.shape or scores.shape[2] % SCORES[cell]:
        raise InvalidConfiguration(
            f"scores of {cell} must be [B, T, {SCORES[cell]} D] with no empty axis, "
            f"not {list(scores.shape)}"
        )
    width = scores.shape[2] // SCORES[cell]
    state_dtype = torch.promote_types(scores.dtype, torch.float32)
    requirements = (("initial_state", initial_state, (scores.shape[0], width), state_dtype),)
    check_tensors("scores", scores, requirements)
