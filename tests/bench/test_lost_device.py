from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elmanctl.bench.machine import driver_name
from elmanctl.bench.rows import loss_of, release

CPU = torch.device("cpu")
CUDA: Any = SimpleNamespace(type="cuda")


def test_cpu_is_never_lost() -> None:
    assert loss_of(CPU, "anything") is None
    release(CPU)


def test_error_that_stays_with_the_process_is_a_lost_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def synchronize(device: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    told = loss_of(CUDA, "a kernel")
    assert told == (
        "the device was lost to a kernel: CUDA error: an illegal memory access was encountered"
    )


def test_device_that_still_computes_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch, "ones", lambda size, device: torch.zeros(size))
    assert loss_of(CUDA, "a kernel") is None


def test_card_is_named_as_the_driver_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(uuid="9a1b-77")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert driver_name(CUDA) == "GPU-9a1b-77"
