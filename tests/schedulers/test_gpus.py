"""Devices of the entries of `local.gpus`, by what is visible."""

import pytest

from elmanctl.config import parse_assignments, resolve
from elmanctl.errors import ConfigError, EnvironmentNotReady
from elmanctl.run.training import Training
from elmanctl.schedulers.gpus import devices_of, visible_devices, worker_variables
from elmanctl.search.limits import check_limits
from elmanctl.settings import LocalSettings, Settings

MIG = "MIG-GPU-8932f937-d72c/1/0"


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("0,1", ("0", "1")),
        (" 3 , GPU-8932f937", ("3", "GPU-8932f937")),
        (MIG, (MIG,)),
        ("", ()),
        ("-1", ()),
        ("2,-1,3", ("2",)),
        ("NoDevFiles", ()),
        ("4,", ("4",)),
    ],
)
def test_what_is_visible_is_read_as_the_driver_reads_it(
    text: str, devices: tuple[str, ...]
) -> None:
    assert visible_devices({"CUDA_VISIBLE_DEVICES": text}) == devices


def test_without_the_variable_numbers_are_the_machines_own() -> None:
    assert visible_devices({}) is None
    assert devices_of((7, 0, MIG), {}) == ("7", "0", MIG)


def test_numbers_count_what_is_visible() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": f"2,{MIG}"}
    assert devices_of((0, 1), environ) == ("2", MIG)
    # A name need not be visible.
    assert devices_of(("GPU-0000", 0), environ) == ("GPU-0000", "2")


def test_worker_sees_its_gpu_by_the_variable_of_either_vendor() -> None:
    """AMD's runtime reads its own before CUDA's; nothing of NVIDIA reads AMD's."""
    assert worker_variables((1,), {}) == {"CUDA_VISIBLE_DEVICES": "1"}
    amd = {"HIP_VISIBLE_DEVICES": "2,3"}
    assert worker_variables((1,), amd)["HIP_VISIBLE_DEVICES"] == "3"
    both = {**amd, "CUDA_VISIBLE_DEVICES": "5,7"}
    assert worker_variables((1,), both) == {
        "CUDA_VISIBLE_DEVICES": "7",
        "HIP_VISIBLE_DEVICES": "3",
    }
    with pytest.raises(EnvironmentNotReady, match="no GPU 2: HIP_VISIBLE_DEVICES shows `2,3`"):
        worker_variables((2,), amd)


@pytest.mark.parametrize(
    ("visible", "shown"), [("2,3", "`2,3`"), ("", "none"), ("NoDevFiles", "none")]
)
def test_number_beyond_what_is_visible_is_refused_with_what_is(visible: str, shown: str) -> None:
    with pytest.raises(EnvironmentNotReady, match=f"no GPU 2: .* shows {shown}") as raised:
        devices_of((2,), {"CUDA_VISIBLE_DEVICES": visible})
    assert raised.value.hint is not None and "from 0" in raised.value.hint


def test_worker_of_several_ranks_sees_a_gpu_for_each() -> None:
    gpus = (0, 1, 5, MIG, 7)
    assert worker_variables(gpus[2:4], {}) == {"CUDA_VISIBLE_DEVICES": f"5,{MIG}"}
    assert LocalSettings(gpus=gpus).at_once(2) == 2
    assert LocalSettings(workers=3).at_once(2) == 3


def test_one_device_by_two_names_is_refused() -> None:
    with pytest.raises(EnvironmentNotReady, match="MIG-7f0e twice"):
        devices_of((0, "MIG-7f0e"), {"CUDA_VISIBLE_DEVICES": "MIG-7f0e"})


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("0,1", (0, 1)),
        ("3", (3,)),
        ("GPU-8932f937, 1", ("GPU-8932f937", 1)),
        (f'[2, "{MIG}"]', (2, MIG)),
    ],
)
def test_names_and_numbers_are_read_wherever_a_setting_is(
    text: str, gpus: tuple[int | str, ...]
) -> None:
    assert resolve({}, environment={"ELMAN_LOCAL_GPUS": text}).settings.local.gpus == gpus
    assert parse_assignments([f"local.gpus={text}"]) == {"local.gpus": gpus}


@pytest.mark.parametrize("gpu", ["cuda:0", "0", "GPU-", "GPU 0", -1])
def test_what_is_neither_a_number_nor_a_name_is_refused(gpu: int | str) -> None:
    settings = Settings(train=Training(steps=1), local=LocalSettings(gpus=(gpu,)))
    with pytest.raises(ConfigError, match=r"`local\.gpus` holds"):
        check_limits(settings)
