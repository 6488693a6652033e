"""Defaults of `[slurm]` from the environment variables that sbatch reads; one table, pure.

elmanctl lets no variable reach sbatch, where it would outrank the script.  What sites tell people
to put into their profile, an account above all, is a setting here, below every file and flag.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.constants import ALLOCATION_VARIABLES
from elmanctl.errors import ConfigError
from elmanctl.settings import SlurmSettings

_PREFIX = "SBATCH_"
_EXTRA = "slurm.extra."

_UNITS_GB = {"K": 1 / 2**20, "M": 1 / 2**10, "G": 1.0, "T": 2.0**10}

# As sbatch writes times: minutes, or with parts that a colon or the dash after days sets off.
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")


def _flag(value: str) -> bool | str:
    """Read an option that needs no value: nothing, `yes` and numbers but 0 turn it on."""
    if value.isdecimal():
        return int(value) != 0
    return value if value and value != "yes" else True


def _gpus(value: str) -> str:
    """Read a count of GPUs, with or without their type; a job has one node and one task."""
    return f"gpu:{value}"


def _memory_gb(value: str) -> float:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", value.upper())
    if not found or int(found[1]) == 0:
        raise ValueError
    return int(found[1]) * _UNITS_GB[found[2] or "M"]


def parse_time_min(value: str) -> int:
    """Return the minutes of a time limit as Slurm writes it, rounded up; ValueError for no time."""
    found = _TIME.fullmatch(value)
    if not found:
        raise ValueError
    parts = [int(part) for part in found["rest"].split(":")]
    if found["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    days = int(found["days"] or 0)
    return math.ceil(((days * 24 + hours) * 60) + minutes + seconds / 60)


@dataclass(frozen=True, slots=True)
class Meaning:
    """The setting that a variable is a default of, and how its value is read.

    `but_for` are settings that say the same otherwise: where one is set, the variable is not read.
    """

    key: str
    read: Callable[[str], Any] = str
    but_for: tuple[str, ...] = ()


_OF_MEMORY = ("slurm.mem_gb", f"{_EXTRA}mem-per-cpu", f"{_EXTRA}mem-per-gpu")
_OF_GPUS = (f"{_EXTRA}gpus", f"{_EXTRA}gpus-per-node", f"{_EXTRA}gpus-per-task")
_OF_CPUS = ("slurm.cpus", f"{_EXTRA}cpus-per-gpu", f"{_EXTRA}tres-per-task")


# Every variable that sbatch of 22.05 to 26.05 reads, but for those of the tables that follow.
DEFAULTS: Mapping[str, Meaning] = {
    "SBATCH_ACCOUNT": Meaning("slurm.account"),
    "SBATCH_PARTITION": Meaning("slurm.partition"),
    "SBATCH_TIMELIMIT": Meaning("slurm.timeout_min", parse_time_min),
    "SBATCH_GRES": Meaning("slurm.gres", but_for=_OF_GPUS),
    "SBATCH_GPUS": Meaning("slurm.gres", _gpus, _OF_GPUS),
    "SBATCH_GPUS_PER_NODE": Meaning("slurm.gres", _gpus, _OF_GPUS),
    "SBATCH_GPUS_PER_TASK": Meaning("slurm.gres", _gpus, _OF_GPUS),
    "SBATCH_MEM_PER_NODE": Meaning("slurm.mem_gb", _memory_gb, _OF_MEMORY),
    "SBATCH_MEM_PER_CPU": Meaning(f"{_EXTRA}mem-per-cpu", but_for=_OF_MEMORY),
    "SBATCH_MEM_PER_GPU": Meaning(f"{_EXTRA}mem-per-gpu", but_for=_OF_MEMORY),
    "SBATCH_CPUS_PER_GPU": Meaning(f"{_EXTRA}cpus-per-gpu", but_for=_OF_CPUS),
    "SBATCH_TRES_PER_TASK": Meaning(f"{_EXTRA}tres-per-task", but_for=_OF_CPUS),
    "SBATCH_BURST_BUFFER": Meaning(f"{_EXTRA}bb"),
    "SBATCH_CPU_FREQ_REQ": Meaning(f"{_EXTRA}cpu-freq"),
    "SBATCH_REQ_SWITCH": Meaning(f"{_EXTRA}switches"),
    "SBATCH_SEGMENT_SIZE": Meaning(f"{_EXTRA}segment"),
    # sbatch reads it beside its own; srun and salloc have the same.
    "SLURM_HINT": Meaning(f"{_EXTRA}hint"),
    **{
        f"{_PREFIX}{name}": Meaning(f"{_EXTRA}{name.lower().replace('_', '-')}")
        for name in (
            *("ACCTG_FREQ", "BATCH", "CLUSTER_CONSTRAINT", "CONSTRAINT", "CONTAINER"),
            *("CONTAINER_ID", "CORE_SPEC", "DELAY_BOOT", "DISTRIBUTION", "EXPORT"),
            *("GPUS_PER_SOCKET", "GPU_BIND", "GPU_FREQ", "GRES_FLAGS", "HINT", "MEM_BIND"),
            *("NETWORK", "POWER", "PROFILE", "QOS", "RESERVATION", "THREADS_PER_CORE"),
            *("THREAD_SPEC", "TRES_BIND", "WAIT_ALL_NODES", "WCKEY"),
        )
    },
    **{
        f"{_PREFIX}{name}": Meaning(f"{_EXTRA}{name.lower().replace('_', '-')}", _flag)
        for name in (
            *("EXCLUSIVE", "GET_USER_ENV", "NO_KILL", "OVERCOMMIT", "SPREAD_JOB"),
            "USE_MIN_NODES",
        )
    },
}

# Together with the count of switches, as sbatch writes it.
_LONGEST_WAIT = "SBATCH_WAIT4SWITCH"

# What an allocation sets for its own job under names that sbatch reads.
_OF_ALLOCATION = ("SBATCH_MEM_BIND", "SLURM_HINT")

# What elmanctl decides itself, or what says nothing of jobs.
OURS: Mapping[str, str] = {
    "SBATCH_ARRAY_INX": "each submission is an array of its own",
    "SBATCH_DEBUG": "it changes sbatch's own words only",
    "SBATCH_ERROR": "logs lie in the run's folder",
    "SBATCH_IGNORE_PBS": "the script has no such lines",
    "SBATCH_INPUT": "workers read no input",
    "SBATCH_JOB_NAME": "submissions are found again by their names",
    "SBATCH_NO_REQUEUE": "`[retry]` decides what is run again",
    "SBATCH_OPEN_MODE": "logs are appended to",
    "SBATCH_OUTPUT": "logs lie in the run's folder",
    "SBATCH_REQUEUE": "`[retry]` decides what is run again",
    "SBATCH_SIGNAL": "workers are warned of the end of their time",
    "SBATCH_WAIT": "the controller watches jobs itself",
}

# What would lead the jobs where they are not looked for.
REFUSED: Mapping[str, str] = {
    "SBATCH_CLUSTERS": "set SLURM_CLUSTERS in its place, which all commands of Slurm follow",
}

_PASSED_BY = ("SBATCH_MEM_BIND_", "SBATCH_JOBID")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the environment makes of `[slurm]`.

    `origins` maps each key that a variable sets to the variable's name; `unused` are lines for the
    user on variables that change nothing; `refused` are errors of a search that would submit.
    """

    slurm: SlurmSettings
    origins: Mapping[str, str]
    unused: tuple[str, ...] = ()
    refused: tuple[ConfigError, ...] = ()


def with_variables(
    slurm: SlurmSettings, set_keys: Mapping[str, str], environ: Mapping[str, str]
) -> Found:
    """Return `[slurm]` with what sbatch would read, where no other source has set it.

    `set_keys` are the keys that other sources set.
    """
    extra = {key.replace("_", "-") for key in slurm.extra}
    taken = {*set_keys, *(f"{_EXTRA}{key}" for key in extra)}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    refused = [_refusal(name, hint) for name, hint in REFUSED.items() if environ.get(name)]
    for name, meaning, text in _given(environ):
        if taken & {meaning.key, *meaning.but_for}:
            continue
        try:
            value = meaning.read(text)
        except ValueError:
            hint = f"set `{meaning.key}`, which stands above it, or unset the variable"
            refused.append(_refusal(name, hint, f"cannot read {name}=`{text}`"))
            continue
        rivals = [key for key in (meaning.key, *meaning.but_for) if key in values]
        if any(key != meaning.key or values[key] != value for key in rivals):
            other = origins[rivals[0]]
            hint = f"set `{meaning.key}`, or unset one of them"
            refused.append(_refusal(name, hint, f"{other} and {name} exclude each other"))
            continue
        values.setdefault(meaning.key, value)
        origins.setdefault(meaning.key, name)
    own = {key.removeprefix(_EXTRA): value for key, value in values.items() if _EXTRA in key}
    plain = {key.partition(".")[2]: v for key, v in values.items() if _EXTRA not in key}
    return Found(
        slurm=replace(slurm, **plain, extra={**own, **slurm.extra}),
        origins=origins,
        unused=tuple(_unused(environ)),
        refused=tuple(refused),
    )


def _given(environ: Mapping[str, str]) -> Iterator[tuple[str, Meaning, str]]:
    """Yield each variable that sbatch would heed, with what it means and its value."""
    is_inside = any(environ.get(name) for name in ALLOCATION_VARIABLES)
    has_own_hint = bool(environ.get("SBATCH_HINT"))
    for name, meaning in DEFAULTS.items():
        text = environ.get(name)
        if text is None or (is_inside and name in _OF_ALLOCATION):
            continue
        if name == "SLURM_HINT" and has_own_hint:
            continue
        if name == "SBATCH_REQ_SWITCH" and text and environ.get(_LONGEST_WAIT):
            text = f"{text}@{environ[_LONGEST_WAIT]}"
        # sbatch takes an empty text for none; an empty flag is on.
        if text or meaning.read is _flag:
            yield name, meaning, text


def _unused(environ: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(environ):
        if name in OURS:
            yield f"{name} is not used: {OURS[name]}"
        elif (
            name.startswith(_PREFIX)
            and name not in (*DEFAULTS, *REFUSED, _LONGEST_WAIT)
            and not name.startswith(_PASSED_BY)
        ):
            yield f"{name} is not used: elmanctl does not know it; set the option in `slurm.extra`"


def _refusal(name: str, hint: str, message: str = "") -> ConfigError:
    return ConfigError(message or f"{name} is set, and elmanctl does not follow it", hint=hint)
