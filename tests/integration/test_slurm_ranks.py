"""One evaluation over two nodes of a real cluster, and what becomes of it when one is lost."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.ledger.records import State, VerdictKind
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import AttemptPaths
from elmanctl.verdicts.policy import rule_of
from tests.command_line import CommandLine
from tests.integration.cluster import Job
from tests.integration.runs import load, losses, search_arguments, slurmbox, wait_for
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(500)]

# Every rank stops before this step, until a file lies beside its code.
STOPPED = """
import time as _time
from pathlib import Path as _Path
_rows = ByteStream.rows
def _stopping(self, seed, step, *sizes, **rank):
    while step > 8 and not (_Path(__file__).parents[3] / "go").exists():
        _time.sleep(0.05)
    return _rows(self, seed, step, *sizes, **rank)
ByteStream.rows = _stopping
"""

# Or is slow, and writes a checkpoint only when it is warned.
SLOW = STOPPED.replace("while step > 8 and", "if").replace("0.05", "0.45")
EVERY_STEP, ON_DEMAND = 1e-9, 1e6


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def nodes() -> list[str]:
    return slurm("sinfo", "-hN", "-p", "gpu", "-o", "%N").split()


def over(job: Job, *names: str) -> None:
    """Let the next attempt run on these nodes, and as long as it takes."""
    job.resources = replace(job.resources, timeout_min=5, extra={"nodelist": ",".join(names)})


def make(
    folder: Path, corpus: Path, on: list[str], code: str, timeout_min: int = 5, **spec: Any
) -> Job:
    values = {"steps": 400, "objective": "last100", "holdout": 0.0, **spec}
    return Job(
        folder,
        corpus,
        nodes=2,
        spec=values,
        broken_by=code,
        timeout_min=timeout_min,
        extra={"nodelist": ",".join(on)},
    )


def read(paths: AttemptPaths) -> dict[str, Any]:
    found = json.loads(paths.result.read_text())
    assert isinstance(found, dict)
    return found


def steps(paths: AttemptPaths) -> list[tuple[int, float]]:
    lines = paths.metrics.read_text().splitlines() if paths.metrics.exists() else []
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def test_two_nodes_train_one_model_through_a_dead_one_a_preemption_and_a_limit(
    tmp_path: Path, corpus: Path
) -> None:
    """All at once, since time limits are minutes."""
    first, second, third, fourth = nodes()[:4]
    # Slurm may warn a minute early, which within one minute is before Python has begun.
    late = make(tmp_path / "late", corpus, [first, second], SLOW, 2, checkpoint_min=ON_DEMAND)
    dead = make(tmp_path / "dead", corpus, [third, fourth], STOPPED, checkpoint_min=EVERY_STEP)
    wait_for(lambda: len(steps(dead.attempt)) >= 8, "eight steps on two nodes")
    try:
        slurmbox("kill-node", fourth)
        verdict = dead.verdict()
    finally:
        slurmbox("start-node", fourth)
    assert verdict.kind is VerdictKind.NODE_FAILURE

    taken = make(tmp_path / "taken", corpus, [third, fourth], STOPPED, checkpoint_min=EVERY_STEP)
    wait_for(lambda: len(steps(taken.attempt)) >= 8, "eight steps on two nodes")
    urgent = ("sbatch", "-p", "urgent", "-w", fourth, "--exclusive", "--mem=100")
    slurm(*urgent, "-o", "/dev/null", "--wrap", "sleep 1")
    assert taken.verdict().kind is VerdictKind.PREEMPTED
    alone = _undisturbed(late.attempt, tmp_path)
    assert late.verdict().kind is VerdictKind.TIMEOUT

    for job, others in ((dead, [first, third]), (taken, [second, third]), (late, [third, fourth])):
        assert not job.attempt.result.exists() and job.attempt.checkpoint.exists()
        (job.paths.folder / "go").touch()
        over(job, *others)
        job.submit(2, continues_from=("attempt-1",))
    for job in (dead, taken, late):
        assert job.verdict().kind is VerdictKind.COMPLETED
        result, before = read(job.attempt), job.paths.attempt("g000-e00", 1)
        reached = result["continued_from"]["step"]
        # The warning may come before the first step.
        assert result["continued_from"]["attempt"] == 1 and reached >= (1 if job is late else 8)
        assert steps(before)[:reached] + steps(job.attempt) == alone
        assert not before.result.exists() and not before.checkpoint.exists()


def _undisturbed(paths: AttemptPaths, folder: Path) -> list[tuple[int, float]]:
    """Return the losses of the same training by two processes of this machine."""
    here = AttemptPaths(folder / "here" / "evaluations" / "g000-e00" / "attempt-1")
    here.folder.mkdir(parents=True)
    spec = json.loads(paths.spec.read_text())
    spec |= {"gpus": 2, "checkpoint_min": 0.0}
    spec.pop("nodes")
    here.spec.write_text(json.dumps(spec))
    program = "import sys; from elmanctl.jobs.evaluation import evaluate_attempt as run"
    subprocess.run(
        [sys.executable, "-c", f"{program}; run(sys.argv[1])", here.folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    return steps(here)


# A validation after each step changes no loss, and leaves more time for a death.
SETTINGS = """\
[slurm]
partition = "gpu"
poll_s = 1.0
[train]
device = "cpu"
nodes = 2
checkpoint_min = 1e-6
val_every = 1
"""


def test_search_over_two_nodes_goes_on_when_one_of_them_dies(
    elmanctl: CommandLine, corpus: Path, undisturbed: RunState
) -> None:
    (elmanctl.folder / "elman.toml").write_text(SETTINGS, encoding="utf-8")
    folder = elmanctl.folder / "runs" / "run"
    search = [*search_arguments(corpus), "--generations", "1"]
    controller = elmanctl.start(search)

    def in_training() -> str | None:
        """Stop a training in its course, so that it does not end before its node does."""
        for path in sorted(folder.glob("evaluations/*/attempt-1/heartbeat.json")):
            beat = json.loads(path.read_text())
            if beat["phase"] != "training":
                continue
            with suppress(ProcessLookupError):
                os.kill(beat["pid"], signal.SIGSTOP)
                if not (path.parent / "result.json").exists():
                    return str(beat["host"])
                os.kill(beat["pid"], signal.SIGCONT)
        return None

    host = wait_for(in_training, "an evaluation to train on two nodes")
    known = nodes()
    # The jobs take their nodes in pairs; the other one of the pair has rank 1.
    node = known[known.index(host) ^ 1]
    try:
        slurmbox("kill-node", node)
        output, _ = controller.communicate(timeout=PATIENCE_S)
    finally:
        slurmbox("start-node", node)
    assert controller.returncode == 0, output
    state = load(folder)
    again = [e for e in state.evaluations.values() if len(e.attempts) > 1]
    assert again
    for evaluation in again:
        verdict = evaluation.attempts[0].verdict
        assert verdict is not None and verdict.kind is VerdictKind.NODE_FAILURE
        assert rule_of(verdict).resumes
    for name, evaluation in state.evaluations.items():
        assert evaluation.state is State.COMPLETED
        results = [attempt.result for attempt in evaluation.attempts]
        assert [result is not None for result in results] == [False] * (len(results) - 1) + [True]
        # The sums of two halves differ from the sum of the whole in their last bits, of which a
        # high learning rate makes more within these few steps.
        tolerance = 5e-3 if evaluation.lr < 0.01 else 0.1
        assert evaluation.loss == pytest.approx(losses(undisturbed)[name], abs=tolerance)
