"""What the training loop tells while it is measured: when its steps end, and what ran in them."""

import time
from collections import Counter
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch.profiler import DeviceType, ProfilerActivity, profile

from elmanctl.jobs.metrics import StepRecord


class StepClock:
    """Notes when each step of a training reports, all its work before the update done by then."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._ends: list[float] = []
        self._warm = 0

    def phase(self, name: str) -> None:
        """Learn that the warm-up or the training proper begins."""
        if name == "training":
            self._warm = len(self._ends)

    def step(self, record: StepRecord) -> None:
        """Learn of a step; its update, and the next step's work, are in the time of the next."""
        self._ends.append(time.perf_counter())
        self.losses.append(record.loss)

    def step_ms(self) -> list[float]:
        """Return the milliseconds of every step after the warm-up."""
        ends = self._ends[max(0, self._warm - 1) :]
        return [(end - start) * 1e3 for start, end in pairwise(ends)]


def medians_of_thirds(step_ms: list[float]) -> list[float]:
    """Return the medians of the first, second and last third of the steps: three repeats."""
    size = max(1, len(step_ms) // 3)
    thirds = [step_ms[:size], step_ms[size : 2 * size], step_ms[2 * size :]]
    return [median(third) for third in thirds if third]


class StepProfile:
    """Profiles whole steps of a training: from one report to a later one, all work done at both."""

    def __init__(self, first: int, last: int, device: torch.device) -> None:
        self.steps = last - first
        self._first, self._last = first, last
        self._on_cuda = device.type == "cuda"
        activities = [ProfilerActivity.CPU]
        if self._on_cuda:
            activities = [ProfilerActivity.CUDA]
        self._profiler: Any = profile(activities=activities)

    def phase(self, name: str) -> None:
        """Learn that the warm-up or the training proper begins."""

    def step(self, record: StepRecord) -> None:
        """Start or stop at the steps that were asked for."""
        if record.step == self._first:
            self._profiler.start()
        elif record.step == self._last:
            if self._on_cuda:
                torch.cuda.synchronize()
            self._profiler.stop()

    def kernel_ms(self) -> list[tuple[str, float, float]]:
        """Return name, milliseconds and launches, a step, of every kernel; the longest first.

        On a CPU these are torch's operators, each without those that it calls.
        """
        times: dict[str, float] = {}
        launches: Counter[str] = Counter()
        for event in self._profiler.events():
            taken_us = self._own_us(event)
            if taken_us:
                times[event.name] = times.get(event.name, 0.0) + taken_us
                launches[event.name] += 1
        return [
            (name, taken / 1e3 / self.steps, launches[name] / self.steps)
            for name, taken in sorted(times.items(), key=lambda item: -item[1])
        ]

    def _own_us(self, event: Any) -> float:
        on_host = event.device_type == DeviceType.CPU
        if self._on_cuda:
            # What a program names itself, such as an optimizer's step, spans kernels of its own.
            skipped = on_host or event.is_user_annotation
            return 0.0 if skipped else float(event.time_range.elapsed_us())
        return float(event.self_cpu_time_total) if on_host else 0.0
