"""Starting a run: everything is checked first, and nothing is written before it is."""

import importlib.util
import os
import platform
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import elmanctl
from elmanctl.constants import INSTALL_TRAIN
from elmanctl.errors import (
    ConfigError,
    EnvironmentNotReady,
    Faults,
    InvalidConfiguration,
    LedgerError,
    UsageError,
)
from elmanctl.folders import as_written
from elmanctl.ledger.lease import Lease
from elmanctl.ledger.payloads import RunCreated, encode_payload
from elmanctl.ledger.records import Resources, RunRecord
from elmanctl.ledger.reserve import full_disk, refill
from elmanctl.ledger.spending import devices, gpus_asked
from elmanctl.ledger.store import LedgerWriter
from elmanctl.models.backends import AUTO, BACKENDS, check_backend_name, unavailable_on_all_devices
from elmanctl.models.config import DOCUMENTED
from elmanctl.models.registry import decode_config, resolve_level
from elmanctl.run.corpus import CorpusInfo, describe, standard_library_corpus, unigram_entropy
from elmanctl.run.frozen_code import freeze_code
from elmanctl.run.ownership import refuse_open_parents
from elmanctl.run.paths import RunPaths
from elmanctl.run.training import Budget
from elmanctl.schedulers.gpus import check_gpus
from elmanctl.schedulers.quoting import check_path
from elmanctl.schedulers.submission import check_resources
from elmanctl.search.atomic_folder import new_folder
from elmanctl.search.costs import budget_stop, unit_name
from elmanctl.search.disk_errors import describe_error
from elmanctl.search.limits import check_learning_rates, check_limits
from elmanctl.search.optimizer import CmaOptimizer
from elmanctl.search.workload import attempt_resources
from elmanctl.settings import Settings
from elmanctl.space.audit import Effect, audit_space, refuse_dead_axes
from elmanctl.space.candidates import Candidate, CandidateBuilder, ask_candidates
from elmanctl.space.preflight import check_space, mixed_backends
from elmanctl.space.space import SearchSpace, load_space

# A run's name is a folder's, a part of Slurm's job names, and typed by people.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A search that passed every check and of which nothing is written yet."""

    name: str
    folder: Path
    model: str
    executor: str
    settings: Settings
    space: SearchSpace
    start: tuple[float, ...]
    start_source: str
    start_fault: str | None
    effects: Mapping[str, Effect]
    refused_share: float
    mixed_backends: str | None
    corpus: CorpusInfo
    unigram_nats: float
    budget: Budget
    resources: Resources

    @property
    def start_values(self) -> dict[str, Any]:
        """The value of every axis at the start."""
        values = self.space.values(self.start)
        return {axis.name: values[axis.name] for axis in self.space.axes}

    @property
    def evaluations(self) -> int:
        """How many evaluations the search makes when none fails."""
        return self.settings.search.generations * self.settings.search.population

    @property
    def hours(self) -> float | None:
        """Training hours of all evaluations, None when the budget is not in minutes."""
        if self.budget.kind != "minutes":
            return None
        return self.evaluations * self.budget.amount / 60

    @property
    def devices(self) -> int:
        """By how much the time of a job counts: the GPUs that it asks for, at least 1."""
        return devices(self.resources)

    @property
    def unit(self) -> str:
        """What an hour of one device is called."""
        if self.executor == "local":
            return unit_name(has_gpus=bool(self.settings.local.gpus))
        return unit_name(has_gpus=gpus_asked(self.resources) > 0)

    @property
    def most_gpu_hours(self) -> float:
        """The most that the search can cost when no attempt is run again, in `unit`."""
        return self.evaluations * self.resources.timeout_min / 60 * self.devices

    @property
    def stop(self) -> str | None:
        """Which limit of `[budget]` ends the search before its last generation, if one does."""
        expected = None if self.hours is None else self.hours * self.devices
        return budget_stop(
            self.settings.budget,
            evaluations=self.evaluations,
            expected_gpu_hours=expected,
            most_gpu_hours=self.most_gpu_hours,
            unit=self.unit,
        )


def plan_search(
    model: str, settings: Settings, *, executor: str, name: str, runs: Path
) -> SearchPlan:
    """Check everything that can be checked without a job, and return the plan.

    Raises NotFound (model, space, corpus), InvalidConfiguration (sizes, budget), ConfigError
    (settings), UsageError (name, sbatch options), EnvironmentNotReady (this machine cannot run it).
    """
    family, fixed = resolve_level(model, settings.model)
    faults = Faults()
    with faults:
        check_limits(settings)
    with faults:
        check_backend_name(family.name, family.backends, settings.train.backend)
    with faults:
        folder = _run_folder(runs, name)
    with faults:
        budget = settings.train.budget
    with faults:
        space = load_space(
            family.name,
            settings.search.space,
            axes=settings.search.axes,
            fixed=_constants(fixed),
            has_budget=settings.search.params is not None,
        )
        check_learning_rates(space)
        # Without a width there is nothing to build.
        CandidateBuilder(space, settings, executor)
    faults.raise_any()
    resources = attempt_resources(settings, executor, {})
    if executor == "slurm":
        check_resources(resources)
    check_space(space, settings, executor)
    effects = audit_space(space, settings.search.multiple_of)
    refuse_dead_axes(effects)
    start, source = _start(space, settings)
    builder = CandidateBuilder(space, settings, executor)
    first, refused_share = _check_asking(space, settings, builder, start)
    models = [decode_config(family.name, each.config) for each in first]
    corpus = find_corpus(settings)
    _check_corpus(corpus, settings)
    if executor == "local":
        check_gpus(settings.local.gpus, settings.train.device, os.environ)
        check_trainable(settings)
    return SearchPlan(
        name=name,
        folder=folder,
        model=family.name,
        executor=executor,
        settings=settings,
        space=space,
        start=start,
        start_source=source,
        start_fault=_refusal(builder, start),
        effects=effects,
        refused_share=refused_share,
        mixed_backends=mixed_backends(settings, models),
        corpus=corpus,
        unigram_nats=unigram_entropy(corpus.path),
        budget=budget,
        resources=resources,
    )


def create_run(plan: SearchPlan) -> Path:
    """Write the run's folder and the first event of its ledger; return the folder.

    What was begun is taken back when it cannot be finished.  Raises FileExistsError when the name
    was taken meanwhile, EnvironmentNotReady for a disk that is full or cannot be written,
    ForeignFolder where somebody else could replace the folder.
    """
    refuse_open_parents(plan.folder)
    try:
        with new_folder(plan.folder):
            paths = RunPaths(plan.folder)
            with Lease.acquire(plan.folder) as lease:
                code = freeze_code(paths.code)
                refill(plan.folder)
                created = RunCreated(run=_run_record(plan, code))
                data = encode_payload(created)
                LedgerWriter.create(paths.ledger, lease, created.event_kind(), **data).close()
    except FileExistsError:
        raise
    except (OSError, LedgerError) as exc:
        failure = full_disk(exc) or (exc if isinstance(exc, OSError) else exc.__cause__)
        if not isinstance(failure, OSError):
            raise
        raise EnvironmentNotReady(
            f"the run's folder cannot be made: {describe_error(failure)}; nothing was started",
            hint="make room, e.g. with `elmanctl clean`, and start again"
            if full_disk(exc)
            else "set `paths.runs` to a folder of yours on a shared disk, with hard links",
        ) from exc
    return plan.folder


def _constants(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a level and `[model]` fix, without what every configuration says anyway."""
    silent = {"level": settings["level"], "variant": DOCUMENTED}
    return {name: value for name, value in settings.items() if silent.get(name) != value}


def find_corpus(settings: Settings) -> CorpusInfo:
    """Return the user's corpus, or the built-in one, packing it if that was never done."""
    if settings.data.path is None:
        return describe(standard_library_corpus())
    return describe(as_written(Path(settings.data.path)))


def _check_asking(
    space: SearchSpace, settings: Settings, builder: CandidateBuilder, start: tuple[float, ...]
) -> tuple[list[Candidate], float]:
    """Ask a generation as the search will; return it, and the share of points that are refused.

    An empty space is found here, before the search starts.
    """
    optimizer = CmaOptimizer.start(
        space.coordinates,
        start,
        sigma=settings.search.sigma,
        population=settings.search.population,
        seed=settings.search.seed,
    )
    population = settings.search.population
    candidates, refused = ask_candidates(optimizer.ask, builder, population)
    return candidates, refused / (refused + population)


def _refusal(builder: CandidateBuilder, point: tuple[float, ...]) -> str | None:
    """Why the point itself would be drawn again, None when it would be trained."""
    try:
        builder.build(point)
    except InvalidConfiguration as exc:
        return exc.message
    return None


def _check_corpus(corpus: CorpusInfo, settings: Settings) -> None:
    window = settings.train.seq_len + 1
    if corpus.size_bytes < window:
        raise ConfigError(
            f"a corpus of {corpus.size_bytes} bytes is shorter than one window of {window}",
            hint="use a larger corpus or a smaller `train.seq_len`",
        )


def _start(space: SearchSpace, settings: Settings) -> tuple[tuple[float, ...], str]:
    if not settings.search.start_from_best:
        return space.middle, "the middle of the space"
    missing = [axis.name for axis in space.axes if axis.name not in space.best]
    if missing or space.best_source is None:
        raise ConfigError(
            f"space `{space.name}` has no known best value of `{missing[0] if missing else '?'}`",
            hint="leave out `--start-from-best`",
        )
    return space.point(space.best), space.best_source


def check_trainable(settings: Settings) -> None:
    """Raise EnvironmentNotReady when this machine lacks what a worker imports or is told to use."""
    check_gpus((), settings.train.device, os.environ)
    missing = [name for name in ("torch", "schedulefree") if not importlib.util.find_spec(name)]
    if missing:
        raise EnvironmentNotReady(
            f"`{missing[0]}` is not installed here, and training needs it",
            hint=INSTALL_TRAIN,
        )
    if settings.train.backend != AUTO:
        backend = BACKENDS[settings.train.backend]
        fault = unavailable_on_all_devices(backend)
        if fault:
            raise EnvironmentNotReady(
                f"backend `{backend.name}` cannot run here: {fault}", hint=backend.fix
            )


def _run_folder(runs: Path, name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a run cannot be named `{name}`",
            hint="use letters, digits, `.`, `_` and `-`, a letter or digit first",
        )
    if len(name) > _NAME_LIMIT:
        raise UsageError(
            f"a run's name of {len(name)} characters is too long",
            hint=f"use at most {_NAME_LIMIT}; folders and jobs are named after it",
        )
    folder = as_written(runs) / name
    check_path(folder)
    _check_place(folder.parent)
    if folder.exists() and not RunPaths(folder).ledger.exists():
        raise UsageError(
            f"{folder} exists and is no run", hint="remove it, or pass another `--name`"
        )
    if folder.exists():
        raise UsageError(
            f"a run named `{name}` exists",
            hint=f"continue it with `elmanctl resume {name}`, or pass another `--name`",
        )
    return folder


def _check_place(runs: Path) -> None:
    """Raise EnvironmentNotReady unless a folder can be made here, as far as can be told."""
    nearest_above = next(path for path in (runs, *runs.parents) if path.exists())
    if not nearest_above.is_dir():
        raise EnvironmentNotReady(
            f"runs cannot be kept in {runs}: {nearest_above} is a file",
            hint="change `paths.runs`",
        )
    if not os.access(nearest_above, os.W_OK | os.X_OK, effective_ids=True):
        raise EnvironmentNotReady(
            f"runs cannot be kept in {runs}: {nearest_above} cannot be written by you",
            hint="change `paths.runs`",
        )


def _run_record(plan: SearchPlan, code: str) -> RunRecord:
    search = plan.settings.search
    return RunRecord(
        name=plan.name,
        token=secrets.token_hex(4),
        model=plan.model,
        executor=plan.executor,
        settings=plan.settings.encode(),
        space=plan.space.encode(),
        audit=dict(plan.effects),
        start={
            "point": list(plan.start),
            "values": plan.start_values,
            "source": plan.start_source,
        },
        optimizer={
            "name": "pycma",
            "seed": search.seed,
            "sigma": search.sigma,
            "population": search.population,
        },
        budget={"generations": search.generations, "params": search.params},
        data={
            "path": str(plan.corpus.path),
            "sha256": plan.corpus.sha256,
            "size_bytes": plan.corpus.size_bytes,
            "unigram_nats": plan.unigram_nats,
        },
        protocol={
            "budget": plan.budget.encode(),
            "tokens_per_step": plan.settings.train.tokens_per_step,
            "seq_len": plan.settings.train.seq_len,
        },
        code={"sha256": code},
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    packages = ("cma", "numpy", "submitit")
    return {
        "elmanctl": elmanctl.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
