"""Matrix recurrence on Triton kernels, as custom operators for torch.compile.

The operators `elmanctl::matrix_recurrence_forward` and `.._backward` are opaque to the compiler, so
a model that uses them compiles as one graph.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from elmanctl.errors import InvalidConfiguration
from elmanctl.kernels.matrix_recurrence import launches, routing
from elmanctl.kernels.matrix_recurrence.sizes import CHECKPOINT_EVERY

IS_INTERPRETED = triton.knobs.runtime.interpret
"""Whether kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)."""

MAX_SPAN = 2**31
"""Exclusive limit of the offsets, in elements, that kernels compute in 32 bits."""

_TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TRITON_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


class Tensors(NamedTuple):
    """Tensor arguments, in the order of the operators' signatures.

    `written` is a mask, or with `packed` the result of `packed_positions`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    alpha: Tensor
    beta: Tensor | None
    blend: Tensor | None
    written: Tensor | None
    gate: Tensor | None
    initial_state: Tensor | None


class Flags(NamedTuple):
    """Non-tensor arguments, in the order of the operators' signatures."""

    linear_state: bool
    normalize: bool
    activate: bool
    self_gate: bool
    read_all: bool
    fast: bool
    eps: float
    checkpoint_dtype: str
    backend: str
    packed: int = 0
    """Checkpoints of all heads together; 0 if every head has the same number."""


_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? beta, Tensor? blend, Tensor? written, "
    "Tensor? gate, Tensor? initial_state, bool linear_state, bool normalize, bool activate, "
    "bool self_gate, bool read_all, bool fast, float eps, str checkpoint_dtype, str backend, "
    "SymInt packed"
)
"""Fields of Tensors and Flags, as arguments of the operators."""


def triton_matrix_recurrence(tensors: Tensors, flags: Flags) -> tuple[Tensor, Tensor]:
    """Compute `naive_matrix_recurrence`; the caller has checked shapes and dtypes.

    `written` is a mask or the indices of heads, as for `matrix_recurrence`.
    Raises InvalidConfiguration for a tensor whose last axis is not contiguous or whose strides
    exceed 32-bit offsets.
    """
    written, n_heads = tensors.written, tensors.k.shape[2]
    if written is not None and flags.read_all:
        tensors = tensors._replace(written=routing.write_mask(written, n_heads))
    elif written is not None:
        max_written = n_heads if written.dtype == torch.bool else written.shape[2]
        mask, every = routing.write_mask(written, n_heads), launches.checkpoint_every(flags.backend)
        tensors = tensors._replace(written=routing.packed_positions(mask, every))
        flags = flags._replace(packed=routing.max_checkpoints(mask.shape, max_written, every))
    for name, x in _strided(tensors, flags).items():
        if x is not None:
            _check_strides(name, x)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    output, final_state, _ = _forward(*tensors, *flags, keep)
    return output, final_state


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


def _strided(tensors: Tensors, flags: Flags) -> dict[str, Tensor | None]:
    """Return the tensors whose strides the kernels read, by name."""
    named = tensors._asdict()
    del named["initial_state"]
    return {**named, "written": None} if flags.packed else named


def _prepare(tensors: Tensors, flags: Flags) -> tuple[Tensors, launches.Problem]:
    """Return the tensors with valid strides, and the problem that they pose."""
    tensors = tensors._replace(
        **{
            name: _with_valid_strides(name, x)
            for name in ("q", "k", "v", "alpha", "gate")
            if (x := getattr(tensors, name)) is not None
        }
    )
    optional = ("beta", "blend", "written", "gate", "initial_state")
    in_units = (x for x in (*tensors[:3], tensors.gate) if x is not None)
    strides = (stride for x in in_units for stride in x.stride()[:3])
    is_aligned = all(stride % launches.ALIGNED_UNIT == 0 for stride in strides)
    options = flags._asdict()
    del options["packed"]
    return tensors, launches.Problem(
        n_key=tensors.k.shape[3],
        n_value=tensors.v.shape[3],
        dtype=_TRITON_NAMES[tensors.k.dtype],
        given=frozenset(name for name in optional if getattr(tensors, name) is not None),
        per_value=tensors.alpha.ndim == 4,
        unit=launches.ALIGNED_UNIT if is_aligned else 1,
        **options,
    )


def _arguments(
    problem: launches.Problem, tensors: Tensors, flags: Flags, d_output: Tensor | None = None
) -> dict[str, Any]:
    """Return the arguments of both kernels: the tensors given, their strides, and the sizes.

    Strides are those of batch, time and head; 0 for tensors that are None.
    """
    given: dict[str, Any] = {name: x for name, x in tensors._asdict().items() if x is not None}
    if flags.packed:
        given["positions"] = given.pop("written")
    strided = _strided(tensors, flags)
    if d_output is not None:
        strided["d_output"] = d_output
    for name, x in strided.items():
        unit = problem.unit if name in ("q", "k", "v", "gate") else 1
        for axis, label in enumerate(("batch", "time", "head")):
            given[f"{name}_{label}"] = 0 if x is None else x.stride(axis) // unit
    return given | {"T": tensors.k.shape[1], "H": tensors.k.shape[2]}


@torch.library.custom_op(
    "elmanctl::matrix_recurrence_forward",
    mutates_args=(),
    schema=f"({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, final state and, with `keep`, the checkpoints."""
    flags, keep = Flags(*arguments[9:-1]), arguments[-1]
    tensors, problem = _prepare(Tensors(*arguments[:9]), flags)
    k = tensors.k
    output, final_state, checkpoints = _empty_results(tensors, flags, keep)
    batch, _, heads, n_key = k.shape
    split = launches.split_of("forward", problem)
    n_programs, n_parts = split.grid(batch, heads, problem.n_value)
    rows = 2 * problem.every * split.heads * n_key
    given = _arguments(problem, tensors, flags)
    if tensors.initial_state is not None:
        given["initial_state"] = tensors.initial_state.contiguous()
    if keep:
        given["checkpoints"] = checkpoints
    launch = launches.forward_launch(problem, keep=keep)
    # Kernels launch on the current device.
    with torch.cuda.device_of(k):
        launch(
            (n_programs, n_parts),
            **given,
            output=output,
            final_state=final_state,
            scratch=k.new_empty(n_programs * n_parts * rows, dtype=torch.float32),
        )
    return output, final_state, checkpoints


def _empty_results(tensors: Tensors, flags: Flags, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    k, v = tensors.k, tensors.v
    batch, length, heads, n_key = k.shape
    n_value = v.shape[3]
    count = flags.packed or -(-length // launches.checkpoint_every(flags.backend))
    leading = (1, 1) if flags.packed else (batch, heads)
    checkpoints_shape = (*leading, count if keep else 0, n_key * n_value)
    # The kernel leaves positions outside a packed sequence untouched.
    make = torch.zeros if flags.packed else torch.empty
    return (
        make(v.shape, dtype=v.dtype, device=v.device),
        k.new_empty(batch, heads, n_key, n_value, dtype=torch.float32),
        k.new_empty(checkpoints_shape, dtype=_TORCH_DTYPES[flags.checkpoint_dtype]),
    )


@_forward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(Tensors(*arguments[:9]), Flags(*arguments[9:-1]), arguments[-1])


@torch.library.custom_op(
    "elmanctl::matrix_recurrence_backward",
    mutates_args=(),
    schema=f"(Tensor d_output, Tensor d_final_state, Tensor checkpoints, {_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(
    d_output: Tensor, d_final_state: Tensor, checkpoints: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    """Return the gradients of all tensors but `written`; empty tensors for those that are None."""
    flags = Flags(*arguments[9:])
    tensors, problem = _prepare(Tensors(*arguments[:9]), flags)
    k = tensors.k
    d_output = _with_valid_strides("d_output", d_output)
    if flags.backend == "gluon":
        # The Gluon kernel requires a contiguous gradient.
        d_output = d_output.contiguous()
    split = launches.split_of("backward", problem)
    batch, _, heads, n_key = k.shape
    n_programs, n_parts = split.grid(batch, heads, problem.n_value)
    parts = _empty_parts(tensors, n_parts, packed=flags.packed)
    launch = launches.backward_launch(problem)
    given = {
        **_arguments(problem, tensors, flags, d_output),
        **parts,
        "checkpoints": checkpoints,
        "d_output": d_output,
        "d_final_state": d_final_state.contiguous(),
        "B": batch,
    }
    if "stash" in launch.pointers:
        n_all = n_programs * n_parts * problem.every
        rows = split.heads * (4 * n_key + 2 * split.values)
        given["scratch"] = k.new_empty(n_all * rows, dtype=torch.float32)
        state_size = split.heads * n_key * split.values
        stash_dtype = _TORCH_DTYPES[problem.stash_dtype]
        given["stash"] = k.new_empty(n_all * state_size, dtype=stash_dtype)
    names = {*launch.pointers, *launch.integers}
    # Kernels launch on the current device.
    with torch.cuda.device_of(k):
        launch((n_programs, n_parts), **{name: x for name, x in given.items() if name in names})
    return _sum_parts(parts, tensors)


def _empty_parts(tensors: Tensors, n_parts: int, *, packed: int) -> dict[str, Tensor]:
    """Allocate the kernel's outputs, with one part per program of a head for shared gradients."""
    k, v, alpha = tensors.k, tensors.v, tensors.alpha
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
        "d_beta": empty(per_head if tensors.beta is not None else (0,), torch.float32),
        "d_blend": empty(per_head if tensors.blend is not None else (0,), torch.float32),
        "d_gate": empty(v.shape if tensors.gate is not None else (0,), v.dtype),
        "d_initial_state": empty(
            (k.shape[0], k.shape[2], k.shape[3], v.shape[3])
            if tensors.initial_state is not None
            else (0,),
            torch.float32,
        ),
    }


def _sum_parts(parts: dict[str, Tensor], tensors: Tensors) -> tuple[Tensor, ...]:
    """Sum the partial gradients; return them in the order of the operator's results."""

    def total(x: Tensor, dtype: torch.dtype) -> Tensor:
        if x.ndim <= 1:
            return x
        return x[0] if len(x) == 1 else x.sum(0).to(dtype)

    return (
        total(parts["d_q"], tensors.k.dtype),
        total(parts["d_k"], tensors.k.dtype),
        parts["d_v"],
        parts["d_alpha"] if tensors.alpha.ndim == 4 else total(parts["d_alpha"], torch.float32),
        total(parts["d_beta"], torch.float32),
        total(parts["d_blend"], torch.float32),
        parts["d_gate"],
        parts["d_initial_state"],
    )


@_backward.register_fake
def _(
    d_output: Tensor, d_final_state: Tensor, checkpoints: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    tensors = Tensors(*arguments[:9])
    return _sum_parts(_empty_parts(tensors, 1, packed=0), tensors)


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
