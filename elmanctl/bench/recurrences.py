"""Benchmark entries of the matrix recurrence, one for each form that models use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.bench.floors import matrix_recurrence_counts, routed_heads
from elmanctl.bench.operation import Draw, Operation, Path, output_and_state, plain_torch
from elmanctl.bench.size import Size, matrix_size
from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.kernels.matrix_recurrence.naive import naive_matrix_recurrence
from elmanctl.models.backends import BACKENDS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """Optional inputs of the recurrence, and options of the operation."""

    gated: bool = False
    per_value_decay: bool = False
    write_gate: bool = False
    blended: bool = False
    routed: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _draw_recurrence(size: Size, draw: Draw, with_state: bool, *, form: _Form) -> dict[str, Tensor]:
    """Draw inputs as a layer provides them: q, k and v are views of one fused projection."""
    steps = (size.batch, size.length, size.heads)
    keys, values = size.heads * size.keys, size.heads * size.values
    mixed = draw.vectors(size.batch, size.length, 2 * keys + values)
    if not form.options.get("normalize", True):
        mixed[..., : 2 * keys] *= size.keys**-0.5
    q, k, v = (part.view(*steps, -1) for part in torch.split(mixed, [keys, keys, values], dim=-1))
    decays = (*steps, size.values) if form.per_value_decay else steps
    inputs = {"q": q, "k": k, "v": v, "alpha": torch.sigmoid(draw.states(*decays) + 2)}
    if form.gated:
        inputs["gate"] = draw.vectors(*steps, size.values)
    if form.write_gate:
        inputs["beta"] = torch.sigmoid(draw.states(*steps))
    if form.blended:
        inputs["blend"] = torch.sigmoid(draw.states(*steps))
        inputs["written"] = draw.states(*steps) > 0
    if form.routed:
        inputs["written"] = draw.states(*steps).topk(routed_heads(size)).indices
    if with_state:
        state = draw.states(size.batch, size.heads, size.keys, size.values)
        inputs["initial_state"] = torch.tanh(state)
    return inputs


def _truth(k: Tensor, *, written: Tensor | None = None, **arguments: Any) -> tuple[Tensor, Tensor]:
    """Run the time loop, which takes the written heads only as a mask."""
    if written is not None and written.dtype != torch.bool:
        written = F.one_hot(written, k.shape[2]).amax(-2).bool()
    return naive_matrix_recurrence(k=k, written=written, **arguments)


def _fast_tanh_unavailable(device: str) -> str | None:
    if device == "cpu":
        return "the fast tanh is a GPU instruction"
    return BACKENDS["triton"].unavailable_reason(device)


def _recurrence(
    name: str,
    summary: str,
    sizes: tuple[Size, ...],
    test_sizes: tuple[Size, ...],
    *,
    tiny_sizes: tuple[Size, ...] = (matrix_size(1, 4, 1, 16),),
    has_gluon: bool = False,
    form: _Form,
) -> Operation:
    """Return the entry of a form of the matrix recurrence."""
    on = partial(output_and_state, matrix_recurrence, **form.options)
    gluon = Path(
        name="gluon",
        run=on(backend="gluon"),
        unavailable_reason=BACKENDS["gluon"].unavailable_reason,
        tolerances={"bfloat16": 6e-3, "float32": 2e-3},
        is_ours=True,
    )
    return Operation(
        name=name,
        summary=summary,
        draw=partial(_draw_recurrence, form=form),
        truth=output_and_state(_truth, **form.options),
        paths=(
            # The training default; its tanh is that of the special-function unit, to 2^-11.
            Path(
                name="triton",
                run=on(backend="triton", tanh="fast"),
                unavailable_reason=_fast_tanh_unavailable,
                tolerances={"bfloat16": 6e-3, "float32": 2e-3},
                is_ours=True,
            ),
            *([gluon] if has_gluon else []),
            Path(
                name="triton-exact",
                run=on(backend="triton", tanh="exact"),
                unavailable_reason=BACKENDS["triton"].unavailable_reason,
                tolerances={"bfloat16": 6e-3, "float32": 2e-6},
                is_for_tests=True,
            ),
            plain_torch(on(backend="torch"), float32=2e-6),
        ),
        counts=matrix_recurrence_counts(
            gated=form.gated,
            squashes=not form.options.get("linear_state"),
            per_value_decay=form.per_value_decay,
            scores=1 + form.write_gate + form.blended,
            routed=form.routed,
        ),
        sizes=sizes,
        test_sizes=test_sizes,
        tiny_sizes=tiny_sizes,
    )


RECURRENCES: tuple[Operation, ...] = (
    _recurrence(
        "matrix_recurrence",
        "E88: silu, unit keys, tanh state, one decay per head, output gate",
        sizes=(
            matrix_size(16, 512, 83, 32),
            matrix_size(16, 512, 98, 32),
            matrix_size(16, 512, 99, 32),
            matrix_size(16, 512, 76, 16),
            matrix_size(16, 512, 108, 48),
            matrix_size(16, 512, 40, 64),
            matrix_size(4, 2048, 83, 32),
            matrix_size(1, 8192, 83, 32),
        ),
        test_sizes=(
            matrix_size(2, 67, 3, 16),
            matrix_size(2, 130, 3, 32),
            matrix_size(1, 67, 2, 48),
            matrix_size(1, 67, 2, 64),
            matrix_size(3, 1, 5, 32),
            matrix_size(1, 35, 3, 32, 16),
        ),
        # One size is longer than the checkpoint interval.
        tiny_sizes=(matrix_size(1, 18, 1, 16), matrix_size(1, 2, 1, 32)),
        has_gluon=True,
        form=_Form(gated=True, options={"activation": "silu"}),
    ),
    _recurrence(
        "matrix_recurrence:write_gate",
        "E90, and E88 with a write gate",
        sizes=(),
        test_sizes=(matrix_size(2, 35, 3, 16), matrix_size(1, 67, 2, 64)),
        has_gluon=True,
        form=_Form(write_gate=True, options={"activation": "silu"}),
    ),
    _recurrence(
        "matrix_recurrence:linear_state",
        "E88 without the tanh",
        sizes=(),
        test_sizes=(matrix_size(2, 67, 3, 32),),
        form=_Form(gated=True, options={"linear_state": True}),
    ),
    _recurrence(
        "matrix_recurrence:decay_per_value",
        "E75: one decay per value, unnormalized keys, self-gated",
        sizes=(matrix_size(16, 512, 8, 32),),
        test_sizes=(matrix_size(2, 35, 3, 16), matrix_size(1, 67, 2, 32)),
        form=_Form(per_value_decay=True, options={"normalize": False, "self_gate": True}),
    ),
    _recurrence(
        "matrix_recurrence:blend",
        "E87 as in the study: written heads with blend weights, self-gated",
        sizes=(),
        test_sizes=(matrix_size(2, 35, 3, 32),),
        form=_Form(blended=True, options={"normalize": False, "self_gate": True}),
    ),
    _recurrence(
        "matrix_recurrence:routed",
        "MoM-E88: a fifth of the heads at each position, by index",
        sizes=(matrix_size(16, 512, 40, 64),),
        test_sizes=(matrix_size(2, 67, 6, 32), matrix_size(1, 35, 10, 64)),
        tiny_sizes=(matrix_size(1, 4, 2, 16),),
        form=_Form(routed=True, options={"activation": "silu", "read": "written"}),
    ),
)
