"""Registry of operations that are tested and measured, with all their implementations.

To add an operation, add an entry to `OPERATIONS`: the generator of its inputs, its time loop, which
in float64 is the reference, its implementations, its minimum work, and its sizes.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from elmanctl.bench import third_party
from elmanctl.bench.floors import ATTENTION, GATED_DELTA_RULE, STATE_SPACE_DUAL, gated_scan_counts
from elmanctl.bench.operation import Draw, Operation, Path, output_and_state, plain_torch
from elmanctl.bench.recurrences import RECURRENCES
from elmanctl.bench.size import Size, matrix_size
from elmanctl.kernels.gated_delta_rule import gated_delta_rule
from elmanctl.kernels.gated_delta_rule.naive import naive_gated_delta_rule
from elmanctl.kernels.minimal_scan import gated_scan
from elmanctl.kernels.minimal_scan.naive import naive_gated_scan
from elmanctl.kernels.minimal_scan.sizes import SCORES
from elmanctl.kernels.state_space_dual import state_space_dual
from elmanctl.kernels.state_space_dual.naive import naive_state_space_dual
from elmanctl.models.backends import BACKENDS, fla_forward_unavailable, fla_gradient_unavailable
from elmanctl.models.mamba_ssm import scan_on_cuda


def _draw_scores(size: Size, draw: Draw, with_state: bool, *, cell: str) -> dict[str, Tensor]:
    """Draw gate pre-activations in the layout of their fused projection."""
    inputs = {"scores": draw.vectors(size.batch, size.length, SCORES[cell] * size.heads)}
    if with_state:
        inputs["initial_state"] = torch.sigmoid(draw.states(size.batch, size.heads))
    return inputs


def _draw_delta_rule(size: Size, draw: Draw, with_state: bool) -> dict[str, Tensor]:
    steps = (size.batch, size.length, size.heads)
    inputs = {
        "q": draw.vectors(*steps, size.keys),
        "k": draw.vectors(*steps, size.keys),
        "v": draw.vectors(*steps, size.values),
        "log_decay": -0.1 * draw.states(*steps).exp(),
        "beta": torch.sigmoid(draw.states(*steps)),
    }
    if with_state:
        inputs["initial_state"] = draw.states(size.batch, size.heads, size.keys, size.values)
    return inputs


def _draw_state_space(size: Size, draw: Draw, with_state: bool) -> dict[str, Tensor]:
    steps = (size.batch, size.length)
    inputs = {
        "x": draw.vectors(*steps, size.heads, size.values),
        "step": F.softplus(draw.states(*steps, size.heads) - 3),
        "rate": draw.states(size.heads).exp(),
        "write": draw.vectors(*steps, size.keys),
        "read": draw.vectors(*steps, size.keys),
    }
    if with_state:
        inputs["initial_state"] = draw.states(size.batch, size.heads, size.values, size.keys)
    return inputs


def _draw_attention(size: Size, draw: Draw, with_state: bool) -> dict[str, Tensor]:
    shape = (size.batch, size.length, size.heads, size.keys)
    return {name: draw.vectors(*shape) for name in ("q", "k", "v")}


def _gated_scan(cell: str, summary: str, width: int) -> Operation:
    """Return the entry of a cell; `width` is that of the 480M model."""
    return Operation(
        name=f"gated_scan:{cell}",
        summary=summary,
        draw=partial(_draw_scores, cell=cell),
        truth=output_and_state(naive_gated_scan, cell=cell),
        paths=(
            Path(
                name="triton",
                run=output_and_state(gated_scan, cell=cell, backend="triton"),
                unavailable_reason=BACKENDS["triton"].unavailable_reason,
                tolerances={"bfloat16": 6e-3, "float32": 2e-6},
                is_ours=True,
            ),
            plain_torch(output_and_state(gated_scan, cell=cell, backend="torch"), float32=2e-6),
        ),
        counts=gated_scan_counts(SCORES[cell]),
        sizes=tuple(
            Size(batch=batch, length=length, heads=width)
            for batch, length in ((16, 512), (4, 2048), (1, 8192))
        ),
        test_sizes=(
            Size(batch=2, length=130, heads=100),
            Size(batch=1, length=1, heads=7),
            Size(batch=3, length=700, heads=33),
        ),
        tiny_sizes=(Size(batch=1, length=19, heads=5),),
    )


OPERATIONS: tuple[Operation, ...] = (
    *RECURRENCES,
    _gated_scan("mingru", "MinGRU: elementwise linear recurrence, from gate pre-activations", 2944),
    _gated_scan("minlstm", "MinLSTM: the same with two gates", 1792),
    Operation(
        name="gated_delta_rule",
        summary="gated delta net: linear state, decay and delta rule",
        draw=_draw_delta_rule,
        truth=output_and_state(naive_gated_delta_rule),
        paths=(
            Path(
                name="fla",
                run=output_and_state(gated_delta_rule, backend="fla"),
                unavailable_reason=fla_forward_unavailable,
                # Its float32 matrix products use TF32.
                tolerances={"bfloat16": 2e-2, "float32": 5e-3},
                gradient_unavailable=fla_gradient_unavailable,
                for_timing=third_party.fla_gradients_for_timing,
            ),
            plain_torch(output_and_state(gated_delta_rule, backend="torch"), float32=5e-6),
        ),
        counts=GATED_DELTA_RULE,
        sizes=(
            matrix_size(16, 512, 24, 80, 160),
            matrix_size(16, 512, 24, 64),
            matrix_size(16, 512, 83, 32),
            matrix_size(4, 2048, 24, 64),
            matrix_size(1, 8192, 24, 64),
        ),
        test_sizes=(
            matrix_size(2, 130, 3, 64, 128),
            matrix_size(1, 67, 2, 32),
            matrix_size(1, 64, 3, 24, 48),
        ),
        tiny_sizes=(matrix_size(1, 20, 2, 8, 12),),
    ),
    Operation(
        name="state_space_dual",
        summary="Mamba2: linear state, one decay per head, keys shared by all heads",
        draw=_draw_state_space,
        truth=output_and_state(naive_state_space_dual),
        paths=(
            Path(
                name="mamba-ssm",
                run=output_and_state(scan_on_cuda),
                unavailable_reason=BACKENDS["mamba-ssm"].unavailable_reason,
                tolerances={"bfloat16": 2e-2, "float32": 5e-3},
            ),
            plain_torch(output_and_state(state_space_dual), float32=5e-6),
        ),
        counts=STATE_SPACE_DUAL,
        sizes=(
            matrix_size(16, 512, 56, 96, 64),
            matrix_size(4, 2048, 56, 96, 64),
            matrix_size(1, 8192, 56, 96, 64),
        ),
        test_sizes=(matrix_size(2, 300, 4, 96, 64), matrix_size(1, 67, 2, 32, 64)),
        tiny_sizes=(matrix_size(1, 20, 2, 6, 8),),
    ),
    Operation(
        name="attention",
        summary="causal attention of torch, for comparison",
        draw=_draw_attention,
        truth=third_party.naive_attention,
        paths=(
            Path(
                name="flash",
                run=third_party.flash_attention,
                unavailable_reason=lambda device: None,
                tolerances={"bfloat16": 2e-2},
            ),
        ),
        counts=ATTENTION,
        sizes=(
            matrix_size(16, 512, 24, 64),
            matrix_size(4, 2048, 24, 64),
            matrix_size(1, 8192, 24, 64),
        ),
        test_sizes=(matrix_size(2, 130, 3, 64),),
        tiny_sizes=(matrix_size(1, 20, 2, 8),),
        is_tested=False,
    ),
)
