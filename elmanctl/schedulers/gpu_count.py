"""How many GPUs can be seen from here, and whether those that a user names are among them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from elmanctl.command import NoAnswer, run_command
from elmanctl.errors import EnvironmentNotReady
from elmanctl.schedulers.gpus import AMD_VARIABLE, visible_devices, worker_variables

_ASK_TIMEOUT_S = 20

# GPUs that neither nvidia-smi nor a numbered device tells of: AMD's, Windows', Tegra's.
_OTHERS = ("kfd", "dxg", "nvgpu", "nvhost-gpu")


def visible_gpus(environ: Mapping[str, str], dev: Path = Path("/dev")) -> int | None:
    """Return how many GPUs can be seen from here, None where that cannot be told.

    CUDA_VISIBLE_DEVICES decides where it is set, or HIP_VISIBLE_DEVICES; else nvidia-smi, else the
    devices in `dev`.
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
    # Parts of a GPU stand indented below it.
    return None if done.code else sum(x.startswith("GPU ") for x in done.stdout.splitlines())


def check_gpus(
    gpus: Sequence[int | str], device: str, environ: Mapping[str, str], dev: Path = Path("/dev")
) -> None:
    """Raise EnvironmentNotReady where an entry of `local.gpus` cannot be seen from here.

    Also where training is to run on `cuda` and there is no GPU.  Names are taken as they are.
    """
    if gpus:
        # Of all entries, for any slot.
        worker_variables(gpus, environ, slot=0)
    numbers = [gpu for gpu in gpus if isinstance(gpu, int)]
    if not numbers and (gpus or device != "cuda"):
        return
    count = visible_gpus(environ, dev)
    if count is None or count > max(numbers, default=0):
        return
    beyond = [number for number in numbers if number >= count]
    what = f"no GPU {', '.join(map(str, beyond))} here" if beyond else "no GPU for device `cuda`"
    raise EnvironmentNotReady(
        f"{what}: {_told(count)}",
        hint="numbers count what `nvidia-smi -L` lists, from 0"
        if count
        else "leave `--gpus` and `local.gpus` out, to train on the CPU"
        if beyond
        else "leave `train.device` at `auto`, or run where a GPU is",
    )


def _told(count: int) -> str:
    if not count:
        return "this machine shows none"
    return "there is one, 0" if count == 1 else f"there are {count}, 0 to {count - 1}"
