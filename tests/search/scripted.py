"""Searches without processes: a scheduler in memory at the executor's border.

`World` is what outlives a controller: the jobs, and the files that their workers wrote.  The loop,
the ledger, the optimizer and the files of a run are real.
"""

import copy
import hashlib
import json
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import ElmanError, EnvironmentNotReady, LedgerError
from elmanctl.ledger.files import write_json
from elmanctl.ledger.payloads import ConfirmationAsked, RunPaused
from elmanctl.ledger.records import Evaluation, Verdict
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.run.training import Training
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob, PollResult
from elmanctl.search import plan as planning
from elmanctl.search.loop import Controller
from elmanctl.search.plan import plan_search
from elmanctl.search.poll import QueryPace
from elmanctl.search.run_creation import create_run
from elmanctl.search.session import Session
from elmanctl.settings import (
    BudgetSettings,
    DataSettings,
    DiskSettings,
    RetrySettings,
    SearchSettings,
    Settings,
    SlurmSettings,
)

# Two axes, and models that need no solving: what a search does beside training takes no time.
AXES = {
    "n_heads": {"kind": "int", "low": 1, "high": 16},
    "lr": {"kind": "log", "low": 1e-4, "high": 1e-1},
}
MODEL = {"dim": 32, "depth": 1, "n_state": 8}

# Endings of which no result is left, by the scheduler's word for them.
WORDS = {
    "node_failure": JobReport(state=JobState.ENDED, raw="NODE_FAIL", node="n1"),
    "timeout": JobReport(state=JobState.ENDED, raw="TIMEOUT", node="n1"),
    "killed": JobReport(state=JobState.ENDED, raw="ended", exit_code=137, signal=9, node="n1"),
    "cancelled": JobReport(state=JobState.ENDED, raw="CANCELLED by 1000", node="n1"),
    "lost": JobReport(state=JobState.VANISHED),
}

# What a worker says besides the kind of its verdict.
TEXTS = {
    "oom gpu": "OutOfMemoryError: CUDA out of memory.",
    "oom neighbour": (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
        "capacity of 10.00 GiB of which 1.00 GiB is free. Process 77 has 5.00 GiB memory in use."
    ),
    "cuda_error device": "CUDA error: uncorrectable ECC error encountered",
    "environment outage": "srun: Unable to contact slurm controller",
}


def loss_of(config: Mapping[str, Any], lr: float) -> float:
    """A bowl over both axes, lowest at 5 heads and a learning rate of 0.01."""
    distance = (config["n_heads"] - 5) / 8, (lr / 1e-2) ** 0.25 - 1
    return 2.0 + distance[0] ** 2 + distance[1] ** 2


class World:
    """Jobs and workers.

    `script` names, for an evaluation, the verdict of one attempt after the other; what it does
    not name completes.  A job that is `held` runs until it is released or cancelled.  `nodes`
    names where the attempts of an evaluation run, one after the other, if not on n1.  `told` is
    what every worker's result says besides.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = RunPaths(folder)
        self.script: dict[str, Sequence[str]] = {}
        self.everywhere: str | None = None
        self.nodes: dict[str, Sequence[str]] = {}
        self.told: dict[str, Any] = {}
        self.held: set[str] = set()
        self.jobs: dict[str, str] = {}
        self.tasks: dict[str, tuple[str, int]] = {}
        self.running: set[str] = set()
        self.ended: dict[str, JobReport] = {}
        self.trained: Counter[tuple[str, int]] = Counter()
        self.cancelled: list[str] = []
        self.ending: Counter[str] = Counter()
        self.silent = False
        self.ignores_scancel = False
        self.avoided: dict[str, tuple[str, ...]] = {}

    def accept(self, submission: Submission) -> str:
        """Take a submission, as the scheduler does before its answer is on its way."""
        job_id = str(100 + len(self.jobs))
        self.jobs[submission.job_name] = job_id
        for task in submission.tasks:
            self.tasks[f"{job_id}_{task.index}"] = (task.evaluation, task.attempt)
        return job_id

    def report(self, job_id: str) -> JobReport:
        """Let a job take its next step and tell where it stands."""
        if job_id in self.ended:
            return self.ended[job_id]
        evaluation, attempt = self.tasks[job_id]
        if job_id in self.cancelled:
            # A job takes its time to end.
            self.ending[job_id] += 1
            if self.ending[job_id] > 2:
                self.ended[job_id] = JobReport(state=JobState.ENDED, raw="CANCELLED by 0")
        elif job_id not in self.running:
            self.running.add(job_id)
        elif evaluation not in self.held:
            self.end(job_id, self._verdict(evaluation, attempt))
        return JobReport(state=JobState.RUNNING, raw="RUNNING", node=self.node(job_id))

    def node(self, job_id: str) -> str:
        """Return where a job runs."""
        evaluation, attempt = self.tasks[job_id]
        named = self.nodes.get(evaluation, ())
        return named[attempt - 1] if attempt <= len(named) else "n1"

    def _verdict(self, evaluation: str, attempt: int) -> str:
        tried = self.script.get(evaluation, ())
        return tried[attempt - 1] if attempt <= len(tried) else self.everywhere or "completed"

    def end(self, job_id: str, verdict: str) -> None:
        """End a job; its worker leaves a result unless the scheduler ended it."""
        evaluation, attempt = self.tasks[job_id]
        paths = self.paths.attempt(evaluation, attempt)
        report = WORDS.get(verdict, JobReport(state=JobState.ENDED, raw="COMPLETED", exit_code=0))
        self.ended[job_id] = replace(report, node=self.node(job_id))
        if verdict not in WORDS and not paths.result.exists():
            self.trained[evaluation, attempt] += 1
            write_result(paths, verdict)
            if self.told:
                result = json.loads(paths.result.read_text(encoding="utf-8"))
                write_json(paths.result, {**result, **self.told})


def verdicts(state: RunState, evaluation: str) -> list[str]:
    """Return the verdicts of an evaluation's attempts."""
    attempts = state.evaluations[evaluation].attempts
    return [attempt.verdict.kind.value for attempt in attempts if attempt.verdict is not None]


def write_result(paths: AttemptPaths, verdict: str) -> None:
    """Write what a worker writes."""
    spec = json.loads(paths.spec.read_text(encoding="utf-8"))
    completed = verdict == "completed"
    loss = loss_of(spec["config"], spec["lr"]) if completed else None
    kept = {}
    if loss is not None and "keep" in spec and loss < spec.get("keep_below", math.inf):
        kept["model_size_bytes"] = paths.model.write_bytes(b"w" * 4 * spec["parameters_expected"])
    evidence = {"source": "result", "text": TEXTS.get(verdict, f"the worker says {verdict}")}
    write_json(
        paths.result,
        {
            "version": 1,
            "verdict": {"kind": verdict.partition(" ")[0], "evidence": [evidence]},
            "loss": loss,
            "steps": 10 if completed else int(1000 * spec["lr"]),
            # As of a training that ended within its warm-up.
            "tokens_per_s": None,
            **kept,
            **{key: spec[key] for key in ("evaluation", "attempt", "parameters_expected")},
        },
    )
    if paths.finished_marker.parent.is_dir():
        paths.finished_marker.touch()


class ScriptedExecutor:
    """A controller's way to the world; it dies with its controller."""

    name = "scripted"
    has_arrays = True
    tasks_per_submission: int | None = None

    def __init__(self, world: World, slots: int = 64) -> None:
        self.world = world
        self.slots = slots
        self.submitted: list[Submission] = []
        self.refusals: list[Exception] = []
        self.accepts_before_refusal = False

    def adjust(self, settings: Settings, avoided: Collection[str]) -> None:
        """Its slots are those of the test."""

    def free_slots(self, busy: Iterable[Task]) -> Sequence[int | None]:
        return [None] * max(0, self.slots - len(list(busy)))

    def gpus_of(self, slot: int | None) -> tuple[int | str, ...]:
        return ()

    def submit(self, submission: Submission, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        if self.refusals:
            if self.accepts_before_refusal:
                self.world.accept(submission)
            raise self.refusals.pop(0)
        self.submitted.append(submission)
        return self.world.accept(submission)

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        if self.world.silent:
            raise EnvironmentNotReady("`squeue` did not answer")
        return PollResult(
            reports={job.job_id: self.world.report(job.job_id) for job in jobs},
            found={one.id: self.world.jobs.get(one.job_name) for one in intended},
        )

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        if self.world.silent:
            raise EnvironmentNotReady("`scancel` did not answer")
        if not self.world.ignores_scancel:
            self.world.cancelled += [job.job_id for job in jobs]

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        if self.world.silent:
            raise EnvironmentNotReady("`scontrol` did not answer")
        self.world.avoided |= {job.job_id: resources.exclude for job in jobs}

    def log(self, job: LiveJob) -> Path:
        return self.world.paths.submission(job.submission) / f"{job.job_id}_0_log.out"

    def check(self, *, asks: bool = True) -> None:
        """Always ready."""


class Onlooker:
    """A view that remembers, and does what a test wants done in the middle of a search."""

    def __init__(self) -> None:
        self.verdicts: list[tuple[str, str]] = []
        self.generations: list[int] = []
        self.confirmations: list[list[str]] = []
        self.troubles: list[str | None] = []
        self.every_turn: Callable[[Session], None] = lambda session: None

    def refresh(self, session: Session, trouble: str | None) -> None:
        self.troubles.append(trouble)
        self.every_turn(session)

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        self.verdicts.append((evaluation.id, verdict.kind.value))

    def generation_done(self, session: Session, generation: int) -> None:
        self.generations.append(generation)

    def confirmation_asked(self, asked: ConfirmationAsked) -> None:
        self.confirmations.append([plan.id for plan in asked.evaluations])


class Run:
    """One run and its world."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = RunPaths(folder)
        self.world = World(folder)
        self.view = Onlooker()
        self.stop = threading.Event()

    def drive(
        self,
        *,
        generations: int | None = None,
        executor: ScriptedExecutor | None = None,
        confirms_now: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> RunState:
        """Start a controller of its own and drive the run until it ends."""
        with Session.open(self.folder) as session:
            if generations is not None:
                session.extend(generations)
            session.start_controller()
            used = executor or ScriptedExecutor(self.world)
            controller = Controller(
                session,
                used,
                self.view,
                pace=QueryPace(0.0, now=now),
                tick_s=0.0,
                stop=self.stop,
                confirms_now=confirms_now,
                now=now,
            )
            try:
                controller.drive()
            except LedgerError:
                raise
            except ElmanError as exc:
                session.record(RunPaused(reason=exc.message))
                raise
            return session.state

    def leave_files(self, state: RunState) -> None:
        """Write what workers leave beside their results."""
        for evaluation in state.evaluations.values():
            for attempt in evaluation.attempts:
                paths = self.paths.attempt(evaluation.id, attempt.number)
                paths.metrics.write_text("{}\n" * 5000, encoding="utf-8")
                folder = self.paths.submission(attempt.submission)
                log = folder / f"{attempt.job_id}_0_log.out"
                log.write_text("".join(f"step {i}\n" for i in range(5000)), encoding="utf-8")
                (folder / f"task-{attempt.task_index}.pkl").write_text("pickle", encoding="utf-8")

    def killed_at(self, seq: int, folder: Path) -> "Run":
        """Drive until the ledger has `seq` events; return a copy as the kill left it."""

        def die(session: Session) -> None:
            if session.state.seq >= seq:
                raise KeyboardInterrupt

        self.view.every_turn = die
        with suppress(KeyboardInterrupt):
            self.drive()
        return self.copy(folder)

    def copy(self, folder: Path) -> "Run":
        """Return what a kill at this very moment would leave: files and world, no controller."""
        left_out = shutil.ignore_patterns("lease*", ".*")
        shutil.copytree(self.folder, folder, ignore=left_out, symlinks=True)
        other = Run(folder)
        other.world = copy.deepcopy(self.world)
        other.world.paths = other.paths
        return other


class Runs:
    """Makes new runs; the ledger of each kind of search is made once and copied."""

    def __init__(self, folder: Path, corpus: Path, templates: Path) -> None:
        self._folder = folder
        self._corpus = corpus
        self._templates = templates
        self._made = 0

    def new(self, name: str | None = None, **changes: Any) -> Run:
        """Return a new run; `changes` are settings of `[search]`, or of the tables named below.

        Those are `retry`, `train`, `budget`, `stopping`, `slurm` and `model`; with `slurm` it runs
        on Slurm.  Nothing is confirmed unless they say so.
        """
        executor = "slurm" if "slurm" in changes else "local"
        settings = self._settings(dict(changes))
        digest = hashlib.sha256(repr((executor, settings)).encode()).hexdigest()[:12]
        known = self._templates / (name or digest)
        if not known.exists():
            with pytest.MonkeyPatch.context() as patch:
                # Nothing trains in a scripted run, so no torch need be there.
                patch.setattr(planning, "check_trainable", lambda settings: None)
                plan = plan_search(
                    "e88", settings, executor=executor, name=known.name, runs=known.parent
                )
            create_run(plan)
        self._made += 1
        folder = self._folder / (name or f"run-{self._made}")
        folder.mkdir(parents=True)
        shutil.copyfile(RunPaths(known).ledger, RunPaths(folder).ledger)
        RunPaths(folder).code.symlink_to(RunPaths(known).code)
        return Run(folder)

    def _settings(self, changes: dict[str, Any]) -> Settings:
        retry = RetrySettings(**changes.pop("retry", {}))
        budget = BudgetSettings(**changes.pop("budget", {}))
        slurm = SlurmSettings(**changes.pop("slurm", {}))
        disk = DiskSettings(**changes.pop("disk", {}))
        stopping = StoppingSettings(**changes.pop("stopping", {}))
        model = changes.pop("model", MODEL)
        train: dict[str, Any] = {"steps": 10, "batch": 2, "seq_len": 16, "heartbeat_s": 0.01}
        train |= changes.pop("train", {})
        search = {"space": "tiny", "axes": AXES, "generations": 2, "population": 4, "seed": 3}
        # Most tests count the evaluations of the search alone.
        search["confirm_top"] = 0
        # A constant takes its axis out of the shipped space.
        return Settings(
            model=model,
            search=SearchSettings(**{**search, **changes}),
            train=Training(**train),
            data=DataSettings(path=str(self._corpus)),
            retry=retry,
            budget=budget,
            slurm=slurm,
            disk=disk,
            stopping=stopping,
        )
