"""The count of GPUs, by an nvidia-smi on PATH, the devices, and what is visible."""

from pathlib import Path

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.schedulers.gpus import check_gpus, visible_gpus


class Machine:
    """A machine with an nvidia-smi of its own and devices of its own."""

    def __init__(self, folder: Path) -> None:
        self.dev, self.bin = folder / "dev", folder / "bin"
        self.dev.mkdir()
        self.bin.mkdir()
        self.environ = {"PATH": f"{self.bin}:/usr/bin:/bin"}

    def lists(self, *lines: str, code: int = 0) -> None:
        program = self.bin / "nvidia-smi"
        text = "".join(f"echo '{line}'\n" for line in lines)
        program.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 9\n{text}exit {code}\n')
        program.chmod(0o755)

    def has(self, *names: str) -> None:
        for name in names:
            (self.dev / name).touch()

    def refused(self, *gpus: int | str, device: str = "auto", ranks: int = 1) -> str | None:
        try:
            check_gpus(gpus, device, self.environ, self.dev, ranks=ranks)
        except EnvironmentNotReady as exc:
            return exc.message
        return None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_machine_without_gpus_refuses_every_number_and_cuda(machine: Machine) -> None:
    assert visible_gpus(machine.environ, machine.dev) == 0
    assert machine.refused(7) == "no GPU 7 here: this machine shows none"
    assert machine.refused(0, 1) == "no GPU 0, 1 here: this machine shows none"
    assert machine.refused(device="cuda") == "no GPU for device `cuda`: this machine shows none"
    assert machine.refused() is None and machine.refused(device="cpu") is None
    # As they are taken.
    assert machine.refused("GPU-8932f937", "MIG-7f0e") is None


def test_nvidia_smi_is_counted_without_parts_of_a_gpu(machine: Machine) -> None:
    machine.has("nvidia0", "nvidia1", "nvidia2", "nvidia3")
    machine.lists("GPU 0: A (UUID: GPU-1)", "  MIG 1g Device 0: (UUID: MIG-2)", "GPU 1: A")
    assert visible_gpus(machine.environ, machine.dev) == 2
    assert machine.refused(0, 1) is None and machine.refused(device="cuda") is None
    assert machine.refused(0, 2) == "no GPU 2 here: there are 2, 0 to 1"
    machine.lists("GPU 0: A (UUID: GPU-1)")
    assert machine.refused(1) == "no GPU 1 here: there is one, 0"
    machine.lists("No devices were found")
    assert machine.refused(0) == "no GPU 0 here: this machine shows none"


def test_devices_are_counted_where_nvidia_smi_says_nothing(machine: Machine) -> None:
    machine.has("nvidia3", "nvidia11", "nvidiactl", "nvidia-uvm", "nvidia0.old")
    assert visible_gpus(machine.environ, machine.dev) == 2
    machine.lists("NVIDIA-SMI has failed", code=9)
    assert visible_gpus(machine.environ, machine.dev) == 2


def test_what_is_visible_goes_before_what_there_is(machine: Machine) -> None:
    machine.environ["CUDA_VISIBLE_DEVICES"] = "2,3"
    assert machine.refused(0, 1) is None and machine.refused(device="cuda") is None
    assert "no GPU 2" in (machine.refused(2) or "")
    machine.environ["CUDA_VISIBLE_DEVICES"] = ""
    assert machine.refused(device="cuda") is not None


@pytest.mark.parametrize("name", ["kfd", "dxg", "nvgpu"])
def test_gpu_of_a_kind_that_is_not_counted_is_not_denied(name: str, machine: Machine) -> None:
    machine.has(name)
    assert visible_gpus(machine.environ, machine.dev) is None
    assert machine.refused(7) is None and machine.refused(device="cuda") is None


def test_fewer_gpus_than_train_one_model_are_refused_but_not_none(machine: Machine) -> None:
    assert machine.refused(ranks=4) is None
    machine.lists("GPU 0: A (UUID: GPU-1)", "GPU 1: A")
    assert machine.refused(ranks=2) is None and machine.refused(0, 1, ranks=2) is None
    assert machine.refused(ranks=4) == "`train.gpus` is 4, and this machine shows 2"
    assert machine.refused(1, ranks=2) == "`train.gpus` is 2, and `local.gpus` names 1"
    assert machine.refused(ranks=4, device="cpu") is None
