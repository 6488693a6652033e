"""Benchmark of the matrix products of our models' linear maps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from elmanctl.bench.shapes import StepModel, projections
from elmanctl.bench.timing import measure, sets_needed

_SECONDS = {"cuda": 0.25, "cpu": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Times of the three products of a linear map in a training step, in bf16.

    The map takes [tokens, n_in] to [tokens, n_out]; the products are the forward pass and the
    gradients of its input and its weight.
    """

    tokens: int
    n_in: int
    n_out: int
    forward_ms: float
    input_gradient_ms: float
    weight_gradient_ms: float
    spread: float

    @property
    def ms(self) -> float:
        """Total time of the three products."""
        return self.forward_ms + self.input_gradient_ms + self.weight_gradient_ms


def measure_products(
    models: Sequence[StepModel], tokens: int, device: torch.device, cache_bytes: int
) -> Iterator[Product]:
    """Measure each distinct shape of the models' linear maps."""
    widths = {(p.n_in, p.n_out): None for model in models for p in projections(model.config)}
    for n_in, n_out in widths:
        yield _measure(tokens, n_in, n_out, device, cache_bytes)


def products_ms(model: StepModel, products: Sequence[Product]) -> float:
    """Return the total milliseconds of the matrix products of a step.

    Raises KeyError if a linear map of the model was not measured.
    """
    by_width = {(p.n_in, p.n_out): p for p in products}
    return sum(p.count * by_width[p.n_in, p.n_out].ms for p in projections(model.config))


def _measure(tokens: int, n_in: int, n_out: int, device: torch.device, cache_bytes: int) -> Product:
    set_bytes = 2 * (tokens * (n_in + n_out) + n_in * n_out)
    sets = [
        tuple(
            torch.randn(shape, device=device, dtype=torch.bfloat16)
            for shape in ((tokens, n_in), (n_out, n_in), (tokens, n_out))
        )
        for _ in range(sets_needed(set_bytes, cache_bytes))
    ]

    def forward(number: int) -> None:
        x, weight, _ = sets[number % len(sets)]
        x @ weight.T

    def input_gradient(number: int) -> None:
        _, weight, dy = sets[number % len(sets)]
        dy @ weight

    def weight_gradient(number: int) -> None:
        x, _, dy = sets[number % len(sets)]
        dy.T @ x

    calls = (forward, input_gradient, weight_gradient)
    timings = [measure(call, device, _SECONDS[device.type]) for call in calls]
    return Product(
        tokens=tokens,
        n_in=n_in,
        n_out=n_out,
        forward_ms=timings[0].ms,
        input_gradient_ms=timings[1].ms,
        weight_gradient_ms=timings[2].ms,
        spread=max(timing.spread for timing in timings),
    )
