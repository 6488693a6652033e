"""Matrix recurrence on Triton kernels, as custom operators for torch.compile.

The operators `elmanctl::matrix_recurrence_forward` and `.._backward` are opaque to the compiler, so
a model that uses them compiles as one graph.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence.launches import (
    ALIGNED_UNIT,
    Problem,
    backward_launch,
    backward_split,
    checkpoint_every,
    forward_launch,
    forward_split,
)
from elmanctl.kernels.matrix_recurrence.routing import (
    max_checkpoints,
    packed_positions,
    write_mask,
)
from elmanctl.kernels.matrix_recurrence.sizes import CHECKPOINT_EVERY

IS_INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)."""

MAX_SPAN = 2**31
"""Exclusive limit of the offsets, in elements, that kernels compute in 32 bits."""

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRITON_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


class Flags(NamedTuple):
    """Non-tensor arguments, in the order of the operators' signatures."""

    linear_state: bool
    normalize: bool
    activate: bool
    self_gate: bool
    read_all: bool
    fast: bool
    eps: float
    checkpoints: str
    backend: str
    packed: int = 0
    """Checkpoints of all heads together; 0 if every head has the same number."""


def triton_matrix_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    blend: Tensor | None,
    written: Tensor | None,
    gate: Tensor | None,
    initial_state: Tensor | None,
    flags: Flags,
) -> tuple[Tensor, Tensor]:
    """Compute `naive_matrix_recurrence`; the caller has checked shapes and dtypes.

    `written` is a mask or the indices of heads, as for `matrix_recurrence`.
    Raises InvalidConfiguration for a tensor whose last axis is not contiguous or whose strides
    exceed 32-bit offsets.
    """
    if written is not None and flags.read_all:
        written = write_mask(written, k.shape[2])
    elif written is not None:
        written, packed = _pack(written, k.shape[2], checkpoint_every(flags.backend))
        flags = flags._replace(packed=packed)
    sequences = {
        "q": q,
        "k": k,
        "v": v,
        "gate": gate,
        "alpha": alpha,
        "beta": beta,
        "blend": blend,
        "written": None if flags.packed else written,
    }
    for name, x in sequences.items():
        if x is not None:
            _check_strides(name, x)
    tensors = (q, k, v, alpha, beta, blend, gate, initial_state)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    output, final_state, _ = _forward(
        q, k, v, alpha, beta, blend, written, gate, initial_state, *flags, keep
    )
    return output, final_state


def _pack(written: Tensor, n_heads: int, every: int) -> tuple[Tensor, int]:
    """Return the packed positions of `written` and the maximum number of checkpoints."""
    max_written = n_heads if written.dtype == torch.bool else written.shape[2]
    mask = write_mask(written, n_heads)
    return packed_positions(mask, every), max_checkpoints(mask.shape, max_written, every)


def _check_strides(name: str, x: Tensor) -> None:
    if x.ndim == 4 and x.stride(3) != 1:
        raise InvalidConfiguration(
            f"{name} has stride {x.stride(3)} on its last axis, and backend `triton` needs 1",
            hint=f"pass `{name}.contiguous()`",
        )
    if _span(name, x) >= MAX_SPAN:
        raise InvalidConfiguration(
            f"{name} has strides {list(x.stride())}, and backend `triton` computes offsets of "
            f"heads and positions in 32 bits",
            hint=f"pass `{name}.contiguous()`",
        )


def _span(name: str, x: Tensor) -> int:
    """Return the largest offset, in elements, that kernels compute from one base address.

    A base address is that of a segment for q, k, v and the gate, and that of a position otherwise.
    """
    span = (x.shape[2] - 1) * x.stride(2)
    if name in ("q", "k", "v", "gate"):
        span += (min(x.shape[1], CHECKPOINT_EVERY) - 1) * x.stride(1)
    return span if x.ndim == 3 else span + x.shape[3] - 1


def _with_valid_strides(name: str, x: Tensor) -> Tensor:
    """Return x, copied if its strides are not those that `_check_strides` allows.

    A compiler may change the layout of inputs after that check, and incoming gradients may have
    any strides, such as those of an expanded scalar.
    """
    is_valid = (x.ndim == 3 or x.stride(3) == 1) and _span(name, x) < MAX_SPAN
    return x if is_valid else x.contiguous()


def _problem(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    blend: Tensor | None,
    written: Tensor | None,
    gate: Tensor | None,
    initial_state: Tensor | None,
    flags: Flags,
) -> Problem:
    optional = {
        "beta": beta,
        "blend": blend,
        "written": written,
        "gate": gate,
        "initial_state": initial_state,
    }
    in_units = (x for x in (q, k, v, gate) if x is not None)
    is_aligned = all(stride % ALIGNED_UNIT == 0 for x in in_units for stride in x.stride()[:3])
    return Problem(
        n_key=k.shape[3],
        n_value=v.shape[3],
        dtype=_TRITON_NAMES[k.dtype],
        given=frozenset(name for name, x in optional.items() if x is not None),
        per_value=alpha.ndim == 4,
        linear_state=flags.linear_state,
        activate=flags.activate,
        normalize=flags.normalize,
        self_gate=flags.self_gate,
        read_all=flags.read_all,
        fast=flags.fast,
        eps=flags.eps,
        unit=ALIGNED_UNIT if is_aligned else 1,
        checkpoint_dtype=flags.checkpoints,
        backend=flags.backend,
    )


def _strides(problem: Problem, **tensors: Tensor | None) -> dict[str, int]:
    """Return batch, time and head strides by kernel argument; 0 for tensors that are None."""
    strides = {}
    for name, tensor in tensors.items():
        unit = problem.unit if name in ("q", "k", "v", "gate") else 1
        for axis, label in enumerate(("batch", "time", "head")):
            strides[f"{name}_{label}"] = 0 if tensor is None else tensor.stride(axis) // unit
    return strides


def _given(**tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: x for name, x in tensors.items() if x is not None}


@torch.library.custom_op("elmanctl::matrix_recurrence_forward", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    blend: Tensor | None,
    written: Tensor | None,
    gate: Tensor | None,
    initial_state: Tensor | None,
    linear_state: bool,
    normalize: bool,
    activate: bool,
    self_gate: bool,
    read_all: bool,
    fast: bool,
    eps: float,
    checkpoint_dtype: str,
    backend: str,
    packed: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, final state and, with `keep`, the checkpoints.

    `written` is a mask, or with `packed` the result of `packed_positions`.
    """
    flags = Flags(
        *(linear_state, normalize, activate, self_gate, read_all, fast, eps),
        *(checkpoint_dtype, backend, packed),
    )
    q, k = _with_valid_strides("q", q), _with_valid_strides("k", k)
    v, alpha = _with_valid_strides("v", v), _with_valid_strides("alpha", alpha)
    gate = None if gate is None else _with_valid_strides("gate", gate)
    problem = _problem(q, k, v, alpha, beta, blend, written, gate, initial_state, flags)
    output, final_state, checkpoints = _empty_results(k, v, checkpoint_dtype, backend, packed, keep)
    batch, length, heads, n_key = k.shape
    split = forward_split(problem)
    n_programs, n_parts = split.grid(batch, heads, v.shape[3])
    rows = 2 * problem.every * split.heads * n_key
    launch = forward_launch(problem, keep=keep)
    with _on_device_of(k):
        launch(
            (n_programs, n_parts),
            **_given(
                q=q,
                k=k,
                v=v,
                alpha=alpha,
                beta=beta,
                blend=blend,
                **{"positions" if packed else "written": written},
                gate=gate,
                initial_state=None if initial_state is None else initial_state.contiguous(),
                checkpoints=checkpoints if keep else None,
            ),
            output=output,
            final_state=final_state,
            scratch=k.new_empty(n_programs * n_parts * rows, dtype=torch.float32),
            **_strides(
                problem,
                q=q,
                k=k,
                v=v,
                gate=gate,
                alpha=alpha,
                beta=beta,
                blend=blend,
                written=None if packed else written,
            ),
            T=length,
            H=heads,
        )
    return output, final_state, checkpoints


def _empty_results(
    k: Tensor, v: Tensor, checkpoint_dtype: str, backend: str, packed: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, n_key = k.shape
    n_value = v.shape[3]
    count = packed or -(-length // checkpoint_every(backend))
    leading = (1, 1) if packed else (batch, heads)
    checkpoints_shape = (*leading, count if keep else 0, n_key * n_value)
    # The kernel leaves positions outside a packed sequence untouched.
    make = torch.zeros if packed else torch.empty
    return (
        make(v.shape, dtype=v.dtype, device=v.device),
        k.new_empty(batch, heads, n_key, n_value, dtype=torch.float32),
        k.new_empty(checkpoints_shape, dtype=_TORCH_DTYPES[checkpoint_dtype]),
    )


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(k, v, *others[-4:])


@torch.library.custom_op("elmanctl::matrix_recurrence_backward", mutates_args=())
def _backward(
    d_output: Tensor,
    d_final_state: Tensor,
    checkpoints: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    blend: Tensor | None,
    written: Tensor | None,
    gate: Tensor | None,
    initial_state: Tensor | None,
    linear_state: bool,
    normalize: bool,
    activate: bool,
    self_gate: bool,
    read_all: bool,
    fast: bool,
    eps: float,
    checkpoint_dtype: str,
    backend: str,
    packed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all tensors but `written`; empty tensors for those that are None."""
    flags = Flags(
        *(linear_state, normalize, activate, self_gate, read_all, fast, eps),
        *(checkpoint_dtype, backend, packed),
    )
    q, k = _with_valid_strides("q", q), _with_valid_strides("k", k)
    v, alpha = _with_valid_strides("v", v), _with_valid_strides("alpha", alpha)
    gate = None if gate is None else _with_valid_strides("gate", gate)
    d_output = _with_valid_strides("d_output", d_output)
    problem = _problem(q, k, v, alpha, beta, blend, written, gate, initial_state, flags)
    split = backward_split(problem)
    batch, length, heads, n_key = k.shape
    n_value = v.shape[3]
    n_programs, n_parts = split.grid(batch, heads, n_value)
    if backend == "gluon":
        # The Gluon kernel requires a contiguous gradient.
        d_output = d_output.contiguous()
    parts = _empty_parts(k, v, alpha, beta, blend, gate, initial_state, n_parts, packed=packed)
    launch = backward_launch(problem)
    arguments = {
        **_given(q=q, k=k, v=v, alpha=alpha, beta=beta, blend=blend, gate=gate),
        **_given(**{"positions" if packed else "written": written}),
        "checkpoints": checkpoints,
        "d_output": d_output,
        "d_final_state": d_final_state.contiguous(),
        **parts,
        **_strides(
            problem,
            q=q,
            k=k,
            v=v,
            gate=gate,
            alpha=alpha,
            beta=beta,
            blend=blend,
            written=None if packed else written,
            d_output=d_output,
        ),
        "B": batch,
        "T": length,
        "H": heads,
    }
    if "stash" in launch.pointers:
        n_all = n_programs * n_parts * problem.every
        rows = split.heads * (4 * n_key + 2 * split.values)
        arguments["scratch"] = k.new_empty(n_all * rows, dtype=torch.float32)
        state_size = split.heads * n_key * split.values
        stash_dtype = _TORCH_DTYPES[problem.stash_dtype]
        arguments["stash"] = k.new_empty(n_all * state_size, dtype=stash_dtype)
    names = {*launch.pointers, *launch.integers}
    with _on_device_of(k):
        launch((n_programs, n_parts), **{name: x for name, x in arguments.items() if name in names})
    return _sum_parts(parts, k, alpha)


def _empty_parts(
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    blend: Tensor | None,
    gate: Tensor | None,
    initial_state: Tensor | None,
    n_parts: int,
    *,
    packed: int,
) -> dict[str, Tensor]:
    """Allocate the kernel's outputs, with one part per program of a head for shared gradients."""
    steps = k.shape[:3]
    part_dtype = k.dtype if n_parts == 1 else torch.float32
    make = torch.zeros if packed else torch.empty

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return make(shape, dtype=dtype, device=k.device)

    per_head = (n_parts, *steps)
    return {
        "d_q": empty((n_parts, *k.shape), part_dtype),
        "d_k": empty((n_parts, *k.shape), part_dtype),
        "d_v": empty(v.shape, v.dtype),
        "d_alpha": empty(alpha.shape if alpha.ndim == 4 else per_head, torch.float32),
        "d_beta": empty(per_head if beta is not None else (0,), torch.float32),
        "d_blend": empty(per_head if blend is not None else (0,), torch.float32),
        "d_gate": empty(v.shape if gate is not None else (0,), v.dtype),
        "d_initial_state": empty(
            (k.shape[0], k.shape[2], k.shape[3], v.shape[3]) if initial_state is not None else (0,),
            torch.float32,
        ),
    }


def _sum_parts(
    parts: dict[str, Tensor], k: Tensor, alpha: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum the partial gradients; return them in the order of the operator's results."""

    def total(x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.ndim <= 1:
            return x
        return x[0] if len(x) == 1 else x.sum(0).to(dtype)

    return (
        total(parts["d_q"], k.dtype),
        total(parts["d_k"], k.dtype),
        parts["d_v"],
        parts["d_alpha"] if alpha.ndim == 4 else total(parts["d_alpha"], torch.float32),
        total(parts["d_beta"], torch.float32),
        total(parts["d_blend"], torch.float32),
        parts["d_gate"],
        parts["d_initial_state"],
    )


@_backward.register_fake
def _(
    d_output: Tensor,
    d_final_state: Tensor,
    checkpoints: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor | None,
    blend: Tensor | None,
    written: Tensor | None,
    gate: Tensor | None,
    initial_state: Tensor | None,
    *flags: Any,
) -> Any:
    parts = _empty_parts(k, v, alpha, beta, blend, gate, initial_state, 1, packed=0)
    return _sum_parts(parts, k, alpha)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.flags = inputs[9:-1]
    ctx.save_for_backward(output[2], *inputs[:9])
    ctx.mark_non_differentiable(output[2])
    # Otherwise autograd allocates a zero gradient as large as the checkpoints.
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, d_output: Tensor | None, d_final_state: Tensor | None, _: None
) -> tuple[Any, ...]:
    checkpoints, *tensors = ctx.saved_tensors
    k, v = tensors[1:3]
    if checkpoints.shape[2] == 0:
        raise RuntimeError("no checkpoints for the backward pass: the operator had keep=False")
    if d_output is None:
        d_output = torch.zeros_like(v, memory_format=torch.contiguous_format)
    if d_final_state is None:
        d_final_state = k.new_zeros(
            k.shape[0], k.shape[2], k.shape[3], v.shape[3], dtype=torch.float32
        )
    results = _backward(d_output, d_final_state, checkpoints, *tensors, *ctx.flags)
    *d_inputs, d_gate, d_initial_state = results
    gradients = (*d_inputs, None, d_gate, d_initial_state)
    return (
        *(d if x is not None else None for d, x in zip(gradients, tensors, strict=True)),
        *(None for _ in ctx.flags),
        None,
    )


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _on_device_of(x: Tensor) -> Any:
    """Make the tensor's device current, since kernels launch on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else torch.autograd.grad_mode.no_grad()
