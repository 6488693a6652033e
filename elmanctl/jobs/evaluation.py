"""Worker: runs one attempt from its folder and leaves a result there, whatever happens.

submitit pickles `EvaluateAttempt` by reference, with nothing but the attempt's folder.  torch is
imported late, so that the controller can pickle it without torch, and so that a machine without
torch is recorded as such.
"""

import logging
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from elmanctl.jobs.claim import Worker, successor, take_claim, this_worker
from elmanctl.jobs.company import Company, first_place, gathered
from elmanctl.jobs.early_stop import EarlyStop
from elmanctl.jobs.heartbeat import Heartbeat
from elmanctl.jobs.metrics import MetricsLog, StepRecord
from elmanctl.jobs.metrics_feed import MetricsFeed, open_feed
from elmanctl.jobs.other_rank import train_along
from elmanctl.jobs.place import Place, task_place
from elmanctl.jobs.rank_end import RankFailed, RankLost, failure_of
from elmanctl.jobs.signals import Warned, signals_noted
from elmanctl.ledger.files import encode_json, write_json
from elmanctl.ledger.records import Evidence, EvidenceSource, Verdict
from elmanctl.ledger.reserve import full_disk, hold, write_over
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0

_IDENTITY = ("evaluation", "attempt", "parameters_expected")


# Pickles of running searches name `elmanctl.jobs.evaluation.EvaluateAttempt`, and load it from the
# frozen code of their run: this module and its functions must keep their names.
@dataclass(frozen=True, slots=True)
class EvaluateAttempt:
    """Calls `evaluate_attempt` on one folder."""

    folder: str

    def __call__(self) -> dict[str, Any]:
        """Run the attempt and return its result."""
        return evaluate_attempt(self.folder)


def evaluate_attempt(folder: str, *, is_again: bool = False) -> dict[str, Any]:
    """Train the model of `folder`/spec.json and write `folder`/result.json.

    Returns the result; {"duplicate": true} when another job holds the attempt, and
    {"already_finished": true} when there is a result, in both cases without training.  An
    exception is written into the result as a verdict and raised again; a KeyboardInterrupt leaves
    no result.  Of several ranks the first does so for all; the others return {"rank": N}.  With
    `is_again` the process that holds the attempt is known to be dead, and this one goes on in its
    place.
    """
    paths = AttemptPaths(Path(folder))
    with _plain_log():
        place = task_place()
        if place is not None and place.rank:
            return train_along(paths, this_worker(), place)
        if paths.result.exists():
            logger.info("%s has a result, nothing to do", folder)
            return {"already_finished": True}
        worker = this_worker()
        if is_again:
            worker = successor(paths.claim, worker)
        try:
            claim = take_claim(paths.claim, worker)
        except OSError as exc:
            if full_disk(exc) is None or paths.claim.exists():
                raise
            # No other job holds the attempt: the reserve that the controller left is ours.
            _Evaluation(paths, worker).leave_failure(exc)
            raise
        if not claim.is_ours:
            logger.info("%s is held by another job, nothing to do: %s", folder, claim.earlier)
            return {"duplicate": True}
        _hold_reserve(paths)
        if claim.earlier is not None and paths.metrics.exists():
            paths.metrics.replace(paths.earlier_metrics(claim.earlier["restart"]))
        return _Evaluation(paths, worker, is_restart=claim.earlier is not None).run()


class _Training(Protocol):
    """The part of `AttemptTraining` that is used here: its module needs torch."""

    def record(self) -> dict[str, Any]:
        """Return the entries of the result about memory and checkpoints."""

    def discard(self) -> None:
        """Remove the checkpoints that nothing needs."""


class _Evaluation:
    """A running attempt."""

    def __init__(self, paths: AttemptPaths, worker: Worker, *, is_restart: bool = False) -> None:
        self._paths = paths
        self._worker = worker
        self._is_restart = is_restart
        self._progress: _Progress | None = None
        self._spec: AttemptSpec | None = None
        self._training: _Training | None = None
        self._feed: MetricsFeed | None = None
        self._place = Place()

    def run(self) -> dict[str, Any]:
        """Run the attempt; leave a result, even after an exception."""
        try:
            self._spec = AttemptSpec.read(self._paths.spec)
            return self._run(self._spec)
        except (Exception, SystemExit) as exc:
            self.leave_failure(exc)
            raise
        finally:
            if self._feed is not None:
                self._feed.close()

    def leave_failure(self, exc: Exception | SystemExit) -> None:
        """Write the result of an attempt that an exception ended, here or on another rank.

        There is none when another rank was lost: the scheduler may know why.
        """
        if isinstance(exc, RankLost):
            return
        failed: dict[str, Any] = {}
        if isinstance(exc, RankFailed):
            failure, failed = exc.failure, {"failed_rank": exc.end.rank, "failed_on": exc.end.node}
        else:
            failure = failure_of(exc, self._paths.run_folder, self._place)
        evidence = Evidence(
            source=EvidenceSource.RESULT, text=failure.text, file=failure.file, line=failure.line
        )
        partial = {} if self._progress is None else self._progress.partial_result()
        header = self._header(Verdict(kind=failure.kind, evidence=(evidence,)))
        self._leave(header | partial | failed)

    def _run(self, spec: AttemptSpec) -> dict[str, Any]:
        self._feed = open_feed(self._paths, spec)
        heartbeat = Heartbeat(
            self._paths.heartbeat,
            interval_s=spec.training.heartbeat_s,
            job_id=self._worker.job_id,
            restart=self._worker.restart,
        )
        before_end = None if self._feed is None else self._feed.end_soon
        with heartbeat, signals_noted(heartbeat, before_end) as warned:
            with self._together(spec, heartbeat) as company:
                with MetricsLog(self._paths.metrics) as metrics:
                    self._progress = _Progress(heartbeat, metrics, self._feed)
                    result = self._train(spec, self._progress, warned, company)
                heartbeat.enter_phase("finishing")
                self._leave(result)
                if self._training is not None:
                    self._training.discard()
            heartbeat.enter_phase("done")
        logger.info("%s: %s", result["verdict"]["kind"], result["verdict"]["evidence"][0]["text"])
        return result

    @contextmanager
    def _together(self, spec: AttemptSpec, heartbeat: Heartbeat) -> Iterator[Company | None]:
        """Be with the other ranks of the training, if it has others."""
        if spec.training.ranks == 1:
            yield None
            return

        def give_up(exc: RankFailed | RankLost) -> None:
            _note_lost(exc, heartbeat)
            self.leave_failure(exc)
            os.write(2, f"{exc}\nrank 0 hangs without it, and is ended\n".encode())
            os._exit(1)

        self._place = first_place(spec.training)
        together = gathered(
            self._paths,
            self._worker,
            spec.training,
            is_restart=self._is_restart,
            give_up=give_up,
        )
        try:
            with together as company:
                yield company
        except (RankFailed, RankLost) as exc:
            _note_lost(exc, heartbeat)
            raise

    def _leave(self, result: dict[str, Any]) -> None:
        """Write the result, and then the empty file that announces it to the controller."""
        self._write(result)
        marker = self._paths.finished_marker
        # A foreground evaluation lies in no run, and no controller looks for it.
        if self._paths.is_in_run and marker.parent.is_dir():
            try:
                marker.touch()
            except OSError as exc:
                # Without it the controller finds the result later, when the job has ended.
                logger.warning("%s was not written: %s", marker, exc)

    def _write(self, result: dict[str, Any]) -> None:
        """Write the result, on a full disk over the blocks reserved for it."""
        try:
            write_json(self._paths.result, result)
        except OSError as exc:
            if full_disk(exc) is None:
                raise
            logger.warning("the disk is full, the result is written over its reserve: %s", exc)
            write_over(self._paths.reserve, self._paths.result, encode_json(result))
        self._paths.reserve.unlink(missing_ok=True)

    def _train(
        self,
        spec: AttemptSpec,
        progress: "_Progress",
        warned: Warned,
        company: Company | None,
    ) -> dict[str, Any]:
        from elmanctl.jobs.attempt_training import AttemptTraining

        early_stop = None
        if spec.stoppable:
            early_stop = EarlyStop(
                self._paths.stop,
                interval_s=spec.training.heartbeat_s,
                note=progress.curve,
            )
        training = self._training = AttemptTraining(
            self._paths,
            spec,
            is_restart=self._is_restart,
            warned=warned,
            note=progress.checkpoint,
            ranks=None if company is None else company.ranks,
            early_stop=early_stop,
        )
        verdict, entries = training.run(progress)
        if company is not None:
            company.training_is_done()
        return self._header(verdict) | entries

    def _header(self, verdict: Verdict) -> dict[str, Any]:
        evidence = [asdict(observation) for observation in verdict.evidence]
        spec = self._spec
        return {
            "version": 1,
            "verdict": {"kind": verdict.kind, "evidence": evidence},
            "job_id": self._worker.job_id,
            "restart": self._worker.restart,
            "host": self._worker.host,
            # Nothing says which attempt it is where its spec cannot be read.
            **({} if spec is None else {name: getattr(spec, name) for name in _IDENTITY}),
            "host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            **(self._training.record() if self._training is not None else {}),
        }


def _note_lost(exc: RankFailed | RankLost, heartbeat: Heartbeat) -> None:
    """Note in the heartbeat which rank ended without a word, as there will be no result."""
    if isinstance(exc, RankLost):
        end = exc.end
        heartbeat.note_lost_rank(rank=end.rank, count=end.count, node=end.node, how=end.how)


def _hold_reserve(paths: AttemptPaths) -> None:
    """Reserve blocks for the result, unless the controller has done so."""
    try:
        hold(paths.reserve)
    except FileExistsError:
        return
    except OSError as exc:
        # The disk is full: the next write fails, or there is room again by then.
        logger.warning("no blocks are reserved for the result: %s", exc)


class _Progress:
    """Reports each step to the metrics file, heartbeat and feed, and now and then to the log."""

    def __init__(self, heartbeat: Heartbeat, metrics: MetricsLog, feed: MetricsFeed | None) -> None:
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._feed = feed
        self._last = StepRecord(step=0, loss=math.nan, grad_norm=math.nan, tokens=0, elapsed_s=0.0)
        self._logged_at = float("-inf")

    def phase(self, name: str) -> None:
        """Report the start of the warm-up or of the training proper."""
        self._heartbeat.enter_phase(name)
        logger.info("%s", name)

    def step(self, record: StepRecord) -> None:
        """Report a step; raises OSError when nothing can be written any more."""
        self._metrics.append(record)
        self._heartbeat.progress(step=record.step, loss=record.finite_loss, tokens=record.tokens)
        self._heartbeat.check()
        if self._feed is not None:
            self._feed.step(record)
        self._last = record
        if time.monotonic() - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = time.monotonic()
            logger.info(
                "step %d loss %.4f grad %.4f bytes %d after %.1f s",
                record.step,
                record.loss,
                record.grad_norm,
                record.tokens,
                record.elapsed_s,
            )

    def validation(self, step: int, loss: float) -> None:
        """Report the held-out loss after a step."""
        logger.info("validation after step %d: held-out loss %.4f", step, loss)
        self._heartbeat.note_validation(step, loss)
        if self._feed is not None:
            self._feed.validation(step, loss)

    def curve(self, losses: tuple[float | None, ...]) -> None:
        """Report the training losses at the looks so far."""
        self._heartbeat.note_curve(losses)

    def checkpoint(self, step: int, error: str | None) -> None:
        """Report a checkpoint, or why it was not written."""
        self._heartbeat.note_checkpoint(step, error)

    def partial_result(self) -> dict[str, Any]:
        """Return the progress of a training that an exception ended."""
        last = self._last
        return {
            "steps": last.step,
            "tokens": last.tokens,
            "last_loss": last.finite_loss,
            "elapsed_s": last.elapsed_s,
        }


@contextmanager
def _plain_log() -> Iterator[None]:
    """Send the log of a worker to stderr, unless logging is configured."""
    package = logging.getLogger("elmanctl")
    if package.hasHandlers():
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)
