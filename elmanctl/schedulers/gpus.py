"""GPUs of this machine: the devices that `local.gpus` names, and how many are visible."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from elmanctl.command import NoAnswer, run_command
from elmanctl.constants import GPU_NAME
from elmanctl.errors import EnvironmentNotReady

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"

# The runtime of AMD's GPUs reads this instead, if it is set.
AMD_VARIABLE = "HIP_VISIBLE_DEVICES"

_ASK_TIMEOUT_S = 20

# Devices of GPUs that neither nvidia-smi nor a numbered device shows: AMD's, Windows', Tegra's.
_OTHERS = ("kfd", "dxg", "nvgpu", "nvhost-gpu")


def visible_devices(
    environ: Mapping[str, str], variable: str = VISIBLE_VARIABLE
) -> tuple[str, ...] | None:
    """Return the devices that programs started here can see, None for all of the machine's."""
    text = environ.get(variable)
    if text is None:
        return None
    devices: list[str] = []
    for word in text.split(","):
        name = word.strip()
        # Like the driver: the first word that names no device ends the list.
        if not name.isdigit() and not GPU_NAME.fullmatch(name):
            break
        devices.append(name)
    return tuple(devices)


def worker_variables(gpus: Sequence[int | str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that show a worker only its GPUs, of either vendor."""
    amd = (AMD_VARIABLE,) if environ.get(AMD_VARIABLE) else ()
    return {name: ",".join(devices_of(gpus, environ, name)) for name in (VISIBLE_VARIABLE, *amd)}


def devices_of(
    gpus: Sequence[int | str], environ: Mapping[str, str], variable: str = VISIBLE_VARIABLE
) -> tuple[str, ...]:
    """Return the device of each entry of `local.gpus`, in the form of the variable.

    A number is an index of the visible devices, a name stands for itself.  Raises
    EnvironmentNotReady for a number out of range, and for two entries that name the same device.
    """
    visible = visible_devices(environ, variable)
    devices = tuple(_device(gpu, visible, variable) for gpu in gpus)
    twice = next((name for name in devices if devices.count(name) > 1), None)
    if twice is not None:
        raise EnvironmentNotReady(
            f"`local.gpus` names the device {twice} twice", hint="each GPU runs one evaluation"
        )
    return devices


def _device(gpu: int | str, visible: Sequence[str] | None, variable: str) -> str:
    if isinstance(gpu, str) or visible is None:
        return str(gpu)
    if 0 <= gpu < len(visible):
        return visible[gpu]
    shown = f"`{','.join(visible)}`" if visible else "none"
    raise EnvironmentNotReady(
        f"there is no GPU {gpu}: {variable} shows {shown}",
        hint="numbers count what is visible here, from 0; name another device by its UUID, or "
        f"unset {variable}",
    )


def visible_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> int | None:
    """Return how many GPUs are visible here, None where that is unknown.

    CUDA_VISIBLE_DEVICES or HIP_VISIBLE_DEVICES decide if they are set; otherwise nvidia-smi, or
    else the devices in `dev`.
    """
    named = visible_devices(environ)
    if named is None and environ.get(AMD_VARIABLE):
        named = visible_devices(environ, AMD_VARIABLE)
    if named is not None:
        return len(named)
    listed = _listed(environ)
    if listed is not None:
        return listed
    if any((dev / name).exists() for name in _OTHERS):
        return None
    return sum(path.name.removeprefix("nvidia").isdigit() for path in dev.glob("nvidia[0-9]*"))


def _listed(environ: Mapping[str, str]) -> int | None:
    """Return how many GPUs nvidia-smi lists, None without an answer."""
    try:
        done = run_command(["nvidia-smi", "-L"], environ, timeout_s=_ASK_TIMEOUT_S)
    except (OSError, NoAnswer):
        return None
    # Slices of a GPU are indented below it.
    return None if done.code else sum(x.startswith("GPU ") for x in done.stdout.splitlines())


def check_gpus(
    gpus: Sequence[int | str],
    device: str,
    environ: Mapping[str, str],
    dev: Path = Path("/dev"),
    *,
    ranks: int = 1,
) -> None:
    """Raise EnvironmentNotReady for an entry of `local.gpus` that is not visible here.

    The same if training is to run on `cuda` without a GPU, or on fewer GPUs than `ranks` of one
    training need.  Names are not checked.
    """
    if ranks > 1 and device != "cpu":
        _check_enough(len(gpus) if gpus else visible_gpus(environ, dev), ranks, bool(gpus))
    if gpus:
        worker_variables(gpus, environ)
    numbers = [gpu for gpu in gpus if isinstance(gpu, int)]
    if not numbers and (gpus or device != "cuda"):
        return
    count = visible_gpus(environ, dev)
    if count is None or count > max(numbers, default=0):
        return
    beyond = [number for number in numbers if number >= count]
    what = f"no GPU {', '.join(map(str, beyond))} here" if beyond else "no GPU for device `cuda`"
    raise EnvironmentNotReady(
        f"{what}: {_shown(count)}",
        hint="numbers count what `nvidia-smi -L` lists, from 0"
        if count
        else "leave `--gpus` and `local.gpus` out, to train on the CPU"
        if beyond
        else "leave `train.device` at `auto`, or run where a GPU is",
    )


def _check_enough(count: int | None, ranks: int, is_chosen: bool) -> None:
    # Where there is no GPU at all, `auto` trains on the CPU.
    if count and count < ranks:
        there = f"`local.gpus` names {count}" if is_chosen else f"this machine shows {count}"
        raise EnvironmentNotReady(
            f"`train.gpus` is {ranks}, and {there}",
            hint=f"set `train.gpus` to {count}"
            + (", or name more GPUs" if is_chosen else ", or `train.device` to cpu"),
        )


def _shown(count: int) -> str:
    if not count:
        return "this machine shows none"
    return "there is one, 0" if count == 1 else f"there are {count}, 0 to {count - 1}"
