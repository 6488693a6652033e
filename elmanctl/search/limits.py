"""Settings that no search can work with, found before it starts."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from elmanctl.errors import ConfigError, nearest
from elmanctl.jobs.gpus import GPU_NAME
from elmanctl.jobs.spec import DEVICES, PRECISIONS
from elmanctl.search.repeats import REPEATS
from elmanctl.settings import RetrySettings, Settings

_LOWEST: Mapping[str, int] = {
    "search.generations": 1,
    "search.multiple_of": 1,
    "search.max_jobs": 1,
    "search.tolerance": 0,
    "train.batch": 1,
    "train.seq_len": 1,
    "train.micro_batch": 0,
    "train.warmup_steps": 0,
    "train.grad_clip": 0,
    "train.weight_decay": 0,
    "train.seed": 0,
    "train.threads": 0,
    "train.checkpoint_min": 0,
    "slurm.cpus": 1,
    "slurm.timeout_min": 1,
    "local.workers": 1,
    "local.timeout_min": 1,
    "budget.evaluations": 1,
    "budget.failures": 1,
    "disk.floor_gb": 0,
    "retry.mem_factor": 1,
    "retry.exclude_min": 0,
    "disk.floor_inodes": 0,
    "disk.keep_best": 0,
    "disk.keep_last": 0,
}

_NO_COUNTS = ("mem_factor", "max_mem_gb", "exclude_min")
_RETRIES = tuple(item.name for item in fields(RetrySettings) if item.name not in _NO_COUNTS)

_ABOVE_ZERO = (
    "train.lr",
    "train.heartbeat_s",
    "slurm.mem_gb",
    "slurm.gpu_memory_gb",
    "local.gpu_memory_gb",
    "slurm.poll_s",
    "retry.max_mem_gb",
    "budget.gpu_hours",
    "budget.wall_h",
)

_WORDS: Mapping[str, tuple[str, ...]] = {
    "train.device": DEVICES,
    "train.precision": PRECISIONS,
    "search.repeats": REPEATS,
}


def check_limits(settings: Settings) -> None:
    """Raise ConfigError for a setting that no search can work with, naming its key."""
    for key, low in {**_LOWEST, **{f"retry.{name}": 0 for name in _RETRIES}}.items():
        value = _value(settings, key)
        if value is not None and not low <= value < math.inf:
            raise ConfigError(f"`{key}` must be at least {low}, not {value}")
    for key in _ABOVE_ZERO:
        value = _value(settings, key)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"`{key}` must be above 0, not {value}")
    for key, known in _WORDS.items():
        word = _value(settings, key)
        if word not in known:
            near = nearest(word, known)
            raise ConfigError(
                f"`{key}` must be one of {', '.join(known)}, not `{word}`",
                hint=f"did you mean `{near}`?" if near else None,
            )
    _check_together(settings)


def _check_together(settings: Settings) -> None:
    batch, micro_batch = settings.train.batch, settings.train.micro_batch
    if micro_batch and batch % micro_batch:
        raise ConfigError(
            f"`train.micro_batch` {micro_batch} does not divide `train.batch` {batch}"
        )
    gpus = settings.local.gpus
    for gpu in gpus:
        if gpu < 0 if isinstance(gpu, int) else not GPU_NAME.fullmatch(gpu):
            raise ConfigError(
                f"`local.gpus` holds `{gpu}`, which is no GPU",
                hint="numbers from 0, or names as `nvidia-smi -L` shows them: GPU-..., MIG-...",
            )
    if len(set(gpus)) < len(gpus):
        raise ConfigError(
            "`local.gpus` names a GPU twice", hint="each GPU runs one evaluation at a time"
        )


def _value(settings: Settings, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)
