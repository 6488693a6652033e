"""Jobs that a node cannot begin, and jobs that are taken back before they begin, on a cluster."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmanctl.clock import now, to_text
from elmanctl.ledger.records import State, VerdictKind
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import observe
from tests.integration.cluster import Job
from tests.integration.odd_node import OddNode, odd_node
from tests.integration.runs import load, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(200)]


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def last_node() -> str:
    return slurm("sinfo", "-hN", "-p", "gpu", "-o", "%N").split()[-1]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OddNode]:
    with odd_node(last_node(), tmp_path_factory.mktemp("odd") / "here") as found:
        yield found


def test_node_that_cannot_open_the_log_is_at_fault(node: OddNode, corpus: Path) -> None:
    job = Job(node.folder / "apart" / "none", corpus, extra={"nodelist": node.name})
    verdict = job.verdict()
    assert verdict.kind is VerdictKind.NODE_FAILURE
    log = job.executor.log(job.live)
    assert verdict.summary.startswith(f"{node.name} could not open the job's log `{log}`")
    assert job.report().node == node.name


def test_node_that_has_the_folder_on_a_disk_of_its_own_is_at_fault(
    node: OddNode, corpus: Path
) -> None:
    job = Job(
        node.folder / "apart" / "own",
        corpus,
        # Else submitit looks for its pickle for a minute before it fails.
        setup=["exit 2"],
        extra={"nodelist": node.name},
    )
    verdict = job.verdict()
    assert verdict.kind is VerdictKind.NODE_FAILURE
    assert verdict.summary.startswith(f"the job ran on {node.name} and its log ")


WRITES_TEMPORARY = """
import tempfile
with tempfile.TemporaryFile() as file:
    file.write(bytes(1 << 20))
"""


def test_full_tmp_of_a_node_is_the_nodes_fault(node: OddNode, tmp_path: Path, corpus: Path) -> None:
    job = Job(
        tmp_path / "run",
        corpus,
        broken_by=WRITES_TEMPORARY,
        setup=[f"export TMPDIR={node.folder / 'small'}"],
        extra={"nodelist": node.name},
    )
    verdict = job.verdict()
    assert verdict.kind is VerdictKind.ENVIRONMENT
    assert f"{node.folder / 'small'} of {node.name} is full" in verdict.evidence[0].text


SETTINGS = """\
[paths]
runs = "runs"
[data]
path = "corpus"
[slurm]
partition = "gpu"
poll_s = 1.0
extra = {{ nodelist = "{node}" }}
"""


def test_home_that_is_a_link_here_and_a_mount_on_the_node_trains(
    node: OddNode, corpus: Path, environment: dict[str, str]
) -> None:
    """All that is written for the node has the names that the user goes by."""
    home = node.folder / "front" / "home" / "ann"
    home.mkdir()
    shutil.copy(corpus, home / "corpus")
    for side in corpus.parent.glob(f"{corpus.name}.*"):
        shutil.copy(side, home)
    (home / "elman.toml").write_text(SETTINGS.format(node=node.name), encoding="utf-8")
    # As the tools make it, which ask the kernel where they are.
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=home.resolve(), check=True
    )
    packages = next((home / "venv").glob("lib/python*/site-packages"))
    lines = [path for path in sys.path if path and Path(path).is_dir()]
    (packages / "ours.pth").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        [
            *(home.resolve() / "venv" / "bin" / "python", "-m", "elmanctl", "search", "e88"),
            *("--preset", "tiny", "--yes", "--name", "run", "--generations", "1"),
            *("--train-steps", "5", "--set", "search.confirm_top=0"),
        ],
        cwd=home,
        env={**environment, "HOME": str(home), "PWD": str(home)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = home / "runs" / "run"
    state = load(run)
    attempts = [attempt for e in state.evaluations.values() for attempt in e.attempts]
    assert [attempt.node for attempt in attempts] == [node.name] * 4
    assert all(attempt.state is State.COMPLETED for attempt in attempts)
    scripts = (run / "submissions").rglob("submission.sh")
    written = [run / "ledger.jsonl", *run.rglob("spec.json"), *scripts]
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert str(node.folder / "export") not in text
    assert str(home / "venv" / "bin" / "python") in text
    assert f"#SBATCH --chdir={home}\n" in text


@pytest.fixture
def failing_prolog(tmp_path: Path) -> Iterator[str]:
    """A node's name in a cluster whose nodes cannot prepare for a job."""
    name = last_node()
    prolog = tmp_path / "prolog"
    prolog.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    prolog.chmod(0o755)
    settings = Path(os.environ["SLURM_CONF"])
    before = settings.read_text(encoding="utf-8")
    try:
        settings.write_text(f"{before}\nProlog={prolog}\n", encoding="utf-8")
        slurm("scontrol", "reconfigure")
        yield name
    finally:
        settings.write_text(before, encoding="utf-8")
        slurm("scontrol", "reconfigure")
        wait_for(lambda: is_back(name), "the node to be in service again")


def is_back(name: str) -> bool:
    """Put a node into service; Slurm refuses that for one that is, or that is read anew."""
    subprocess.run(
        ["scontrol", "update", f"NodeName={name}", "State=RESUME"],
        capture_output=True,
        check=False,
    )
    return not is_drained(name)


def is_drained(name: str) -> bool:
    return "drain" in slurm("sinfo", "-hN", "-p", "gpu", "-n", name, "-o", "%T")


def test_node_whose_prolog_fails_is_at_fault(
    tmp_path: Path, corpus: Path, failing_prolog: str
) -> None:
    """Slurm cancels a job that may not be put back, as it does for any node that cannot begin."""
    job = Job(tmp_path / "run", corpus, extra={"nodelist": failing_prolog})
    verdict = job.verdict()
    assert verdict.kind is VerdictKind.NODE_FAILURE
    assert job.report().node == failing_prolog
    wait_for(lambda: is_drained(failing_prolog), "Slurm to take the node out of service")


def test_script_that_a_signal_ends_was_killed(tmp_path: Path, corpus: Path) -> None:
    """As the kernel does where the script's memory is short; Slurm 22.05 says a launch failed."""
    job = Job(tmp_path / "run", corpus, setup=["kill -9 $$"])
    assert job.verdict().kind is VerdictKind.KILLED


@pytest.fixture
def drained() -> Iterator[str]:
    name = last_node()
    slurm("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")
    yield name
    slurm("scontrol", "update", f"NodeName={name}", "State=RESUME")


def test_one_waiting_task_that_is_cancelled_by_hand_was_taken_back(
    tmp_path: Path, drained: str
) -> None:
    paths = RunPaths(tmp_path / "run")
    executor = SlurmExecutor(paths, max_jobs=4)
    submission = Submission(
        id="s0001",
        job_name="elman-test-taken-back",
        tasks=tuple(Task(index=i, evaluation=f"g000-e0{i}", attempt=1) for i in range(3)),
        resources=Resources(timeout_min=5, partition="gpu", extra={"nodelist": drained}),
        intended_at=to_text(now()),
    )
    array = executor.submit(submission, paths.submission("s0001"))
    jobs = [
        LiveJob(
            job_id=f"{array}_{index}",
            submission="s0001",
            task_index=index,
            job_name=submission.job_name,
            since=submission.intended_at,
        )
        for index in range(3)
    ]
    try:
        reports = executor.poll(jobs, []).reports
        assert {report.state for report in reports.values()} == {JobState.PENDING}
        slurm("scancel", f"{array}_1")

        def gone() -> JobReport | None:
            # Accounting goes on calling it pending for a while.
            report = executor.poll(jobs, []).reports[jobs[1].job_id]
            assert report.state in (JobState.PENDING, JobState.VANISHED)
            return report if report.state is JobState.VANISHED else None

        report = wait_for(gone, "Slurm to forget the task", pause_s=1.0)
        seen = observe(
            paths.attempt("g000-e01", 1),
            executor.log(jobs[1]),
            report,
            root=paths.folder,
            limit_s=300.0,
        )
        verdict = judge(seen)
        assert verdict.kind is VerdictKind.CANCELLED
        assert "taken back before it began" in verdict.summary
        others = [executor.poll(jobs, []).reports[job.job_id].state for job in jobs[::2]]
        assert others == [JobState.PENDING] * 2
    finally:
        slurm("scancel", array)
