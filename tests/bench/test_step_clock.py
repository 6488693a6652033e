import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.profiler import DeviceType

from elmanctl.bench import step_clock
from elmanctl.bench.step_clock import StepClock, StepProfile, medians_of_thirds
from elmanctl.jobs.metrics import StepRecord

CPU = torch.device("cpu")


def record(step: int) -> StepRecord:
    return StepRecord(step=step, loss=5.0, grad_norm=1.0, tokens=64 * step, elapsed_s=0.0)


def test_steps_are_timed_from_the_end_of_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 10.0, 20.0, 20.1, 20.3, 20.6])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = StepClock()
    clock.phase("warmup")
    for step in range(1, 7):
        if step == 4:
            clock.phase("training")
        clock.step(record(step))
    assert clock.step_ms() == pytest.approx([100, 200, 300])


def test_thirds_are_three_repeats() -> None:
    assert medians_of_thirds([1.0, 1.0, 9.0, 2.0, 2.0, 0.0, 3.0, 3.0, 3.0]) == [1.0, 2.0, 3.0]
    assert medians_of_thirds([4.0, 5.0]) == [4.0, 5.0]
    assert medians_of_thirds([4.0]) == [4.0]


class Profiler:
    """Notes when it runs, and tells of the events that it was given."""

    def __init__(self, events: list[Any]) -> None:
        self.told: list[str] = []
        self.events = lambda: events
        self.start = lambda: self.told.append("start")
        self.stop = lambda: self.told.append("stop")


def event(name: str, us: float, *, on: DeviceType, is_annotation: bool = False) -> Any:
    return SimpleNamespace(
        name=name,
        device_type=on,
        is_user_annotation=is_annotation,
        self_cpu_time_total=us,
        time_range=SimpleNamespace(elapsed_us=lambda: us),
    )


def profiled(events: list[Any], device: Any, monkeypatch: pytest.MonkeyPatch) -> StepProfile:
    made = Profiler(events)
    monkeypatch.setattr(step_clock, "profile", lambda activities: made)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: made.told.append("wait"))
    found = StepProfile(2, 4, device)
    for step in range(1, 6):
        found.step(record(step))
    expected = ["start", "wait", "stop"] if device.type == "cuda" else ["start", "stop"]
    assert made.told == expected
    return found


def test_kernels_of_two_whole_steps_are_told_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: Any = SimpleNamespace(type="cuda")
    events = [
        event("nvjet", 4000.0, on=DeviceType.CUDA),
        event("nvjet", 2000.0, on=DeviceType.CUDA),
        event("multi_tensor_apply_kernel", 1000.0, on=DeviceType.CUDA),
        # A range that a program names spans kernels that are counted already.
        event("Optimizer.step#A.step", 9000.0, on=DeviceType.CUDA, is_annotation=True),
        event("cudaLaunchKernel", 9000.0, on=DeviceType.CPU),
    ]
    assert profiled(events, cuda, monkeypatch).kernel_ms() == [
        ("nvjet", 3.0, 1.0),
        ("multi_tensor_apply_kernel", 0.5, 0.5),
    ]


def test_on_a_cpu_operators_are_told_by_their_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event("aten::mm", 4000.0, on=DeviceType.CPU), event("x", 0.0, on=DeviceType.CPU)]
    assert profiled(events, CPU, monkeypatch).kernel_ms() == [("aten::mm", 2.0, 0.5)]


def test_profiler_of_torch_tells_what_ran_between_the_two_steps() -> None:
    found = StepProfile(1, 2, CPU)
    left = torch.randn(64, 64)
    left @ left
    found.step(record(1))
    for _ in range(3):
        left @ left
    found.step(record(2))
    left @ left
    launches = {name: count for name, _, count in found.kernel_ms()}
    assert launches["aten::mm"] == 3
