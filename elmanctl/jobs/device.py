"""Device of a training: CPU or GPU, its precision, threads, repeatability and memory."""

import gc
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from elmanctl.errors import EnvironmentNotReady, UsageError

# Slurm sets these in a job with GPUs; some releases set the last one to -1 or a word without.
_GPU_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")
_NO_GPU = ("-1", "NoDevFiles")


def use_threads(count: int) -> None:
    """Set the number of CPU threads of torch; 0 leaves it to torch.

    It must come before a model is built: the last bits of an orthogonal initial weight depend on
    the number of threads.
    """
    if count:
        torch.set_num_threads(count)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here, and make it the current one.

    Of several ranks on a node each takes the GPU of its number, or the only one that it sees.
    Raises EnvironmentNotReady when there is none of that number, when torch sees no CUDA device
    although CUDA is requested, or although the job was given a GPU, which `auto` would leave idle.
    """
    is_available = torch.cuda.is_available()
    if name == "cuda" and not is_available:
        raise EnvironmentNotReady("torch sees no CUDA device on this machine")
    given = _given_gpu() if name == "auto" and not is_available else None
    if given:
        raise EnvironmentNotReady(
            f"this job was given a GPU ({given}), but torch sees no CUDA device",
            hint="install a torch with CUDA that the node's driver can run, or set `train.device` "
            "to cpu and ask for no GPU",
        )
    if not is_available or name == "cpu":
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise EnvironmentNotReady(
            f"this node has {count} GPUs, and none of them is for rank {local_rank}",
            hint="lower `train.gpus`, or raise `slurm.gres`",
        )
    device = torch.device("cuda", local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    return device


def find_device(name: str) -> torch.device:
    """Return the device of a name: cpu, cuda, cuda:N or auto.

    Raises UsageError for any other name, EnvironmentNotReady when the device is not there.
    """
    if name in ("auto", "cpu", "cuda"):
        return choose_device(name)
    kind, _, number = name.partition(":")
    if kind != "cuda" or not number.isdecimal():
        raise UsageError(f"there is no device `{name}`", hint="devices: auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number) >= count:
        raise EnvironmentNotReady(f"`{name}` is not there: torch sees {count} CUDA devices")
    return torch.device(name)


def _given_gpu() -> str | None:
    """Return the variable that names the GPUs of this job, None if it has none."""
    for variable in _GPU_VARIABLES:
        value = os.environ.get(variable, "").strip()
        if value and value not in _NO_GPU:
            return f"{variable}={value}"
    return None


def choose_precision(name: str, device: torch.device) -> str:
    """Return fp32 or bf16: the requested one, or for `auto` bf16 if the GPU supports it.

    Raises EnvironmentNotReady when bf16 is requested and the GPU does not support it.
    """
    if device.type != "cuda":
        return "fp32" if name == "auto" else name
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise EnvironmentNotReady(
            f"{device_name(device)} does not compute in bf16", hint="set train.precision to fp32"
        )
    return ("bf16" if has_bf16 else "fp32") if name == "auto" else name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context of a forward pass in a precision, fp32 or bf16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


@contextmanager
def repeatable(is_wanted: bool) -> Iterator[None]:
    """Make torch refuse operations whose result depends on scheduling."""
    # torch.use_deterministic_algorithms would import torch's compiler.
    before = torch.get_deterministic_debug_mode()
    if is_wanted:
        torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def device_name(device: torch.device) -> str:
    """Return the model of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage would include the peak of the process that started this one.
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise EnvironmentNotReady("/proc/self/status names no peak of memory")


def free_cache(device: torch.device) -> None:
    """Free the memory of tensors that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def held_by_others_bytes(device: torch.device) -> int | None:
    """Return the memory of a GPU that torch does not hold here, None on the CPU.

    Beside other processes it is the context of CUDA in this one, some hundred MB.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)
