"""Single attempts on a real cluster, each under a spec and resources of its own."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elmanctl.clock import now, to_text
from elmanctl.ledger.files import write_json
from elmanctl.ledger.records import Verdict
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.models.params import count_parameters
from elmanctl.run.frozen_code import freeze_code
from elmanctl.run.paths import RunPaths
from elmanctl.run.spec import DataSpec
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import observe
from tests.integration.runs import wait_for
from tests.patience import PATIENCE_S
from tests.specs import changed, spec_of


class Job:
    """One attempt, submitted by hand under a spec and resources of its own, and perhaps again."""

    def __init__(
        self,
        folder: Path,
        corpus: Path,
        *,
        spec: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        mem_gb: float = 1.0,
        timeout_min: int = 5,
        partition: str = "gpu",
        broken_by: str = "",
        setup: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        nodes: int = 1,
    ) -> None:
        self.paths = RunPaths(folder)
        freeze_code(self.paths.code)
        if broken_by:
            data = self.paths.code / "elmanctl" / "jobs" / "data.py"
            data.write_text(f"{data.read_text()}\n{broken_by}\n")
        model = {"dim": 32, "depth": 1, "n_heads": 2, "n_state": 8, **(config or {})}
        values: dict[str, Any] = {
            "run": folder.name,
            "evaluation": "g000-e00",
            "attempt": 1,
            "level": "e88",
            "config": model,
            "parameters_expected": count_parameters("e88", model),
            "nodes": nodes,
            "seed": 1,
            "lr": 1e-2,
            "steps": 20,
            "batch": 2,
            "seq_len": 16,
            "warmup_steps": 0,
            "data": _data_spec(corpus),
            "timeout_min": timeout_min,
            "threads": 1,
            "device": "cpu",
            "heartbeat_s": 1.0,
        }
        self.executor = SlurmExecutor(self.paths, max_jobs=4)
        self._values = changed(values, spec or {})
        self.resources = Resources(
            timeout_min=timeout_min,
            nodes=nodes,
            partition=partition,
            gres="gpu:1",
            mem_gb=mem_gb,
            cpus=1,
            setup=tuple(setup),
            extra=dict(extra or {}),
        )
        self.submit(1)

    def submit(self, number: int, **changes: Any) -> None:
        """Submit this attempt, with changes of its spec."""
        self.attempt = self.paths.attempt("g000-e00", number)
        self.attempt.folder.mkdir(parents=True)
        values = {**self._values, "attempt": number, **changes}
        write_json(self.attempt.spec, spec_of(**values).encode())
        submission = Submission(
            id=f"s{number:04}",
            job_name=f"elman-test-{self.paths.folder.name}-{os.getpid()}-{number}",
            tasks=(Task(index=0, evaluation="g000-e00", attempt=number),),
            resources=self.resources,
            intended_at=to_text(now()),
        )
        job_id = self.executor.submit(submission, self.paths.submission(submission.id))
        self.live = LiveJob(
            job_id=f"{job_id}_0",
            submission=submission.id,
            task_index=0,
            job_name=submission.job_name,
            since=submission.intended_at,
        )

    def report(self) -> JobReport:
        """Return what the scheduler says, asked again while accounting may yet tell more."""

        def told() -> JobReport | None:
            return self.executor.poll([self.live], []).reports.get(self.live.job_id)

        return wait_for(told, f"word of job {self.live.job_id}", pause_s=0.5)

    def verdict(self, timeout_s: float = PATIENCE_S) -> Verdict:
        """Wait until the job has ended, or is lost, and judge it as a controller does."""
        missed = 0

        def over() -> JobReport | None:
            nonlocal missed
            report = self.report()
            missed = missed + 1 if report.state is JobState.VANISHED else 0
            return report if report.state is JobState.ENDED or missed > 20 else None

        report = wait_for(over, f"job {self.live.job_id} to end", timeout_s, pause_s=0.5)
        return judge(
            observe(
                self.attempt,
                self.executor.log(self.live),
                report,
                root=self.paths.folder,
                limit_s=60.0 * self.resources.timeout_min,
                stale_after_s=4.0,
            )
        )


def _data_spec(corpus: Path) -> DataSpec:
    from elmanctl.run.corpus import describe

    found = describe(corpus)
    return DataSpec(path=str(corpus), sha256=found.sha256, size_bytes=found.size_bytes)
