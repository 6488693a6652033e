"""Observers of the training loop that time and profile its steps."""

import time
from collections import Counter, defaultdict
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from elmanctl.jobs.metrics import StepRecord


class StepClock:
    """Records when each training step reports, which is after its backward pass has finished."""

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._warm = 0

    def phase(self, name: str) -> None:
        """Record the start of a phase: the warm-up or the training."""
        if name == "training":
            self._warm = len(self._ends)

    def step(self, record: StepRecord) -> None:
        """Record a step; its optimizer update counts towards the time of the next step."""
        self._ends.append(time.perf_counter())

    def validation(self, step: int, loss: float) -> None:
        """Ignore a validation, which these trainings do not make."""

    def step_ms(self) -> list[float]:
        """Return the milliseconds of each step after the warm-up."""
        ends = self._ends[max(0, self._warm - 1) :]
        return [(end - start) * 1e3 for start, end in pairwise(ends)]


def medians_of_thirds(step_ms: list[float]) -> list[float]:
    """Return the medians of the first, second and last third of the steps, as three repeats."""
    size = max(1, len(step_ms) // 3)
    thirds = [step_ms[:size], step_ms[size : 2 * size], step_ms[2 * size :]]
    return [median(third) for third in thirds if third]


class StepProfile:
    """Profiles whole training steps, from the report of step `first` to that of step `last`."""

    def __init__(self, first: int, last: int, device: torch.device) -> None:
        self.steps = last - first
        self._first, self._last = first, last
        self._on_cuda = device.type == "cuda"
        activity = ProfilerActivity.CUDA if self._on_cuda else ProfilerActivity.CPU
        self._profiler: Any = profile(activities=[activity])

    def phase(self, name: str) -> None:
        """Ignore the start of a phase."""

    def step(self, record: StepRecord) -> None:
        """Start or stop the profiler."""
        if record.step == self._first:
            self._profiler.start()
        elif record.step == self._last:
            if self._on_cuda:
                torch.cuda.synchronize()
            self._profiler.stop()

    def validation(self, step: int, loss: float) -> None:
        """Ignore a validation, which these trainings do not make."""

    def kernel_ms(self) -> list[tuple[str, float, float]]:
        """Return name, milliseconds and launches per step of each kernel, longest first.

        On a CPU these are torch operators, with self time.
        """
        times: defaultdict[str, float] = defaultdict(float)
        launches: Counter[str] = Counter()
        for event in self._profiler.events():
            duration_us = self._self_time_us(event)
            if duration_us:
                times[event.name] += duration_us
                launches[event.name] += 1
        return [
            (name, total_us / 1e3 / self.steps, launches[name] / self.steps)
            for name, total_us in sorted(times.items(), key=lambda item: -item[1])
        ]

    def _self_time_us(self, event: Any) -> float:
        on_host = event.device_type == DeviceType.CPU
        if self._on_cuda:
            # User annotations, such as an optimizer step, span kernels that are listed themselves.
            skipped = on_host or event.is_user_annotation
            return 0.0 if skipped else float(event.time_range.elapsed_us())
        return float(event.self_cpu_time_total) if on_host else 0.0
