"""Scan of MinGRU and MinLSTM on Triton kernels, as custom operators for torch.compile.

No two programs accumulate into the same address, so results are bitwise deterministic.
"""

from typing import Any

import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.minimal_scan.launches import Problem, backward_launch, forward_launch
from elmanctl.kernels.minimal_scan.sizes import LARGEST_STRIDE, SCORES, count_checkpoints
from elmanctl.kernels.minimal_scan.triton_kernels import INTERPRETED

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""Supported dtypes and their Triton names."""


def triton_gated_scan(
    scores: Tensor, cell: str, initial_state: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute `naive_gated_scan`; the scores may have any batch and time strides.

    scores: bfloat16 or float32 on a CUDA device; `dtype` is one of the two as well.
    Raises InvalidConfiguration for other dtypes and devices, for a non-contiguous last axis, and
    for a time stride whose offsets exceed 32 bits.
    """
    _check(scores, dtype)
    hidden, final, _ = _gated_scan(scores, initial_state, cell, dtype)
    return hidden, final


def _check(scores: Tensor, dtype: torch.dtype) -> None:
    if scores.device.type != "cuda" and not INTERPRETED:
        raise InvalidConfiguration(
            f"backend `triton` computes on CUDA devices, not on {scores.device}",
            hint="use backend `torch`",
        )
    for name, found in (("scores", scores.dtype), ("the result", dtype)):
        if found not in DTYPES:
            raise InvalidConfiguration(
                f"backend `triton` computes in bfloat16 and float32, and {name} is {found}",
                hint="backend `torch` computes in every floating dtype",
            )
    if scores.stride(2) != 1:
        raise InvalidConfiguration(
            f"backend `triton` requires scores with a contiguous last axis, not stride "
            f"{scores.stride(2)}",
            hint="pass `scores.contiguous()`",
        )
    if scores.stride(1) >= LARGEST_STRIDE:
        raise InvalidConfiguration(
            f"backend `triton` requires a time stride of fewer than {LARGEST_STRIDE} elements, not "
            f"{scores.stride(1)}",
            hint="pass `scores.contiguous()`",
        )


@torch.library.custom_op("elmanctl::gated_scan", mutates_args=())
def _gated_scan(
    scores: Tensor, initial_state: Tensor | None, cell: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states, the last state in float32, and the float32 checkpoints."""
    hidden, final, checkpoints = _results(scores, cell, dtype)
    problem = _problem(scores, cell, dtype)
    launch = forward_launch(problem, has_initial=initial_state is not None)
    given = {} if initial_state is None else {"p_initial": initial_state.contiguous()}
    with torch.cuda.device_of(scores):
        launch(
            problem.grid(is_backward=False),
            p_scores=scores,
            p_hidden=hidden,
            p_checkpoints=checkpoints,
            p_final=final,
            length=problem.length,
            batch_stride=problem.batch_stride,
            n_checkpoints=checkpoints.shape[1],
            **given,
        )
    return hidden, final, checkpoints


@_gated_scan.register_fake
def _(
    scores: Tensor, initial_state: Tensor | None, cell: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(scores, cell, dtype)


def _results(scores: Tensor, cell: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = scores.shape
    width = scores.shape[2] // SCORES[cell]
    return (
        scores.new_empty(batch, length, width, dtype=dtype),
        scores.new_empty(batch, width, dtype=torch.float32),
        scores.new_empty(batch, count_checkpoints(length), width, dtype=torch.float32),
    )


@torch.library.custom_op("elmanctl::gated_scan_backward", mutates_args=())
def _gated_scan_backward(
    scores: Tensor, checkpoints: Tensor, d_hidden: Tensor, d_final: Tensor | None, cell: str
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the scores, in their dtype, and of the initial state, in float32."""
    d_scores, d_initial = _gradients(scores, checkpoints)
    problem = _problem(scores, cell, d_hidden.dtype)
    launch = backward_launch(problem, has_d_final=d_final is not None)
    given = {} if d_final is None else {"p_d_final": d_final.contiguous()}
    with torch.cuda.device_of(scores):
        launch(
            problem.grid(is_backward=True),
            p_scores=scores,
            p_checkpoints=checkpoints,
            p_d_hidden=d_hidden.contiguous(),
            p_d_scores=d_scores,
            p_d_initial=d_initial,
            length=problem.length,
            batch_stride=problem.batch_stride,
            n_checkpoints=checkpoints.shape[1],
            **given,
        )
    return d_scores, d_initial


@_gated_scan_backward.register_fake
def _(
    scores: Tensor, checkpoints: Tensor, d_hidden: Tensor, d_final: Tensor | None, cell: str
) -> tuple[Tensor, Tensor]:
    return _gradients(scores, checkpoints)


def _gradients(scores: Tensor, checkpoints: Tensor) -> tuple[Tensor, Tensor]:
    batch, _, width = checkpoints.shape
    return scores.new_empty(scores.shape), checkpoints.new_empty(batch, width)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    scores, initial_state, cell, dtype = inputs
    checkpoints = output[2]
    ctx.save_for_backward(scores, checkpoints)
    ctx.cell, ctx.dtype, ctx.had_initial = cell, dtype, initial_state is not None
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, d_hidden: Tensor | None, d_final: Tensor | None, _: None
) -> tuple[Tensor | None, Tensor | None, None, None]:
    if d_hidden is None and d_final is None:
        return None, None, None, None
    scores, checkpoints = ctx.saved_tensors
    if d_hidden is None:
        batch, length, _ = scores.shape
        d_hidden = scores.new_zeros(batch, length, checkpoints.shape[2], dtype=ctx.dtype)
    d_scores, d_initial = _gated_scan_backward(scores, checkpoints, d_hidden, d_final, ctx.cell)
    return d_scores, d_initial if ctx.had_initial else None, None, None


_gated_scan.register_autograd(_backward, setup_context=_setup_context)


def _problem(scores: Tensor, cell: str, hidden: torch.dtype) -> Problem:
    batch, length, total_width = scores.shape
    # The stride of an axis of size 1 is arbitrary.
    return Problem(
        cell=cell,
        batch=batch,
        length=length,
        width=total_width // SCORES[cell],
        row=scores.stride(1) if length > 1 else total_width,
        batch_stride=scores.stride(0) if batch > 1 else 0,
        scores=DTYPES[scores.dtype],
        hidden=DTYPES[hidden],
    )
