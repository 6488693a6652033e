"""Benchmark session: measures ceilings and rows in one process, reporting each as it finishes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elmanctl.bench.ceilings import Ceiling, measure_ceilings, rates_of
from elmanctl.bench.floors import Rates
from elmanctl.bench.kernel_rows import KernelRow, kernel_rows, plan
from elmanctl.bench.machine import cache_bytes, describe
from elmanctl.bench.products import Product, measure_products, products_ms
from elmanctl.bench.report import Report
from elmanctl.bench.shapes import StepModel, step_shape
from elmanctl.bench.step_rows import StepRow, plan_steps, step_rows
from elmanctl.errors import UsageError
from elmanctl.run.corpus import standard_library_corpus

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]


class Session:
    """A growing report, written to `out` after each row; no row starts after `minutes`."""

    def __init__(
        self, device: "torch.device", *, out: Path | None, minutes: float | None, say: Say
    ) -> None:
        self.report = Report(machine=describe(device))
        self._device = device
        self._out = out
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self._say = say

    def kernels(self, only: Sequence[str]) -> Report:
        """Measure ceilings, the models' matrix products, and the operations."""
        planned = plan(self._device, only)
        _require_rows(planned, only)
        rates = self._ceilings()
        if not only:
            self._products(step_shape(self._device).models)
        rows = kernel_rows(planned, rates, self._device, cache_bytes(self._device), self._is_over)
        for row in rows:
            self._add("kernels", row, _kernel_line(row))
        return self.report

    def steps(self, only: Sequence[str]) -> Report:
        """Measure ceilings, the models' matrix products, and whole training steps."""
        shape = step_shape(self._device)
        planned = plan_steps(shape, only)
        _require_rows(planned, only)
        rates = self._ceilings()
        names = {row.model.name for row in planned}
        self._products([model for model in shape.models if model.name in names])
        corpus = standard_library_corpus()
        rows = step_rows(planned, shape, corpus, self._device, rates.matrix_flops, self._is_over)
        for row in rows:
            self._add("steps", row, _step_line(row))
        return self.report

    def _ceilings(self) -> Rates:
        found = []
        for ceiling in measure_ceilings(self._device):
            found.append(ceiling)
            self._add("ceilings", ceiling, _ceiling_line(ceiling))
        return rates_of(found)

    def _products(self, models: Sequence[StepModel]) -> None:
        """Measure the linear maps of `models` with the tokens of a step."""
        tokens = step_shape(self._device).tokens
        found: list[Product] = []
        for product in measure_products(models, tokens, self._device, cache_bytes(self._device)):
            found.append(product)
            line = f"product {product.n_in} -> {product.n_out}: {product.ms:.3g} ms"
            self._add("products", product, line)
        for model in models:
            self.report.products_alone_ms[model.name] = products_ms(model, found)

    def _add(self, kind: str, row: object, line: str) -> None:
        self.report.add(kind, row)
        self._say(line)
        if self._out is not None:
            self.report.write(self._out)

    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


def _require_rows(planned: Sequence[object], only: Sequence[str]) -> None:
    if not planned:
        raise UsageError(f"no row matches any of: {', '.join(only)}", hint="omit `--only`")


def _ceiling_line(ceiling: Ceiling) -> str:
    if ceiling.value is None:
        return f"{ceiling.name}: {ceiling.reason}"
    return f"{ceiling.name}: {ceiling.value:.4g} {ceiling.unit}/s"


def _kernel_line(row: KernelRow) -> str:
    prefix = f"{row.operation} {row.path} {row.size}: "
    if row.forward_ms is None or row.backward_ms is None:
        return f"{prefix}{row.status}, {row.reason}"
    return f"{prefix}forward {row.forward_ms:.3g} ms, backward {row.backward_ms:.3g} ms"


def _step_line(row: StepRow) -> str:
    prefix = f"{row.model} {row.backend}: "
    if row.tokens_per_s is None:
        return f"{prefix}{row.status}, {row.reason}"
    return f"{prefix}{row.tokens_per_s:,.0f} tok/s, {row.step_ms:.4g} ms per step"
