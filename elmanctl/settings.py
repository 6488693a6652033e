"""Every setting: type, default, bounds, meaning; the values of one run are a `Settings`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from elmanctl.constants import DEVICES, MAX_SEED, MIN_POPULATION, PRECISIONS, REPEATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Which values of a setting make sense: numbers from `low` to `high`, or one of some words.

    With `is_open` a number has to be above `low`.  What is not set is within all bounds.
    """

    low: float = 0
    high: float = 0
    is_open: bool = False
    words: tuple[str, ...] = ()

    def refusal(self, value: Any) -> str | None:
        """Return what a value must be and is not, in words; None when it is within the bounds."""
        if value is None:
            return None
        if self.words:
            known = f"must be one of {', '.join(self.words)}, not `{value}`"
            return None if value in self.words else known
        if self.is_open and not value > self.low:
            return f"must be above {self.low:g}, not {value}"
        if not value >= self.low:
            return f"must be at least {_plain(self.low)}, not {value}"
        return None if value <= self.high else f"must be at most {_plain(self.high)}, not {value}"

    def describe(self) -> str:
        """Return the bounds in words."""
        if self.words:
            return f"one of {', '.join(self.words)}"
        if self.is_open:
            return f"above {_plain(self.low)}, at most {_plain(self.high)}"
        return f"{_plain(self.low)} to {_plain(self.high)}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _setting(
    default: Any,
    help_text: str,
    *,
    least: float = 0,
    above: float | None = None,
    most: float | None = None,
    words: tuple[str, ...] = (),
) -> Any:
    """Return a field; a number names its `most`, and is at least `least` or else `above` that."""
    metadata: dict[str, Any] = {"help": help_text}
    if most is not None:
        low = least if above is None else above
        metadata["bounds"] = Bounds(low=low, high=most, is_open=above is not None)
    elif words:
        metadata["bounds"] = Bounds(words=words)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_YEAR_MIN = 365 * 24 * 60
_MOST_RETRIES = 1000
_MOST_HOST_GB = 1_000_000
_MOST_GPU_GB = 10_000
_MOST_CPUS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """[search]: what is searched, how widely and how long."""

    params: str | None = _setting(None, "Parameter budget, e.g. 480M; dim is solved to meet it")
    tolerance: float = _setting(
        0.02, "Largest relative distance of the real count from params", most=0.5
    )
    multiple_of: int = _setting(
        32, "dim is a multiple of this; finer meets more budgets", least=1, most=65_536
    )
    space: str = _setting("3d", "Name of the search space, see `elmanctl models MODEL`")
    generations: int = _setting(15, "Generations of CMA-ES", least=1, most=100_000)
    population: int = _setting(8, "Evaluations a generation", least=MIN_POPULATION, most=10_000)
    sigma: float = _setting(0.3, "First step size, as a share of each axis' range", above=0, most=1)
    seed: int = _setting(1, "Seed of the optimizer", most=MAX_SEED)
    start_from_best: bool = _setting(False, "Start at the known best configuration of the space")
    max_jobs: int = _setting(
        64, "Most attempts in the queue or running at one time", least=1, most=100_000
    )
    repeats: str = _setting(
        "answer",
        "A point asked again: answer it from the ledger, or reseed it to see the noise",
        words=REPEATS,
    )
    axes: dict[str, Any] = _setting({}, "Axes that replace or add to those of the space")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """[train]: one evaluation's training run; exactly one of minutes, steps, tokens."""

    minutes: float | None = _setting(None, "Time budget of one evaluation", above=0, most=_YEAR_MIN)
    steps: int | None = _setting(None, "Step budget of one evaluation", least=1, most=10**9)
    tokens: int | None = _setting(
        None, "Token (byte) budget of one evaluation", least=1, most=10**15
    )
    batch: int = _setting(16, "Sequences a step", least=1, most=1_000_000)
    micro_batch: int = _setting(
        0, "Sequences at once; 0 is the batch, or what fits gpu_memory_gb", most=1_000_000
    )
    seq_len: int = _setting(512, "Bytes predicted in one sequence", least=1, most=10**9)
    lr: float = _setting(3e-4, "Learning rate, where the space has no lr axis", above=0, most=10)
    warmup_steps: int = _setting(
        3, "Steps before the clock of a time budget starts", most=1_000_000
    )
    grad_clip: float = _setting(1.0, "Largest norm of the gradient", most=1_000_000)
    weight_decay: float = _setting(0.01, "Weight decay of schedule-free AdamW", most=10)
    seed: int = _setting(42, "Seed of initialisation and of the order of the data", most=2**62)
    precision: str = _setting("auto", "fp32, bf16 or auto (bf16 on a GPU)", words=PRECISIONS)
    device: str = _setting("auto", "cpu, cuda or auto", words=DEVICES)
    backend: str = _setting("auto", "Implementation of the recurrence")
    threads: int = _setting(0, "CPU threads of a worker; 0 leaves it to torch", most=1024)
    heartbeat_s: float = _setting(
        10.0, "Seconds between two heartbeats of a worker", above=0, most=3600
    )
    checkpoint_min: float = _setting(
        0.0, "Minutes between two checkpoints of a worker; 0: none", most=_YEAR_MIN
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """[data]: the corpus."""

    path: str | None = _setting(None, "File of bytes, documents parted by 0x1e; default built-in")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """[slurm]: what each job asks for."""

    template: str | None = _setting(None, "Named resources from sbatch_templates/")
    partition: str | None = _setting(None, "Partition")
    account: str | None = _setting(None, "Account")
    gres: str | None = _setting("gpu:1", "Generic resources of one job")
    mem_gb: float | None = _setting(None, "Host memory of one job", above=0, most=_MOST_HOST_GB)
    cpus: int | None = _setting(None, "CPUs of one job", least=1, most=_MOST_CPUS)
    timeout_min: int | None = _setting(
        None, "Time limit; default the training budget and a margin", least=1, most=_YEAR_MIN
    )
    setup: tuple[str, ...] = _setting(
        (), "Shell lines before the worker, run as they are, e.g. module load cuda"
    )
    extra: dict[str, Any] = _setting({}, "Other sbatch options, e.g. {qos = 'high'}")
    python: str | None = _setting(
        None, "Shell command that starts Python on the node, e.g. apptainer exec x.sif python3"
    )
    gpu_memory_gb: float | None = _setting(
        None, "Memory of one GPU; micro-batches are made to fit", above=0, most=_MOST_GPU_GB
    )
    poll_s: float = _setting(
        60.0, "Seconds between two looks at Slurm, of two commands at most", least=1, most=3600
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """[local]: running on this machine instead of Slurm."""

    workers: int = _setting(2, "Evaluations at the same time on the CPU", least=1, most=_MOST_CPUS)
    gpus: tuple[int | str, ...] = _setting(
        (), "GPUs by number or name (GPU-..., MIG-...); one evaluation at a time on each"
    )
    gpu_memory_gb: float | None = _setting(
        None, "Memory of one GPU; micro-batches are made to fit", above=0, most=_MOST_GPU_GB
    )
    timeout_min: int | None = _setting(
        None, "Time limit; default the training budget and a margin", least=1, most=_YEAR_MIN
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """[retry]: attempts allowed beyond the first, by verdict, and what they change."""

    diverged: int = _setting(
        0, "The worker saw a loss or gradient that is not finite", most=_MOST_RETRIES
    )
    invalid: int = _setting(0, "The configuration cannot run", most=_MOST_RETRIES)
    oom: int = _setting(
        1, "Out of host memory; again with mem_factor times as much", most=_MOST_RETRIES
    )
    mem_factor: float = _setting(
        1.5, "Factor on slurm.mem_gb after host memory ran out", least=1, most=100
    )
    max_mem_gb: float | None = _setting(
        None, "Most host memory that a retry asks for", above=0, most=_MOST_HOST_GB
    )
    oom_gpu: int = _setting(
        4, "Out of GPU memory; each time with half the micro-batch", most=_MOST_RETRIES
    )
    oom_neighbour: int = _setting(
        3, "Another process had the memory; again on another node", most=_MOST_RETRIES
    )
    cuda_error: int = _setting(1, "A CUDA error", most=_MOST_RETRIES)
    cuda_device: int = _setting(3, "A broken GPU; again on another node", most=_MOST_RETRIES)
    python_error: int = _setting(0, "An exception", most=_MOST_RETRIES)
    environment: int = _setting(
        2, "The node lacks torch, the corpus, a GPU; on another node only", most=_MOST_RETRIES
    )
    scheduler: int = _setting(
        5, "Slurm's controller did not answer when the job began", most=_MOST_RETRIES
    )
    disk_full: int = _setting(0, "No space left", most=_MOST_RETRIES)
    timeout: int = _setting(0, "Over the time limit", most=_MOST_RETRIES)
    killed: int = _setting(1, "A signal from outside", most=_MOST_RETRIES)
    node_failure: int = _setting(3, "The node died", most=_MOST_RETRIES)
    preempted: int = _setting(10, "Another job took the node", most=_MOST_RETRIES)
    lost: int = _setting(2, "The job vanished", most=_MOST_RETRIES)
    undetermined: int = _setting(1, "The evidence does not say", most=_MOST_RETRIES)
    replacements: int = _setting(
        2, "Points asked in place of failed ones, per generation", most=_MOST_RETRIES
    )
    breaker: int = _setting(
        3, "Same failures in a row, or bad nodes, that pause the search", most=_MOST_RETRIES
    )
    exclude_min: float = _setting(
        60.0, "Minutes for which a bad node gets no jobs; 0 is off", most=_YEAR_MIN
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """[budget]: when the search stops paying; what is not set is no limit."""

    evaluations: int | None = _setting(
        None, "Most evaluations that are trained", least=1, most=10**9
    )
    gpu_hours: float | None = _setting(
        None, "Most GPU-hours; of jobs without a GPU, job-hours", above=0, most=10**9
    )
    wall_h: float | None = _setting(
        None, "Most hours that controllers are at work", above=0, most=10**6
    )
    failures: int | None = _setting(
        None, "Failed attempts after which nothing more is submitted", least=1, most=10**9
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSettings:
    """[disk]: when to stop before the disk is full, and what may go."""

    floor_gb: float = _setting(
        1.0, "Nothing is submitted with less free space than this", most=10**9
    )
    floor_inodes: int = _setting(
        1000, "Nothing is submitted with room for fewer files than this", most=10**12
    )
    keep_best: int = _setting(
        3, "Evaluations, best first, of which cleaning keeps all files", most=10**6
    )
    keep_last: int = _setting(2, "Newest generations of which cleaning keeps all files", most=10**6)
    keep_failed_logs: bool = _setting(True, "Cleaning keeps the logs of failed attempts")
    auto_clean: bool = _setting(False, "Under the floor, clean by these rules before pausing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """[paths]: where things are kept."""

    runs: str = _setting(
        "runs", "Folder of the runs, shared with the compute nodes; from a file, relative to it"
    )
    templates: str = _setting("sbatch_templates", "Folder of your own resource templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The resolved settings of a run; `model` holds fixed fields of the model's configuration."""

    model: dict[str, Any] = field(default_factory=dict)
    search: SearchSettings = field(default_factory=SearchSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    data: DataSettings = field(default_factory=DataSettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    disk: DiskSettings = field(default_factory=DiskSettings)
    paths: PathSettings = field(default_factory=PathSettings)

    def encode(self) -> dict[str, Any]:
        """Return the settings as plain data, for the ledger."""
        return asdict(self)


SECTIONS: Mapping[str, type] = {
    "search": SearchSettings,
    "train": TrainSettings,
    "data": DataSettings,
    "slurm": SlurmSettings,
    "local": LocalSettings,
    "retry": RetrySettings,
    "budget": BudgetSettings,
    "disk": DiskSettings,
    "paths": PathSettings,
}

# Only one of these may be in force; the nearest source that names one decides.
BUDGET_KEYS = ("train.minutes", "train.steps", "train.tokens")


def setting_help() -> dict[str, str]:
    """Return `section.key` -> meaning for every setting."""
    return {
        f"{section}.{item.name}": item.metadata["help"]
        for section, record in SECTIONS.items()
        for item in fields(record)
    }


def setting_bounds() -> dict[str, Bounds]:
    """Return `section.key` -> bounds for every setting that has some."""
    return {
        f"{section}.{item.name}": item.metadata["bounds"]
        for section, record in SECTIONS.items()
        for item in fields(record)
        if "bounds" in item.metadata
    }


# Relative to the file that sets them.
PATH_KEYS = ("paths.runs", "paths.templates", "data.path")

# What a resource template may hold.
TEMPLATE_KEYS = (
    "summary",
    "partition",
    "account",
    "gres",
    "mem_gb",
    "cpus",
    "gpu_memory_gb",
    "timeout_min",
    "setup",
    "extra",
    "python",
)
