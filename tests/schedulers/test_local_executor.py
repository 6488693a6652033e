"""Workers as processes of this machine, which outlive the controller that started them.

A small shell program stands in for Python: what the executor does with it is the same.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob
from elmanctl.schedulers.local_executor import LocalExecutor
from elmanctl.settings import LocalSettings, Settings
from tests.patience import PATIENCE_S

# A worker: writes its environment, its process id and its arguments, then does what it is asked to.
_WORKER = """\
#!/bin/sh
for last; do :; done
env > "$last/environment"
printf '%s\\n' "$@" > "$last/arguments"
echo $$ > "$last/worker"
. "$last/behaviour"
"""


class Machine:
    """A run's executor, with the stub worker and its behaviour by submission."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.paths = RunPaths(root / "run")
        ranks = options.pop("ranks", 1)
        local = LocalSettings(**{"workers": 3, "gpus": (), **options})
        self.executor = LocalExecutor(self.paths, local, ranks=ranks)
        self.worker = root / "my worker"
        # A second machine of this root must not write to what may be starting: "text file busy".
        if not self.worker.exists():
            self.worker.write_text(_WORKER, encoding="utf-8")
            self.worker.chmod(0o755)

    def task(self, slot: int, number: int = 1) -> Task:
        """Return a task as it is submitted to a slot."""
        name, gpus = f"g000-e{number:02}", self.executor.gpus_of(slot)
        return Task(index=0, evaluation=name, attempt=1, slot=slot, gpus=gpus)

    def submission(self, number: int = 1, slot: int = 0, timeout_min: float = 5) -> Submission:
        return Submission(
            id=f"s{number:04}",
            job_name=f"elman-run-1a2b3c4d-s{number:04}",
            tasks=(self.task(slot, number),),
            resources=Resources(timeout_min=timeout_min, python=shlex.quote(str(self.worker))),
        )

    def folder(self, number: int = 1) -> Path:
        folder = self.paths.submission(f"s{number:04}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def job(self, number: int = 1) -> LiveJob:
        return LiveJob(
            job_id=f"s{number:04}_0", submission=f"s{number:04}", task_index=0, job_name="job"
        )

    def start(self, behaviour: str, number: int = 1, **options: Any) -> LiveJob:
        """Submit one worker that does some shell."""
        folder = self.folder(number)
        (folder / "behaviour").write_text(behaviour, encoding="utf-8")
        job_id = self.executor.submit(self.submission(number, **options), folder)
        assert f"{job_id}_0" == self.job(number).job_id
        return self.job(number)

    def report(self, job: LiveJob) -> JobReport:
        return self.executor.poll([job], []).reports[job.job_id]

    def find(self) -> str | None:
        submission = self.submission()
        self.folder()
        return self.executor.poll([], [submission]).found[submission.id]

    def wait(self, job: LiveJob, state: JobState = JobState.ENDED) -> JobReport:
        return wait_for(lambda: (r := self.report(job)).state is state and r, f"{job.job_id}")

    def written(self, name: str, number: int = 1) -> str:
        """Wait for what a worker writes."""
        path = self.folder(number) / name
        return wait_for(lambda: path.exists() and path.read_text(encoding="utf-8"), str(path))

    def environment(self, number: int) -> dict[str, str]:
        pairs = (line.partition("=") for line in self.written("environment", number).splitlines())
        return {name: value for name, _, value in pairs}


def wait_for(look: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    found = Machine(tmp_path)
    yield found
    jobs = [found.job(number) for number in range(1, 6)]
    found.executor.cancel(jobs)


def test_worker_gets_submitits_command_and_its_output_is_kept(machine: Machine) -> None:
    job = machine.start("echo to stdout; echo to stderr >&2")
    assert machine.wait(job).exit_code == 0
    folder = machine.folder()
    assert machine.written("arguments").splitlines() == [
        *("-P", "-u", "-m", "submitit.core._submit"),
        str(folder),
    ]
    assert machine.executor.log(job).read_text(encoding="utf-8") == "to stdout\nto stderr\n"
    assert (folder / "s0001_0_submitted.pkl").resolve() == folder / "task-0.pkl"


def test_worker_knows_its_job_and_imports_the_frozen_code_first(machine: Machine) -> None:
    machine.start("")
    environment = machine.environment(1)
    assert environment["ELMAN_LOCAL_JOB"] == "s0001_0"
    assert environment["SUBMITIT_LOCAL_JOB_ID"] == "s0001_0"
    assert environment["PYTHONPATH"].split(":")[0] == str(machine.paths.code)


def test_each_worker_sees_the_gpu_of_its_slot_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=(4, 2, 7))
    slots = machine.executor.free_slots([])
    assert list(slots) == [0, 1, 2]
    jobs = [machine.start("sleep 5", n, slot=slot) for n, slot in enumerate(slots, start=1)]
    seen = [machine.environment(number)["CUDA_VISIBLE_DEVICES"] for number in (1, 2, 3)]
    assert seen == ["4", "2", "7"]
    # All at the same time.
    assert {machine.report(job).state for job in jobs} == {JobState.RUNNING}
    tasks = [machine.task(slot) for slot in (0, 1, 2)]
    assert list(machine.executor.free_slots([tasks[0], tasks[2]])) == [1]
    assert list(machine.executor.free_slots(tasks)) == []
    machine.executor.cancel(jobs)


def test_attempts_keep_their_gpus_when_the_list_changes(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=(4, 2))
    tasks = [machine.task(slot) for slot in (0, 1)]
    machine.executor.adjust(Settings(local=LocalSettings(gpus=(2, 7, 5))), ())
    # GPU 2 is the first slot now, and busy; the attempt on GPU 4 goes on beside the new ones.
    assert list(machine.executor.free_slots(tasks)) == [1, 2]
    assert [machine.executor.gpus_of(slot) for slot in (1, 2)] == [(7,), (5,)]
    # A ledger of an earlier version has the slots alone, of a list that did not change since.
    old = [Task(index=0, evaluation="g000-e00", attempt=1, slot=2)]
    assert list(machine.executor.free_slots(old)) == [0, 1]


def test_fewer_workers_let_the_others_end_and_start_none_meanwhile(machine: Machine) -> None:
    tasks = [machine.task(slot) for slot in (0, 1, 2)]
    machine.executor.adjust(Settings(local=LocalSettings(workers=1)), ())
    assert list(machine.executor.free_slots(tasks)) == []
    assert list(machine.executor.free_slots([tasks[2]])) == []
    assert list(machine.executor.free_slots([])) == [0]
    machine.executor.adjust(Settings(local=LocalSettings(workers=4)), ())
    assert list(machine.executor.free_slots([tasks[2]])) == [0, 1, 3]


def test_numbers_of_gpus_count_what_is_visible_and_names_are_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,MIG-7f0e, 5")
    machine = Machine(tmp_path, gpus=(2, 0, 1, "GPU-8932f937"))
    machine.executor.check()
    jobs = [machine.start("", slot + 1, slot=slot) for slot in range(4)]
    seen = [machine.environment(number)["CUDA_VISIBLE_DEVICES"] for number in (1, 2, 3, 4)]
    assert seen == ["5", "2", "MIG-7f0e", "GPU-8932f937"]
    for job in jobs:
        machine.wait(job)


def test_gpu_that_cannot_be_seen_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Machine(tmp_path, gpus=(0, 2)).executor
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(EnvironmentNotReady, match=r"no GPU 2: CUDA_VISIBLE_DEVICES shows `2,3`"):
        executor.check()
    # But a run may be cancelled from there.
    executor.cancel([])


@pytest.mark.parametrize("options", ["-St 600", "-Sv 8000000", "-Sn 64", "-Sf 1000"])
def test_soft_limits_of_the_shell_do_not_reach_workers(machine: Machine, options: str) -> None:
    name = options[2]
    hard = subprocess.check_output(["bash", "-c", f"ulimit -H{name}"], text=True)
    program = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.schedulers.test_local_executor import Machine\n"
        f"Machine(Path(sys.argv[1])).start('bash -c \\'ulimit -S{name}\\' > \"$last/limit\"')\n"
    )
    root = str(Path(__file__).parents[2])
    shell = f'ulimit {options} && exec "$@"'
    subprocess.run(
        ["bash", "-c", shell, "bash", sys.executable, "-c", program, machine.root, root], check=True
    )
    machine.wait(machine.job())
    assert machine.written("limit") == hard


def test_without_gpus_every_worker_has_a_slot(machine: Machine) -> None:
    assert list(machine.executor.free_slots([])) == [0, 1, 2]
    assert list(machine.executor.free_slots([machine.task(1)])) == [0, 2]


@pytest.mark.parametrize("code", [0, 1, 3])
def test_exit_code_of_a_worker_is_reported(machine: Machine, code: int) -> None:
    report = machine.wait(machine.start(f"exit {code}"))
    assert (report.state, report.exit_code, report.signal) == (JobState.ENDED, code, None)


def test_signal_that_ended_a_worker_is_reported(machine: Machine) -> None:
    report = machine.wait(machine.start("kill -9 $$"))
    assert (report.exit_code, report.signal) == (137, 9)


def test_worker_runs_on_after_its_controller_died_and_its_end_is_kept(machine: Machine) -> None:
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tests.schedulers.test_local_executor import Machine\n"
        "Machine(Path(sys.argv[1])).start('sleep 3; exit 7')\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", program, machine.root, root], check=False)
    assert done.returncode == -9
    # Another controller, which knows only the ledger.
    other = Machine(machine.root)
    other.wait(other.job(), JobState.RUNNING)
    assert other.find() == "s0001"
    assert other.wait(other.job()).exit_code == 7


def test_worker_over_its_time_limit_is_ended_as_timeout(machine: Machine) -> None:
    job = machine.start("exec sleep 1000", timeout_min=0.05)
    report = machine.wait(job)
    assert (report.raw, report.exit_code) == ("TIMEOUT", 124)
    assert not alive(int(machine.written("worker")))


def test_cancelling_ends_the_worker_and_all_that_it_started(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elmanctl.schedulers.supervisor._GRACE_S", PATIENCE_S)
    job = machine.start('sleep 1000 & echo $! > "$last/child"; wait')
    pids = [int(machine.written(name)) for name in ("worker", "child")]
    assert all(map(alive, pids))
    began = time.monotonic()
    machine.executor.cancel([job])
    assert not any(map(alive, pids))
    assert time.monotonic() - began < PATIENCE_S
    report = machine.wait(job)
    assert (report.exit_code, report.signal) == (143, 15)


def test_worker_that_ignores_sigterm_is_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elmanctl.schedulers.supervisor._GRACE_S", 0.3)
    job = machine.start("trap '' TERM; while :; do sleep 0.1; done")
    pid = int(machine.written("worker"))
    machine.executor.cancel([job])
    assert not alive(pid)
    report = machine.wait(job)
    assert (report.exit_code, report.signal) == (137, 9)


def test_cancelling_what_has_ended_does_no_harm(machine: Machine) -> None:
    job = machine.start("exit 3")
    machine.wait(job)
    machine.executor.cancel([job, machine.job(5)])
    assert machine.report(job).exit_code == 3


def test_process_id_that_belongs_to_another_process_by_now_is_left_alone(machine: Machine) -> None:
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        (machine.folder() / "process").write_text(f"{bystander.pid} 12345\n", encoding="utf-8")
        assert machine.report(machine.job()).state is JobState.VANISHED
        machine.executor.cancel([machine.job()])
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_submission_that_never_started_a_process_is_not_found(machine: Machine) -> None:
    assert machine.find() is None


def test_worker_that_ended_is_found(machine: Machine) -> None:
    machine.wait(machine.start("exit 1"))
    assert machine.find() == "s0001"


def test_supervisor_that_has_not_yet_recorded_itself_is_found_and_pending(
    machine: Machine,
) -> None:
    """As after a kill between the start of the process and its first line."""
    marker = str(machine.folder() / "process")
    starting = subprocess.Popen(["sh", "-c", "sleep 60; :", "sh", marker])
    try:
        assert machine.find() == "s0001"
        assert machine.report(machine.job()).state is JobState.PENDING
    finally:
        subprocess.run(["pkill", "-P", str(starting.pid)], check=False)
        starting.kill()
        starting.wait()
    assert machine.find() is None


def test_worker_whose_supervisor_was_killed_has_vanished(machine: Machine) -> None:
    job = machine.start("sleep 60")
    machine.wait(job, JobState.RUNNING)
    machine.written("worker")
    pid, _, _ = machine.written("process").split()
    os.killpg(int(pid), 9)
    assert machine.wait(job, JobState.VANISHED)


def test_zombie_of_a_supervisor_counts_as_gone(machine: Machine) -> None:
    child = subprocess.Popen(["true"])
    wait_for(lambda: not alive(child.pid), "the child to end")
    started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
    (machine.folder() / "process").write_text(f"{child.pid} {started}\n", encoding="utf-8")
    assert machine.report(machine.job()).state is JobState.VANISHED
    child.wait()
