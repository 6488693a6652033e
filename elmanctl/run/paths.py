"""Paths of all files of a run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class _Folder:
    folder: Path


class _Named:
    """The path of what has the same name in every folder of its kind."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: _Folder, kind: type) -> Path:
        return owner.folder / self._name


@dataclass(frozen=True, slots=True)
class AttemptPaths(_Folder):
    """The files of one attempt; all but `spec` and `stop` are written by its worker alone."""

    # The evaluation that the worker has to run.
    spec = _Named("spec.json")
    # The job that holds this attempt.
    claim = _Named("claim.json")
    # The address of rank 0, for the other processes that train the same model.
    rendezvous = _Named("rendezvous.json")
    # The heartbeat, rewritten every few seconds.
    heartbeat = _Named("heartbeat.json")
    # The metrics, one line per training step.
    metrics = _Named("metrics.jsonl")
    # The controller's request to end the training before its budget is spent.
    stop = _Named("stop.json")
    # The worker's result.
    result = _Named("result.json")
    # Blocks reserved for the result, in case the disk is full by then.
    reserve = _Named(".result.json.reserve.tmp")
    # The state of the training, for another attempt to resume from.
    checkpoint = _Named("checkpoint.safetensors")
    # The averaged weights, where the run keeps its models.
    model = _Named("model.safetensors")
    # The folder that W&B's library writes to.
    wandb = _Named("wandb")

    def earlier_metrics(self, restart: int) -> Path:
        """Return the path of the metrics of an earlier start of a requeued job."""
        return self.folder / f"metrics-restart-{restart}.jsonl"

    @property
    def is_in_run(self) -> bool:
        """Whether the folder lies where those of a run do; a foreground evaluation's does not."""
        return self.folder.parent.parent.name == "evaluations"

    @property
    def run_folder(self) -> Path:
        """The folder of the run that the attempt belongs to; in the foreground, any above it."""
        return (self.folder.parents[2:3] or self.folder.parents[-1:])[0]

    @property
    def finished_marker(self) -> Path:
        """The file that announces this attempt's result to the controller."""
        number = self.folder.name.removeprefix("attempt-")
        return RunPaths(self.run_folder).finished / f"{self.folder.parent.name}-{number}"

    @property
    def name_in_run(self) -> str:
        """The attempt's folder relative to the run folder, as evidence names files."""
        return "/".join(self.folder.parts[-3:])


@dataclass(frozen=True, slots=True)
class RunPaths(_Folder):
    """The files and folders of one run."""

    # The journal of everything that happened.
    ledger = _Named("ledger.jsonl")
    # The frozen code of the run.
    code = _Named("code")
    # The states of the optimizer that earlier versions saved.
    optimizer = _Named("optimizer")
    # The folders of all submissions.
    submissions = _Named("submissions")
    # The requests of other commands to the controller.
    requests = _Named("requests")
    # The folders of all evaluations.
    evaluations = _Named("evaluations")
    # One empty file for each attempt whose worker has left a result.
    finished = _Named("finished")
    # The documents that are held out of training.
    split = _Named("split.npz")
    # The note of the last poll of the scheduler.
    scheduler = _Named("scheduler.json")

    def submission(self, name: str) -> Path:
        """Return the folder of one submission: the scheduler's scripts, pickles and logs."""
        return self.submissions / name

    def evaluation(self, name: str) -> Path:
        """Return the folder of one evaluation."""
        return self.evaluations / name

    def attempt(self, evaluation: str, number: int) -> AttemptPaths:
        """Return the files of attempt `number`, counted from 1, of an evaluation."""
        return AttemptPaths(self.evaluation(evaluation) / f"attempt-{number}")
