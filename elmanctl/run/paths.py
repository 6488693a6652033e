"""Paths of all files of a run."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AttemptPaths:
    """The files of one attempt; all but `spec` are written by its worker alone."""

    folder: Path

    @property
    def spec(self) -> Path:
        """The evaluation that the worker has to run."""
        return self.folder / "spec.json"

    @property
    def claim(self) -> Path:
        """The job that holds this attempt."""
        return self.folder / "claim.json"

    @property
    def heartbeat(self) -> Path:
        """The heartbeat, rewritten every few seconds."""
        return self.folder / "heartbeat.json"

    @property
    def metrics(self) -> Path:
        """The metrics, one line per training step."""
        return self.folder / "metrics.jsonl"

    @property
    def result(self) -> Path:
        """The worker's result."""
        return self.folder / "result.json"

    @property
    def reserve(self) -> Path:
        """Blocks reserved for the result, in case the disk is full by then."""
        return self.folder / ".result.json.reserve.tmp"

    @property
    def checkpoint(self) -> Path:
        """The state of the training, for another attempt to resume from."""
        return self.folder / "checkpoint.pt"

    def earlier_metrics(self, restart: int) -> Path:
        """Return the path of the metrics of an earlier start of a requeued job."""
        return self.folder / f"metrics-restart-{restart}.jsonl"

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
class RunPaths:
    """The files and folders of one run."""

    folder: Path

    @property
    def ledger(self) -> Path:
        """The journal of everything that happened."""
        return self.folder / "ledger.jsonl"

    @property
    def code(self) -> Path:
        """The frozen code of the run."""
        return self.folder / "code"

    @property
    def optimizer(self) -> Path:
        """The states of the optimizer, one file per generation."""
        return self.folder / "optimizer"

    @property
    def submissions(self) -> Path:
        """The folders of all submissions."""
        return self.folder / "submissions"

    @property
    def requests(self) -> Path:
        """The requests of other commands to the controller."""
        return self.folder / "requests"

    @property
    def evaluations(self) -> Path:
        """The folders of all evaluations."""
        return self.folder / "evaluations"

    @property
    def finished(self) -> Path:
        """One empty file for each attempt whose worker has left a result."""
        return self.folder / "finished"

    @property
    def scheduler(self) -> Path:
        """The note of the last poll of the scheduler."""
        return self.folder / "scheduler.json"

    def submission(self, name: str) -> Path:
        """Return the folder of one submission: the scheduler's scripts, pickles and logs."""
        return self.submissions / name

    def evaluation(self, name: str) -> Path:
        """Return the folder of one evaluation."""
        return self.evaluations / name

    def attempt(self, evaluation: str, number: int) -> AttemptPaths:
        """Return the files of attempt `number`, counted from 1, of an evaluation."""
        return AttemptPaths(self.evaluation(evaluation) / f"attempt-{number}")
