"""The settings: type, default, bounds and meaning of each; those of one run are a `Settings`."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_type_hints

from elmanctl.bounds import Bounds, bounds_of, setting
from elmanctl.constants import (
    BEST,
    CMA,
    CMA_GP,
    GENERATIONAL,
    GPU_NAME,
    MAX_SEED,
    MIN_POPULATION,
    MODES,
    OPTIMIZERS,
    REPEATS,
    YEAR_MIN,
)
from elmanctl.errors import ConfigError
from elmanctl.run.metrics_settings import MetricsSettings
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.run.training import BUDGET_KINDS, Training

# The GPUs that a job asks for unless told otherwise, of which each of `train.gpus` needs one.
ONE_GPU = "gpu:1"

_MOST_HOST_GB = 1_000_000
_MOST_GPU_GB = 10_000
_MOST_CPUS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSettings:
    """[search]: what is searched, how widely and how long."""

    params: str | None = setting(None, "Parameter budget, e.g. 480M; dim is solved to meet it")
    tolerance: float = setting(
        0.02, "Largest relative distance of the real count from params", most=0.5
    )
    multiple_of: int = setting(
        32, "dim is a multiple of this; finer meets more budgets", least=1, most=65_536
    )
    space: str = setting("3d", "Name of the search space, see `elmanctl models MODEL`")
    generations: int = setting(15, "Generations of CMA-ES", least=1, most=100_000)
    population: int = setting(8, "Evaluations a generation", least=MIN_POPULATION, most=10_000)
    mode: str = setting(
        GENERATIONAL,
        "When points are asked: a generation at a time, or one for each that has ended",
        words=MODES,
        absent=GENERATIONAL,
    )
    optimizer: str = setting(
        CMA_GP,
        "Search method, see docs/concepts/optimizers.md",
        words=(*OPTIMIZERS, BEST),
        absent=CMA,
    )
    sigma: float = setting(0.3, "First step size, as a share of each axis' range", above=0, most=1)
    seed: int = setting(1, "Seed of the optimizer", most=MAX_SEED)
    start_from_best: bool = setting(False, "Start at the known best configuration of the space")
    evaluations: int | None = setting(
        None,
        "Trained evaluations that end the search; confirmations come on top",
        least=1,
        most=10**9,
        absent=None,
    )
    patience: int = setting(
        0,
        "Generations in a row without an improvement that end the search; 0 is off",
        most=100_000,
        absent=0,
    )
    min_generations: int = setting(
        0, "Generations before which patience ends nothing", most=100_000, absent=0
    )
    min_improvement: float = setting(
        0.0, "Drop of the best loss, in nats, that is an improvement", most=100, absent=0.0
    )
    min_improvement_sd: float = setting(
        0.0,
        "The same in standard deviations of the noise, once repeats show it",
        most=100,
        absent=0.0,
    )
    max_jobs: int = setting(
        64,
        "Most attempts in the queue or running at one time; asynchronous: the population",
        least=1,
        most=100_000,
    )
    repeats: str = setting(
        "answer",
        "A point asked again: answer it from the ledger, reseed it to see the noise, or train it"
        " again on the same seed",
        words=REPEATS,
    )
    failed_loss: float | None = setting(
        None,
        "Loss that a failed evaluation is told as, and the largest that any is; default: by the"
        " policy of its verdict",
        above=0,
        most=10**6,
        absent=None,
    )
    lhs_points: int = setting(
        64, "Points of the Latin hypercube of lhs-cma", least=1, most=10**6, absent=64
    )
    lhs_starts: int = setting(
        2, "Best of these points from which lhs-cma starts CMA-ES", least=1, most=1000, absent=2
    )
    reevaluate: float = setting(
        0.0,
        "Share of the generations, the last ones, that train the best again on fresh seeds",
        most=0.5,
        absent=0.0,
    )
    confirm_top: int = setting(
        3,
        "Best configurations that are trained again on fresh seeds; 0 is none",
        most=100,
        absent=0,
    )
    confirm_seeds: int = setting(3, "Fresh seeds for each of them; 0 is none", most=100, absent=0)
    axes: dict[str, Any] = setting({}, "Axes that replace or add to those of the space")
    sweep: dict[str, Any] = setting(
        {},
        "Values of settings that are searched apart in turns, e.g. n_state = [16, 32]",
        absent={},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """[data]: the corpus."""

    path: str | None = setting(None, "File of bytes, documents parted by 0x1e; default built-in")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmSettings:
    """[slurm]: what each job asks for."""

    template: str | None = setting(None, "Named resources from sbatch_templates/")
    partition: str | None = setting(None, "Partition")
    account: str | None = setting(None, "Account")
    gres: str | None = setting(
        ONE_GPU, "Generic resources of a job on each node; gpu:1 is one for each of train.gpus"
    )
    mem_gb: float | None = setting(None, "Host memory of one job", above=0, most=_MOST_HOST_GB)
    cpus: int | None = setting(None, "CPUs of one job", least=1, most=_MOST_CPUS)
    per_job: int = setting(
        1,
        "Attempts of one job, e.g. the GPUs of a node; a job asks for so many times as much",
        least=1,
        most=1000,
        absent=1,
    )
    timeout_min: int | None = setting(
        None, "Time limit; default the training budget and a margin", least=1, most=YEAR_MIN
    )
    setup: tuple[str, ...] = setting(
        (), "Shell lines before the worker, run as they are, e.g. module load cuda"
    )
    extra: dict[str, Any] = setting({}, "Other sbatch options, e.g. {qos = 'high'}")
    python: str | None = setting(
        None, "Shell command that starts Python on the node, e.g. apptainer exec x.sif python3"
    )
    gpu_memory_gb: float | None = setting(
        None, "Memory of one GPU; micro-batches are made to fit", above=0, most=_MOST_GPU_GB
    )
    poll_s: float = setting(
        60.0, "Seconds between two looks at Slurm, of two commands at most", least=1, most=3600
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """[local]: running on this machine instead of Slurm."""

    workers: int = setting(2, "Evaluations at the same time on the CPU", least=1, most=_MOST_CPUS)
    gpus: tuple[int | str, ...] = setting(
        (), "GPUs by number or name (GPU-..., MIG-...); one evaluation at a time on each"
    )
    gpu_memory_gb: float | None = setting(
        None, "Memory of one GPU; micro-batches are made to fit", above=0, most=_MOST_GPU_GB
    )
    timeout_min: int | None = setting(
        None, "Time limit; default the training budget and a margin", least=1, most=YEAR_MIN
    )

    def at_once(self, gpus_each: int) -> int:
        """Return how many evaluations run at the same time, if each trains on so many GPUs."""
        return len(self.gpus) // gpus_each if self.gpus else self.workers

    def check_together(self) -> None:
        """Raise ConfigError for values that do not go together, or name no GPU."""
        for gpu in self.gpus:
            if gpu < 0 if isinstance(gpu, int) else not GPU_NAME.fullmatch(gpu):
                raise ConfigError(
                    f"`local.gpus` holds `{gpu}`, which is no GPU",
                    hint="numbers from 0, or names as `nvidia-smi -L` shows them: GPU-..., MIG-...",
                )
        if len(set(self.gpus)) < len(self.gpus):
            raise ConfigError(
                "`local.gpus` names a GPU twice", hint="each GPU runs one evaluation at a time"
            )


def _retries(default: int, help_text: str) -> Any:
    """Return the field of a number of retries."""
    return setting(default, help_text, most=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """[retry]: attempts allowed beyond the first, by verdict, and what they change."""

    diverged: int = _retries(0, "The worker saw a loss or gradient that is not finite")
    invalid: int = _retries(0, "The configuration cannot run")
    oom: int = _retries(1, "Out of host memory; again with mem_factor times as much")
    mem_factor: float = setting(
        1.5, "Factor on slurm.mem_gb after host memory ran out", least=1, most=100
    )
    max_mem_gb: float | None = setting(
        None, "Most host memory that a retry asks for", above=0, most=_MOST_HOST_GB
    )
    oom_gpu: int = _retries(4, "Out of GPU memory; each time with half the micro-batch")
    oom_neighbour: int = _retries(3, "Another process had the memory; again on another node")
    cuda_error: int = _retries(1, "A CUDA error")
    cuda_device: int = _retries(3, "A broken GPU; again on another node")
    python_error: int = _retries(0, "An exception")
    environment: int = _retries(2, "The node lacks torch, the corpus, a GPU; on another node only")
    scheduler: int = _retries(5, "Slurm's controller did not answer when the job began")
    disk_full: int = _retries(0, "No space left")
    timeout: int = _retries(0, "Over the time limit")
    killed: int = _retries(1, "A signal from outside")
    node_failure: int = _retries(3, "The node died")
    preempted: int = _retries(10, "Another job took the node")
    lost: int = _retries(2, "The job vanished")
    undetermined: int = _retries(1, "The evidence does not say")
    replacements: int = _retries(2, "Points asked in place of failed ones, per generation")
    breaker: int = _retries(3, "Same failures in a row, or bad nodes, that pause the search")
    exclude_min: float = setting(
        60.0, "Minutes for which a bad node gets no jobs; 0 is off", most=YEAR_MIN
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """[budget]: when the search stops paying; what is not set is no limit."""

    evaluations: int | None = setting(
        None, "Most evaluations that are trained", least=1, most=10**9
    )
    gpu_hours: float | None = setting(
        None, "Most GPU-hours; of jobs without a GPU, job-hours", above=0, most=10**9
    )
    wall_h: float | None = setting(
        None, "Most hours that controllers are at work", above=0, most=10**6
    )
    failures: int | None = setting(
        None, "Failed attempts after which nothing more is submitted", least=1, most=10**9
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSettings:
    """[disk]: when to stop before the disk is full, and what may go."""

    floor_gb: float = setting(
        1.0, "Nothing is submitted with less free space than this", most=10**9
    )
    floor_inodes: int = setting(
        1000, "Nothing is submitted with room for fewer files than this", most=10**12
    )
    keep_best: int = setting(
        3, "Evaluations, best first, of which cleaning keeps all files", most=10**6
    )
    keep_last: int = setting(2, "Newest generations of which cleaning keeps all files", most=10**6)
    keep_failed_logs: bool = setting(True, "Cleaning keeps the logs of failed attempts")
    keep_models: int = setting(
        1, "Evaluations, best first, whose trained model is kept", most=10**6, absent=0
    )
    auto_clean: bool = setting(False, "Under the floor, clean by these rules before pausing")


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSettings:
    """[paths]: where things are kept."""

    runs: str = setting(
        "runs", "Folder of the runs, shared with the compute nodes; from a file, relative to it"
    )
    templates: str = setting("sbatch_templates", "Folder of your own resource templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The resolved settings of a run; `model` holds fixed fields of the model's configuration."""

    model: dict[str, Any] = field(default_factory=dict)
    search: SearchSettings = field(default_factory=SearchSettings)
    train: Training = field(default_factory=Training)
    data: DataSettings = field(default_factory=DataSettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    local: LocalSettings = field(default_factory=LocalSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    stopping: StoppingSettings = field(default_factory=StoppingSettings)
    disk: DiskSettings = field(default_factory=DiskSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    paths: PathSettings = field(default_factory=PathSettings)

    def encode(self) -> dict[str, Any]:
        """Return the settings as plain data, for the ledger, without those at their old way."""
        old = absent_settings()
        tables = {
            section: {
                name: value
                for name, value in table.items()
                if section == "model" or old.get(f"{section}.{name}", MISSING) != value
            }
            for section, table in asdict(self).items()
        }
        return {name: table for name, table in tables.items() if table or name == "model"}


SECTIONS: Mapping[str, type] = {
    name: record for name, record in get_type_hints(Settings).items() if name != "model"
}

# Only one of these may be in force; the nearest source that names one decides.
BUDGET_KEYS = tuple(f"train.{kind}" for kind in BUDGET_KINDS)


def flat(data: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield `section.key` and value of every entry of a table of tables."""
    for section, table in data.items():
        for key, value in table.items():
            yield f"{section}.{key}", value


def setting_help() -> dict[str, str]:
    """Return `section.key` -> meaning for every setting."""
    helps = {
        name: {f.name: f.metadata["help"] for f in fields(SECTIONS[name])} for name in SECTIONS
    }
    return dict(flat(helps))


def absent_settings() -> dict[str, Any]:
    """Return `section.key` -> what a file without that setting means, for those that came later."""
    return {
        f"{section}.{item.name}": item.metadata["absent"]
        for section, record in SECTIONS.items()
        for item in fields(record)
        if "absent" in item.metadata
    }


def setting_bounds() -> dict[str, Bounds]:
    """Return `section.key` -> bounds for every setting that has some."""
    return dict(flat({section: bounds_of(record) for section, record in SECTIONS.items()}))


# Relative to the file that sets them.
PATH_KEYS = ("paths.runs", "paths.templates", "data.path")

# What a resource template may hold.
TEMPLATE_KEYS = (
    "summary",
    *(key for key in get_type_hints(SlurmSettings) if key not in ("template", "poll_s")),
)
