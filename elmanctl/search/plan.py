"""Search plan: everything that can be checked before a search starts, with nothing written."""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elmanctl.constants import (
    BEST,
    INSTALL_TENSORBOARD,
    INSTALL_TRAIN,
    INSTALL_WANDB,
    MEASURED_BEST,
    STUDY,
)
from elmanctl.errors import (
    ConfigError,
    EnvironmentNotReady,
    Faults,
    InvalidConfiguration,
    UsageError,
)
from elmanctl.folders import as_written, nearest_existing
from elmanctl.ledger.spending import devices, gpus_asked
from elmanctl.ledger.submissions import Resources
from elmanctl.models.backends import AUTO, BACKENDS, check_backend_name, unavailable_on_all_devices
from elmanctl.models.config import DOCUMENTED
from elmanctl.models.registry import decode_config, resolve_level
from elmanctl.run.corpus import CorpusInfo, describe, standard_library_corpus, unigram_entropy
from elmanctl.run.paths import RunPaths
from elmanctl.run.training import Training
from elmanctl.schedulers.gpus import check_gpus
from elmanctl.schedulers.quoting import check_path
from elmanctl.schedulers.submission import check_resources
from elmanctl.search.costs import unit_name
from elmanctl.search.kept_models import PARAMETER_BYTES
from elmanctl.search.limits import (
    check_evaluations,
    check_learning_rates,
    check_limits,
    check_mode,
    check_optimizer,
    check_turns,
)
from elmanctl.search.optimizers.registry import has_start, start_optimizer
from elmanctl.search.rebuild import problem_of
from elmanctl.search.workload import attempt_resources
from elmanctl.settings import Settings
from elmanctl.space.audit import Effect, audit_space, refuse_dead_axes
from elmanctl.space.candidates import CandidateBuilder, ask_candidates
from elmanctl.space.preflight import check_space, mixed_backends
from elmanctl.space.space import SearchSpace, load_space

# The name of a run is a folder name and a part of Slurm's job names, and people type it.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_LIMIT = 100

# Where a search begins whose optimizer takes no start point.
FILLED = "points that fill the space"

_PACKAGES_OF_METRICS = {
    "tensorboard": ("tensorboardX", INSTALL_TENSORBOARD),
    "wandb": ("wandb", INSTALL_WANDB),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """A search that passed every check."""

    name: str
    folder: Path
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
    resources: Resources
    largest_parameters: int

    @property
    def model(self) -> str:
        """The name of the model family."""
        return self.space.model

    @property
    def start_values(self) -> dict[str, Any]:
        """The value of every axis at the start, none without a start."""
        if self.start_source == FILLED:
            return {}
        values = self.space.values(self.start)
        return {axis.name: values[axis.name] for axis in self.space.axes}

    @property
    def evaluations(self) -> int:
        """The number of evaluations of the search when none fails."""
        search = self.settings.search
        whole = search.generations * search.population
        return whole if search.evaluations is None else min(whole, search.evaluations)

    @property
    def confirmations(self) -> int:
        """The number of evaluations that train the best again, on top of those of the search."""
        search = self.settings.search
        return min(search.confirm_top, self.evaluations) * search.confirm_seeds

    @property
    def trainings(self) -> int:
        """The number of evaluations with confirmations, when none fails."""
        return self.evaluations + self.confirmations

    @property
    def hours(self) -> float | None:
        """Training hours, those of confirmations included, None unless the budget is in minutes."""
        minutes = self.settings.train.minutes
        return None if minutes is None else self.trainings * minutes / 60

    @property
    def devices(self) -> int:
        """The devices that one job counts as: its GPUs, at least 1."""
        return devices(self.resources)

    @property
    def expected_gpu_hours(self) -> float | None:
        """The cost of the training alone, in `unit`, None unless the budget is in minutes."""
        return None if self.hours is None else self.hours * self.devices

    @property
    def unit(self) -> str:
        """The name of an hour of one device."""
        local, asked = self.settings.local.gpus, gpus_asked(self.resources)
        return unit_name(has_gpus=bool(local if self.executor == "local" else asked))

    @property
    def most_gpu_hours(self) -> float:
        """The highest possible cost without retries, in `unit`."""
        return self.trainings * self.resources.timeout_min / 60 * self.devices

    @property
    def model_bytes(self) -> int:
        """The size of a model that is kept, the largest of the first points."""
        return PARAMETER_BYTES * self.largest_parameters

    @property
    def stop(self) -> str | None:
        """The limits of `[budget]` that may end the search early, in words, None if no limit can.

        Wall time and failures cannot be predicted, and repeats may let a search get further.
        """
        budget, words = self.settings.budget, []
        if budget.evaluations is not None and budget.evaluations < self.trainings:
            words.append(f"ends it after {budget.evaluations} evaluations")
        if budget.gpu_hours is not None and budget.gpu_hours < self.most_gpu_hours:
            expected = self.expected_gpu_hours
            end = "ends" if expected is not None and budget.gpu_hours < expected else "may end"
            words.append(f"{end} it after {budget.gpu_hours:g} {self.unit}")
        if budget.wall_h is not None:
            words.append(f"may end it after {budget.wall_h:g} h of work")
        if budget.failures is not None:
            words.append(f"may end it after {budget.failures} failed attempts")
        return ", ".join(words) or None


def plan_search(
    model: str, settings: Settings, *, executor: str, name: str, runs: Path
) -> SearchPlan:
    """Check everything that can be checked without a job, and return the plan.

    Raises NotFound (model, space, corpus), InvalidConfiguration (sizes, budget), ConfigError
    (settings), UsageError (name, sbatch options), EnvironmentNotReady (this machine cannot run it).
    """
    family, fixed = resolve_level(model, settings.model)
    if settings.search.optimizer == BEST:
        # On record is which one that was.
        named = replace(settings.search, optimizer=MEASURED_BEST)
        settings = replace(settings, search=named)
    search, train, faults = settings.search, settings.train, Faults()
    with faults:
        check_limits(settings)
        check_evaluations(search)
    with faults:
        check_backend_name(family.name, family.backends, train.backend)
    with faults:
        folder = _run_folder(runs, name)
    with faults:
        _ = train.budget
    with faults:
        # `fixed` without the values that every configuration has by default.
        silent = {"level": fixed["level"], "variant": DOCUMENTED}
        space = load_space(
            family.name,
            search.space,
            axes=search.axes,
            fixed={key: value for key, value in fixed.items() if silent.get(key) != value},
            sweep=search.sweep,
            has_budget=search.params is not None,
        )
        check_learning_rates(space.whole)
        check_turns(search, len(space.branches))
        check_optimizer(search, len(space.branches))
        check_mode(search)
        builders = [CandidateBuilder(branch, settings, executor) for branch in space.branches]
    faults.raise_any()
    resources = attempt_resources(settings, executor, {})
    if executor == "slurm":
        check_resources(resources)
    check_space(space.whole, settings, executor)
    effects = audit_space(space.whole, search.multiple_of)
    refuse_dead_axes(effects)
    for branch in space.branches if space.sweep else ():
        # An axis may be alive at one swept value, and dead at another.
        refuse_dead_axes(audit_space(branch, search.multiple_of))
    start, source = _start(space, settings)
    # A generation of each branch is asked as the search will, so that an empty space is found here.
    asked = [
        ask_candidates(
            start_optimizer(search.optimizer, problem_of(space, search, start, branch)).ask,
            builder,
            search.population,
        )
        for branch, builder in enumerate(builders)
    ]
    first = [candidate for candidates, _ in asked for candidate in candidates]
    refused = sum(count for _, count in asked)
    if not first:
        raise InvalidConfiguration(
            f"none of the first {refused} points can be built",
            hint="widen `--tolerance`, or change the axes, `--params` or `--seed`",
        )
    corpus = find_corpus(settings)
    if corpus.size_bytes <= train.seq_len:
        raise ConfigError(
            f"a corpus of {corpus.size_bytes} bytes is shorter than one window of "
            f"{train.seq_len + 1}",
            hint="use a larger corpus or a smaller `train.seq_len`",
        )
    check_holdout(corpus, train)
    if executor == "local":
        check_gpus(settings.local.gpus, train.device, os.environ, ranks=train.gpus)
        check_trainable(settings)
    models = [decode_config(family.name, candidate.config) for candidate in first]
    if train.budget.kind == "flops":
        for model_config in models:
            model_config.layer_flops(train.seq_len)
    return SearchPlan(
        name=name,
        folder=folder,
        executor=executor,
        settings=settings,
        space=space,
        start=start,
        start_source=source,
        start_fault=None
        if source == FILLED
        else next(filter(None, (_fault_at(builder, start) for builder in builders)), None),
        effects=effects,
        refused_share=refused / (refused + len(first)),
        mixed_backends=mixed_backends(settings, models),
        corpus=corpus,
        unigram_nats=unigram_entropy(corpus.path),
        resources=resources,
        largest_parameters=max(candidate.parameters for candidate in first),
    )


def find_corpus(settings: Settings) -> CorpusInfo:
    """Return the user's corpus or the built-in one, packed on first use."""
    if settings.data.path is None:
        return describe(standard_library_corpus())
    return describe(as_written(Path(settings.data.path)))


def check_holdout(corpus: CorpusInfo, train: Training) -> None:
    """Raise ConfigError for a corpus that is too small for the share that is held out."""
    # numpy is slow to import.
    from elmanctl.run.split import check_split, find_split

    check_split(find_split(corpus, train.holdout), train.holdout)


def check_trainable(settings: Settings) -> None:
    """Raise EnvironmentNotReady if this machine lacks a device, a package or the backend."""
    train, local = settings.train, settings.local
    check_gpus((), train.device, os.environ, ranks=1 if local.gpus else train.gpus)
    missing = [name for name in ("torch", "schedulefree") if not importlib.util.find_spec(name)]
    if missing:
        raise EnvironmentNotReady(
            f"`{missing[0]}` is not installed here, and training needs it", hint=INSTALL_TRAIN
        )
    for name in settings.metrics.asked:
        package, hint = _PACKAGES_OF_METRICS[name]
        if not importlib.util.find_spec(package):
            raise EnvironmentNotReady(
                f"`{package}` is not installed here, and `metrics.{name}` needs it", hint=hint
            )
    if settings.train.backend != AUTO:
        backend = BACKENDS[settings.train.backend]
        fault = unavailable_on_all_devices(backend)
        if fault:
            raise EnvironmentNotReady(
                f"backend `{backend.name}` cannot run here: {fault}", hint=backend.fix
            )


def _fault_at(builder: CandidateBuilder, point: tuple[float, ...]) -> str | None:
    """Return why a point cannot be trained, None if it can."""
    try:
        builder.build(point)
    except InvalidConfiguration as exc:
        return exc.message
    return None


def _start(space: SearchSpace, settings: Settings) -> tuple[tuple[float, ...], str]:
    """Return the start point of the optimizer and where it comes from."""
    search = settings.search
    if not has_start(search.optimizer):
        if search.start_from_best:
            raise ConfigError(
                f"the optimizer `{search.optimizer}` begins with points that fill the space",
                hint="leave out `--start-from-best`, or choose another `--optimizer`",
            )
        return space.middle, FILLED
    if not search.start_from_best:
        is_study = search.optimizer == STUDY
        return space.centre if is_study else space.middle, "the middle of the space"
    missing = [axis.name for axis in space.axes if axis.name not in space.best]
    if missing or space.best_source is None:
        raise ConfigError(
            f"space `{space.name}` has no known best value of `{missing[0] if missing else '?'}`",
            hint="leave out `--start-from-best`",
        )
    return space.point(space.best), space.best_source


def _run_folder(runs: Path, name: str) -> Path:
    """Return the folder of a new run; raise UsageError or EnvironmentNotReady if it cannot be."""
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
    parent, fault = nearest_existing(folder.parent), None
    if not parent.is_dir():
        fault = f"{parent} is a file"
    elif not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        fault = f"{parent} cannot be written by you"
    if fault:
        raise EnvironmentNotReady(
            f"runs cannot be kept in {folder.parent}: {fault}", hint="change `paths.runs`"
        )
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
