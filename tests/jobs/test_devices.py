"""Devices are found by name, or refused in one line."""

import pytest

from elmanctl.errors import EnvironmentNotReady, UsageError
from elmanctl.jobs.device import find_device


def test_cpu_is_found() -> None:
    assert find_device("cpu").type == find_device("auto").type == "cpu"


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "", "cpu:0"])
def test_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="there is no device"):
        find_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:77"])
def test_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(EnvironmentNotReady, match="torch sees"):
        find_device(name)
