"""The forms of the matrix recurrence that models use, one entry each."""

from functools import partial
from inspect import signature

import torch
from torch import Tensor

from elmanctl.bench.floors import matrix_recurrence_counts
from elmanctl.bench.operation import Draw, Operation, Path, output_and_state
from elmanctl.bench.size import Size, matrix_size
from elmanctl.kernels.matrix_recurrence import BACKENDS as KNOWN
from elmanctl.kernels.matrix_recurrence import matrix_recurrence
from elmanctl.kernels.matrix_recurrence.naive import naive_matrix_recurrence
from elmanctl.models.backends import BACKENDS


def _draw_recurrence(
    size: Size,
    draw: Draw,
    with_state: bool,
    *,
    gated: bool = True,
    per_value_decay: bool = False,
    write_gate: bool = False,
    blended: bool = False,
    normalize: bool = True,
) -> dict[str, Tensor]:
    """Draw what a layer gives: q, k and v are parts of one projection, as its product wrote it."""
    steps = (size.batch, size.length, size.heads)
    keys, values = size.heads * size.keys, size.heads * size.values
    mixed = draw.vectors(size.batch, size.length, 2 * keys + values)
    if not normalize:
        mixed[..., : 2 * keys] *= size.keys**-0.5
    q, k, v = (part.view(*steps, -1) for part in torch.split(mixed, [keys, keys, values], -1))
    decays = (*steps, size.values) if per_value_decay else steps
    inputs = {"q": q, "k": k, "v": v, "alpha": torch.sigmoid(draw.states(*decays) + 2)}
    if gated:
        inputs["gate"] = draw.vectors(*steps, size.values)
    if write_gate:
        inputs["beta"] = torch.sigmoid(draw.states(*steps))
    if blended:
        inputs["blend"] = torch.sigmoid(draw.states(*steps))
    if with_state:
        state = draw.states(size.batch, size.heads, size.keys, size.values)
        inputs["initial_state"] = torch.tanh(state)
    return inputs


_HAS_TANH_MODES = "tanh" in signature(matrix_recurrence).parameters


def _recurrence_fault(device: str, *, is_fast: bool) -> str | None:
    if "triton" not in KNOWN:
        return "the matrix recurrence has no backend `triton`"
    if device == "cpu" and is_fast:
        return "the fast tanh is an instruction of GPUs"
    return BACKENDS["triton"].find_fault(device)


def _recurrence(
    name: str,
    summary: str,
    sizes: tuple[Size, ...],
    test_sizes: tuple[Size, ...],
    *,
    gated: bool = True,
    per_value_decay: bool = False,
    write_gate: bool = False,
    blended: bool = False,
    **switches: bool,
) -> Operation:
    """Return the entry of one form of the matrix recurrence."""

    # The fast tanh is that of the special-function unit, to 2^-11; the exact one is for tests.
    fast, exact = ({"tanh": mode} if _HAS_TANH_MODES else {} for mode in ("fast", "exact"))
    return Operation(
        name=name,
        summary=summary,
        draw=partial(
            _draw_recurrence,
            gated=gated,
            per_value_decay=per_value_decay,
            write_gate=write_gate,
            blended=blended,
            normalize=switches.get("normalize", True),
        ),
        truth=output_and_state(naive_matrix_recurrence, **switches),
        paths=(
            Path(
                name="triton",
                run=output_and_state(matrix_recurrence, backend="triton", **fast, **switches),
                find_fault=partial(_recurrence_fault, is_fast=True),
                tolerances={"bfloat16": 6e-3, "float32": 2e-3},
                is_ours=True,
            ),
            Path(
                name="triton-exact",
                run=output_and_state(matrix_recurrence, backend="triton", **exact, **switches),
                find_fault=partial(_recurrence_fault, is_fast=False),
                tolerances={"bfloat16": 6e-3, "float32": 2e-6},
                is_for_tests=True,
            ),
            Path(
                name="torch",
                run=output_and_state(matrix_recurrence, backend="torch", **switches),
                find_fault=BACKENDS["torch"].find_fault,
                tolerances={"bfloat16": 6e-3, "float32": 2e-6},
            ),
        ),
        counts=matrix_recurrence_counts(
            gated=gated,
            squashes=not switches.get("linear_state"),
            per_value_decay=per_value_decay,
            scores=1 + write_gate + blended,
        ),
        sizes=sizes,
        test_sizes=test_sizes,
        tiny_sizes=(matrix_size(1, 18, 2, 16), matrix_size(1, 3, 1, 32)),
    )


RECURRENCES: tuple[Operation, ...] = (
    _recurrence(
        "matrix_recurrence",
        "E88: tanh state, one decay a head, output gate",
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
    ),
    _recurrence(
        "matrix_recurrence:write_gate",
        "E88 and E90 with a gate of the write",
        sizes=(),
        test_sizes=(matrix_size(2, 35, 3, 16), matrix_size(1, 67, 2, 32)),
        write_gate=True,
    ),
    _recurrence(
        "matrix_recurrence:linear_state",
        "E88 without the tanh",
        sizes=(),
        test_sizes=(matrix_size(2, 67, 3, 32),),
        linear_state=True,
    ),
    _recurrence(
        "matrix_recurrence:decay_per_value",
        "E75: a decay for each value, keys and queries as they are",
        sizes=(matrix_size(16, 512, 8, 32),),
        test_sizes=(matrix_size(2, 35, 3, 16), matrix_size(1, 67, 2, 32)),
        gated=False,
        per_value_decay=True,
        normalize=False,
    ),
    _recurrence(
        "matrix_recurrence:blend",
        "E87 and MoM-E88: how far each write replaces the state",
        sizes=(matrix_size(16, 512, 4, 32),),
        test_sizes=(matrix_size(2, 35, 3, 32), matrix_size(1, 19, 2, 64)),
        gated=False,
        blended=True,
    ),
)
