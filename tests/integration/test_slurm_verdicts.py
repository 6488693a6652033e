"""Verdicts on single jobs of a real Slurm cluster (scripts/slurmbox up)."""

from pathlib import Path

import pytest

from elmanctl.ledger.records import VerdictKind
from elmanctl.schedulers.executor import JobState
from tests.integration.cluster import Job
from tests.integration.runs import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(280)]


def test_every_failure_gets_its_own_verdict(tmp_path: Path, corpus: Path) -> None:
    """All jobs at once, since the shortest time limit of Slurm is a minute."""
    wide = {"dim": 4096, "depth": 2, "n_heads": 64, "n_state": 32}
    hang = "import time; time.sleep(600)"
    bug = 'raise RuntimeError("a bug of the user")'
    jobs = {
        VerdictKind.TIMEOUT: Job(tmp_path / "late", corpus, broken_by=hang, timeout_min=1),
        VerdictKind.CANCELLED: Job(tmp_path / "unwanted", corpus, broken_by=hang),
        VerdictKind.OOM: Job(tmp_path / "wide", corpus, config=wide, mem_gb=0.5),
        VerdictKind.PYTHON_ERROR: Job(tmp_path / "bug", corpus, broken_by=bug),
        VerdictKind.INVALID: Job(tmp_path / "level", corpus, spec={"level": "e99"}),
        VerdictKind.DIVERGED: Job(tmp_path / "diverged", corpus, spec={"lr": 1e6}),
        VerdictKind.COMPLETED: Job(tmp_path / "well", corpus),
    }
    unwanted = jobs[VerdictKind.CANCELLED]
    wait_for(lambda: unwanted.report().state is JobState.RUNNING, "the job to run")
    unwanted.executor.cancel([unwanted.live])
    verdicts = {kind: job.verdict() for kind, job in jobs.items()}
    assert {kind: verdict.kind for kind, verdict in verdicts.items()} == {k: k for k in jobs}
    for verdict in verdicts.values():
        assert verdict.evidence
    assert "a bug of the user" in verdicts[VerdictKind.PYTHON_ERROR].summary
    assert "e99" in verdicts[VerdictKind.INVALID].summary
