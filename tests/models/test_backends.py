"""What backend `triton` needs, and when `auto` takes it."""

import pytest
import torch

from elmanctl.constants import INSTALL_GPU
from elmanctl.errors import EnvironmentNotReady
from elmanctl.models.backends import BACKENDS, resolve_backend
from elmanctl.models.registry import decode_config

CONFIG = decode_config("mingru", {"dim": 12, "depth": 1})
KNOWN = ("triton", "torch")


def unavailable_reason(device: str = "cuda") -> str | None:
    return BACKENDS["triton"].unavailable_reason(device)


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))


@pytest.mark.usefixtures("ampere")
def test_backend_runs_on_a_gpu_that_is_new_enough_with_a_triton_that_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import triton

    assert unavailable_reason() is None
    for version, fault in (
        ("3.4.0", "triton is 3.4.0, but must be 3.5 or newer"),
        ("3.5.0", None),
        ("3.10.1", None),
    ):
        monkeypatch.setattr(triton, "__version__", version)
        assert unavailable_reason() == fault
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert unavailable_reason() == "this GPU has compute capability 7.5, but the kernels need 8.0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert unavailable_reason() == "torch sees no CUDA device"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert unavailable_reason() == "triton is not installed"


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ("1", None),
        ("0", "its kernels run on cuda, not on cpu, unless TRITON_INTERPRET is 1"),
        (None, "its kernels run on cuda, not on cpu"),
    ],
)
def test_backend_runs_on_a_cpu_in_the_interpreter_alone(
    monkeypatch: pytest.MonkeyPatch, told: str | None, fault: str | None
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if told is not None:
        monkeypatch.setenv("TRITON_INTERPRET", told)
    assert unavailable_reason("cpu") == fault


@pytest.mark.usefixtures("ampere")
def test_auto_takes_a_kernel_on_a_gpu_and_never_an_interpreted_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve_backend("mingru", KNOWN, "auto", CONFIG, "cpu") == "torch"
    assert resolve_backend("mingru", KNOWN, "triton", CONFIG, "cpu") == "triton"
    assert resolve_backend("mingru", KNOWN, "auto", CONFIG, "cuda") == "triton"


def test_backend_that_cannot_run_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(EnvironmentNotReady, match="`triton` cannot run here") as refused:
        resolve_backend("mingru", KNOWN, "triton", CONFIG, "cpu")
    assert INSTALL_GPU in (refused.value.hint or "")
