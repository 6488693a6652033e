"""The scan of MinGRU and MinLSTM on our Triton kernels, as operators that torch can compile.

Nothing is added up by several programs at once: equal arguments give equal bits.
"""

from typing import Any

import torch
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.minimal_scan.launches import Problem, backward_launch, forward_launch
from elmanctl.kernels.minimal_scan.sizes import LARGEST_STRIDE, SCORES, count_checkpoints
from elmanctl.kernels.minimal_scan.triton_kernels import INTERPRETED

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""The dtypes that the kernels compute with, and what Triton calls them."""


def triton_gated_scan(
    scores: Tensor, cell: str, initial_state: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Compute what `naive_gated_scan` does; the scores are read where they lie, in any strides.

    scores: bfloat16 or float32 on a CUDA device; `dtype` is one of the two as well.
    Raises InvalidConfiguration for other dtypes and devices, for a last axis that is not
    contiguous, and for positions further apart than 32 bits can tell.
    """
    _check(scores, dtype)
    hidden, final, _ = _gated_scan(scores, initial_state, cell, dtype)
    return hidden, final


def _check(scores: Tensor, dtype: torch.dtype) -> None:
    if scores.device.type != "cuda" and not INTERPRETED:
        raise InvalidConfiguration(
            f"backend `triton` computes on CUDA devices, not on {scores.device}",
            hint="backend `torch` does",
        )
    for name, found in (("scores", scores.dtype), ("the result", dtype)):
        if found not in DTYPES:
            raise InvalidConfiguration(
                f"backend `triton` computes in bfloat16 and float32, and {name} is {found}",
                hint="backend `torch` computes in every floating dtype",
            )
    if scores.stride(2) != 1:
        raise InvalidConfiguration(
            f"backend `triton` reads scores whose last axis is contiguous, not of stride "
            f"{scores.stride(2)}",
            hint="`scores.contiguous()` copies them",
        )
    if scores.stride(1) >= LARGEST_STRIDE:
        raise InvalidConfiguration(
            f"backend `triton` reads positions fewer than {LARGEST_STRIDE} numbers apart, not "
            f"{scores.stride(1)}",
            hint="`scores.contiguous()` copies them closer",
        )


@torch.library.custom_op("elmanctl::gated_scan", mutates_args=())
def _gated_scan(
    scores: Tensor, initial_state: Tensor | None, cell: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the states, the last one in float32, and every sixteenth one in float32."""
    hidden, final, checkpoints = _results(scores, cell, dtype)
    problem = _problem(scores, cell, dtype)
    launch = forward_launch(problem, has_initial=initial_state is not None)
    given = {} if initial_state is None else {"p_initial": initial_state.contiguous()}
    with torch.cuda.device_of(scores):  # type: ignore[no-untyped-call]
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
    """Return the gradients of the scores, in their dtype, and of the first state, in float32."""
    d_scores, d_initial = _gradients(scores, checkpoints)
    problem = _problem(scores, cell, d_hidden.dtype)
    launch = backward_launch(problem, has_d_final=d_final is not None)
    given = {} if d_final is None else {"p_d_final": d_final.contiguous()}
    with torch.cuda.device_of(scores):  # type: ignore[no-untyped-call]
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


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    scores, initial_state, cell, dtype = inputs
    checkpoints = output[2]
    ctx.save_for_backward(scores, checkpoints)
    ctx.cell, ctx.dtype, ctx.had_initial = cell, dtype, initial_state is not None
    ctx.mark_non_differentiable(checkpoints)
    ctx.set_materialize_grads(False)


def _differentiate(
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


_gated_scan.register_autograd(_differentiate, setup_context=_keep)


def _problem(scores: Tensor, cell: str, hidden: torch.dtype) -> Problem:
    batch, length, together = scores.shape
    # The stride of an axis with one place is of no account, and may be anything.
    return Problem(
        cell=cell,
        batch=batch,
        length=length,
        width=together // SCORES[cell],
        row=scores.stride(1) if length > 1 else together,
        batch_stride=scores.stride(0) if batch > 1 else 0,
        scores=DTYPES[scores.dtype],
        hidden=DTYPES[hidden],
    )
