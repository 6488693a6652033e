"""Causes within a kind of failure: whose memory ran out, what failed beside the code; pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from elmanctl.ledger.records import Cause, VerdictKind

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = r"([\d.]+) (KiB|MiB|GiB|TiB)"

# Messages of accelerators; every other lack of memory is the host's.
_OF_DEVICE = re.compile(
    r"(?i)\b(CUDA|HIP|ROCM|XPU|MPS|NPU|HPU|MUSA|cuDNN|Triton)\b|\bOutOfMemoryError\b"
    r"|\b(cuda|hip|musa)(Error|Malloc)|_STATUS_(\w+_)?ALLOC(ATION)?_FAILED|StatusAllocFailed"
    r"|rocblas_|_OUT_OF_(DEVICE_MEMORY|RESOURCES)\b|\bCUDA_ERROR_|ran out of memory trying to"
    r"|RESOURCE_EXHAUSTED|Allocation on device|Memory_Allocation_Failure"
)
_OF_HOST = re.compile(
    r"(?i)DefaultCPUAllocator|oom[-_ ]?kill|cgroup out-of-memory|OUT_OF_HOST_MEMORY"
    r"|HOST_ALLOCATION_FAILED"
)
_OF_CPU_TIME = re.compile(
    r"(?i)\bCPU ?time limit|\bcpu limit exceeded|SIGXCPU|exit code 152\b|got signal: 24\b"
    r"|(exitcode\s*:\s*|return code = )-24\b"
)

_TRIED = re.compile(rf"Tried to allocate {_SIZE}")
_CAPACITY = re.compile(rf"total capacity of {_SIZE}")
_FREE = re.compile(rf"of which {_SIZE} is free")
_OTHER = re.compile(rf"Process (\d+) has {_SIZE} memory in use")

# These Xids follow from what a program does; the others are the device's, its link's or its
# driver's.
_XID = re.compile(r"\bXid\b[^:]*(?:\([^)]*\))?: (?!(?:13|31|32|43|45|68|69)\b)\d+")
_BROKEN = re.compile(
    r"(?i)\bECC error|\becc\b.*\bencountered|(device|gpu) is lost|fallen off the bus|uncorrectable"
    r"|(cuda|hip)error(ECCUncorrectable|HardwareStackError|NvlinkUncorrectable)"
    r"|hardware stack error|nvlink (transport )?error"
)

# srun, in the job itself, asks the scheduler before it starts the worker, and gives up.
NO_SCHEDULER = re.compile(
    r"^(?:/\S+/)?srun: (error: |fatal: )?"
    r"((Unable to (confirm allocation|create step|allocate resources)\b.*: )?"
    r"(Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted)"
    r"|Unable to confirm allocation for job)"
)

# srun rejects its own options: from the command line, or from variables that it reads as options.
# A wrapper may start it by its path.
_SRUN = r"^(?:/\S+/)?srun: (fatal: |error: )?"
_UNABLE = r"Unable to (create step for job \d+|allocate resources): "
BAD_ARGUMENTS = re.compile(
    rf"{_SRUN}.*\bmutually exclusive\b"
    rf"|{_SRUN}({_UNABLE})?Invalid (--|.{{0,60}}\b(specification|argument|value|option)\b|MPI type)"
    rf"|{_SRUN}.*\b(unrecogni[sz]ed|invalid|ambiguous|unknown) option\b"
    rf"|{_SRUN}option .* requires an argument"
    rf"|{_SRUN}.*\b([Uu]nable to satisfy cpu bind request|CPU binding outside of job step)"
    # A step that asks for something other than what its job has.
    rf"|{_SRUN}(No command given|Only allocated \d+ nodes asked for)"
    rf"|{_SRUN}{_UNABLE}(Memory required by task is not available"
    r"|More processors requested than permitted|Requested node configuration is not available"
    r"|Requested nodes? .*not in)"
    # Any message that names an option or a variable.
    r"|^srun: (fatal|error): (.*[\s(`'\"])?--[a-z]+(-[a-z]+)*\b"
    r"|^srun: (fatal|error): .*\bS(LURM|RUN)_(?!JOB_ID\b)[A-Z]+(_[A-Z]+)*\b"
)

# Advice that is added to the evidence of such a cause.
ADVICE = {
    Cause.ARGUMENTS: "srun refused its own options, which is no node's fault: look for SLURM_... "
    "and SRUN_... variables in `slurm.setup` and in the profile of the nodes, and at `slurm.extra`",
    Cause.CPU_TIME: "a limit on CPU time ended the worker: look for `ulimit -t` in `slurm.setup` "
    "and in the profile of the nodes, and at their limits",
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another process whose memory on the same GPU would have been enough."""

    pid: int
    held: str
    missing_bytes: float

    def __str__(self) -> str:
        return (
            f"process {self.pid} on the same GPU holds {self.held}; "
            f"{self.missing_bytes / 2**30:.2f} GiB were missing"
        )


def find_cause(kind: VerdictKind, texts: Iterable[str]) -> Cause | None:
    """Return the cause of a failure of this kind, from the texts that report it."""
    found = list(texts)
    if kind is VerdictKind.TIMEOUT:
        return Cause.CPU_TIME if any(map(_OF_CPU_TIME.search, found)) else None
    if kind is VerdictKind.ENVIRONMENT:
        if found and all(map(BAD_ARGUMENTS.search, found)):
            return Cause.ARGUMENTS
        return Cause.SCHEDULER if found and all(map(NO_SCHEDULER.search, found)) else None
    if kind is VerdictKind.CUDA_ERROR:
        return Cause.DEVICE if any(map(names_broken_device, found)) else None
    if kind is not VerdictKind.OOM:
        return None
    if any(find_neighbour(text) for text in found):
        return Cause.NEIGHBOUR
    of_device = (_OF_DEVICE.search(text) and not _OF_HOST.search(text) for text in found)
    return Cause.GPU if any(of_device) else Cause.HOST


def names_broken_device(text: str) -> bool:
    """Whether a text says that the hardware failed, not only the program on it."""
    return bool(_XID.search(text) or _BROKEN.search(text))


def find_neighbour(text: str) -> Neighbour | None:
    """Return the largest other process on a GPU, if there is enough memory without it."""
    tried, capacity, free = (found.search(text) for found in (_TRIED, _CAPACITY, _FREE))
    if tried is None or capacity is None or free is None:
        return None
    limit = _size(*capacity.groups())
    missing = _size(*tried.groups()) - _size(*free.groups())
    others = {
        found[1]: (_size(found[2], found[3]), f"{found[2]} {found[3]}")
        for found in _OTHER.finditer(text)
        # A driver that does not know gives an absurdly large number.
        if _size(found[2], found[3]) <= limit
    }
    if not 0 < missing <= sum(size for size, _ in others.values()):
        return None
    pid, (_, held) = max(others.items(), key=lambda other: other[1][0])
    return Neighbour(pid=int(pid), held=held, missing_bytes=missing)


def _size(number: str, unit: str) -> float:
    digits, _, rest = number.partition(".")
    return float(f"{digits or 0}.{rest.replace('.', '') or 0}") * _UNITS[unit]
