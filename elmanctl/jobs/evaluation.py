"""The worker: runs one attempt from its folder and leaves a result there, whatever happens.

This is what submitit pickles, by reference; it holds nothing but the attempt's folder.  torch is
imported late, so that the controller can pickle it without torch, and so that a machine without
torch is recorded as such.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from elmanctl.jobs.claim import Worker, take_claim, this_worker
from elmanctl.jobs.corpus import CorpusInfo, verify
from elmanctl.jobs.failure import classify_exception, frame_of
from elmanctl.jobs.heartbeat import Heartbeat
from elmanctl.jobs.metrics import MetricsLog, StepRecord
from elmanctl.jobs.paths import AttemptPaths
from elmanctl.jobs.signals import signals_noted
from elmanctl.jobs.spec import AttemptSpec
from elmanctl.ledger.files import write_json
from elmanctl.ledger.records import Evidence, EvidenceSource, Verdict

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class EvaluateAttempt:
    """Calls `evaluate_attempt` on one folder."""

    folder: str

    def __call__(self) -> dict[str, Any]:
        """Run the attempt and return its result."""
        return evaluate_attempt(self.folder)


def evaluate_attempt(folder: str) -> dict[str, Any]:
    """Train the model that `folder`/spec.json asks for and write `folder`/result.json.

    Returns the result; {"duplicate": true} when another job holds the attempt, and
    {"already_finished": true} when there is a result, in both cases without training.  An
    exception is written into the result as a verdict and raised again; an interruption from the
    keyboard leaves no result.
    """
    paths = AttemptPaths(Path(folder))
    with _plain_log():
        if paths.result.exists():
            logger.info("%s has a result, nothing to do", folder)
            return {"already_finished": True}
        worker = this_worker()
        claim = take_claim(paths.claim, worker)
        if not claim.is_ours:
            logger.info("%s is held by another job, nothing to do: %s", folder, claim.earlier)
            return {"duplicate": True}
        if claim.earlier is not None and paths.metrics.exists():
            paths.metrics.replace(paths.earlier_metrics(claim.earlier["restart"]))
        return _Evaluation(paths, worker).run()


class _Evaluation:
    """One attempt under way."""

    def __init__(self, paths: AttemptPaths, worker: Worker) -> None:
        self._paths = paths
        self._worker = worker
        self._progress: _Progress | None = None

    def run(self) -> dict[str, Any]:
        """Run the attempt; leave a result, also of an exception."""
        try:
            return self._run(AttemptSpec.read(self._paths.spec))
        except Exception as exc:
            kind, text = classify_exception(exc)
            file, line = frame_of(exc, self._paths.run_folder) or (None, None)
            told = Evidence(source=EvidenceSource.RESULT, text=text, file=file, line=line)
            partial = {} if self._progress is None else self._progress.partial_result()
            record = self._header(Verdict(kind=kind, evidence=(told,))) | partial
            write_json(self._paths.result, record)
            raise

    def _run(self, spec: AttemptSpec) -> dict[str, Any]:
        heartbeat = Heartbeat(
            self._paths.heartbeat,
            interval_s=spec.heartbeat_s,
            job_id=self._worker.job_id,
            restart=self._worker.restart,
        )
        with heartbeat, signals_noted(heartbeat):
            with MetricsLog(self._paths.metrics) as metrics:
                self._progress = _Progress(heartbeat, metrics)
                result = self._train(spec, self._progress)
            heartbeat.enter_phase("finishing")
            write_json(self._paths.result, result)
            heartbeat.enter_phase("done")
        logger.info("%s: %s", result["verdict"]["kind"], result["verdict"]["evidence"][0]["text"])
        return result

    def _train(self, spec: AttemptSpec, progress: "_Progress") -> dict[str, Any]:
        from elmanctl.jobs.data import ByteStream
        from elmanctl.jobs.train import choose_device, train, versions
        from elmanctl.models.registry import build_model, decode_config

        path = Path(spec.data.path)
        compared_by = verify(
            CorpusInfo(path=path, size_bytes=spec.data.size_bytes, sha256=spec.data.sha256)
        )
        model = build_model(
            decode_config(spec.level, spec.config),
            seed=spec.seed,
            backend=spec.backend,
            device=choose_device(spec.device).type,
        )
        outcome = train(model, ByteStream(path), spec, progress)
        verdict = outcome.verdict(f"{self._paths.name_in_run}/{self._paths.metrics.name}")
        protocol = spec.protocol(outcome.precision)
        return {
            **self._header(verdict),
            **asdict(outcome),
            "seed": spec.seed,
            "lr": spec.lr,
            "protocol": protocol.encode(),
            "fingerprint": protocol.fingerprint,
            "corpus_compared_by": compared_by,
            "versions": versions(),
        }

    def _header(self, verdict: Verdict) -> dict[str, Any]:
        evidence = [asdict(observation) for observation in verdict.evidence]
        return {
            "version": 1,
            "verdict": {"kind": verdict.kind, "evidence": evidence},
            "job_id": self._worker.job_id,
            "restart": self._worker.restart,
            "host": self._worker.host,
        }


class _Progress:
    """Passes each step on to the metrics file, the heartbeat and, now and then, the log."""

    def __init__(self, heartbeat: Heartbeat, metrics: MetricsLog) -> None:
        self._heartbeat = heartbeat
        self._metrics = metrics
        self._last: StepRecord | None = None
        self._logged_at = float("-inf")

    def phase(self, name: str) -> None:
        """Learn that the warm-up or the training proper begins."""
        self._heartbeat.enter_phase(name)
        logger.info("%s", name)

    def step(self, record: StepRecord) -> None:
        """Learn of a step; raises OSError when nothing can be written any more."""
        self._metrics.append(record)
        self._heartbeat.progress(step=record.step, loss=record.finite_loss, tokens=record.tokens)
        self._heartbeat.check()
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

    def partial_result(self) -> dict[str, Any]:
        """Return how far a training that ended by an exception came."""
        last = self._last
        if last is None:
            return {"steps": 0, "tokens": 0, "last_loss": None, "elapsed_s": 0.0}
        return {
            "steps": last.step,
            "tokens": last.tokens,
            "last_loss": last.finite_loss,
            "elapsed_s": last.elapsed_s,
        }


@contextmanager
def _plain_log() -> Iterator[None]:
    """Let a worker's log reach stderr, where nobody has said where it should go."""
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
