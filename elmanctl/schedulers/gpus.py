"""Which devices `local.gpus` means: numbers index what is visible, names are themselves; pure."""

from collections.abc import Mapping, Sequence

from elmanctl.constants import GPU_NAME
from elmanctl.errors import EnvironmentNotReady

VISIBLE_VARIABLE = "CUDA_VISIBLE_DEVICES"

# What the runtime of AMD's GPUs reads in its place, where it is set.
AMD_VARIABLE = "HIP_VISIBLE_DEVICES"


def visible_devices(
    environ: Mapping[str, str], variable: str = VISIBLE_VARIABLE
) -> tuple[str, ...] | None:
    """Return the devices that programs started here may see, None where all of the machine's."""
    text = environ.get(variable)
    if text is None:
        return None
    devices: list[str] = []
    for word in text.split(","):
        name = word.strip()
        # As the driver reads it: the first word that names nothing ends the list.
        if not name.isdigit() and not GPU_NAME.fullmatch(name):
            break
        devices.append(name)
    return tuple(devices)


def worker_variables(
    gpus: Sequence[int | str], environ: Mapping[str, str], slot: int
) -> dict[str, str]:
    """Return the variables that show a worker the one GPU of its slot, of either vendor."""
    amd = (AMD_VARIABLE,) if environ.get(AMD_VARIABLE) else ()
    return {name: devices_of(gpus, environ, name)[slot] for name in (VISIBLE_VARIABLE, *amd)}


def devices_of(
    gpus: Sequence[int | str], environ: Mapping[str, str], variable: str = VISIBLE_VARIABLE
) -> tuple[str, ...]:
    """Return the device of each entry of `local.gpus`, as the variable takes it.

    Raises EnvironmentNotReady for a number beyond what is visible, and where two entries name one
    device.
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
