"""Local executor: attempts as processes of this machine, each in a session of its own.

A small shell supervises each worker: it records its own process id and start time before the worker
starts, and the exit code after it ends, so that a later controller can adopt the attempt or read
how it ended.  `timeout` ends a worker over its limit with or without a controller.
"""

import contextlib
import logging
import os
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from elmanctl.constants import LOCAL_JOB_VARIABLE
from elmanctl.errors import SubmissionError
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.processes import command_lines, start_ticks
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob, PollResult
from elmanctl.schedulers.gpus import check_gpus, worker_variables
from elmanctl.schedulers.slurm_environment import without_options
from elmanctl.schedulers.submission import (
    task_pickle,
    worker_command,
    worker_environment,
    write_pickles,
)
from elmanctl.settings import LocalSettings, Settings

logger = logging.getLogger(__name__)

# $1 process file, $2 exit file, the rest the worker's command.  SIGTERM to the session ends the
# worker, and the supervisor survives to record it.
_SUPERVISOR = """\
process=$1 exit=$2; shift 2
trap : TERM
# What a login shell limits softly, other than stacks and cores, is meant for no worker.
for limit in t v d m f n u p; do ulimit -S -$limit "$(ulimit -H -$limit)"; done 2>/dev/null
echo "$$ $(cut -d' ' -f22 /proc/$$/stat)" > "$process.new" && mv "$process.new" "$process"
# Written now and written over later, which needs no room on a disk that is full by then.
echo 'no code' > "$exit.new"
"$@"
code=$?
printf '%-7s\n' "$code" 1<> "$exit.new" && mv "$exit.new" "$exit"
"""

_KILL_AFTER_S = 20

# Grace period of a cancelled worker before SIGKILL.
_GRACE_S = 5.0

# A process has no command line for an instant while it executes another program.
_TRIES = 3
_RETRY_S = 0.05

# Exit code of `timeout` when it ended the worker.
_TIMED_OUT = 124


class LocalExecutor:
    """Runs attempts as detached processes, one on each slot; each starts its other ranks itself."""

    name = "local"
    has_arrays = True
    tasks_per_submission = 1

    def __init__(self, paths: RunPaths, local: LocalSettings, *, ranks: int = 1) -> None:
        self._paths = paths
        self._local = local
        self._ranks = ranks

    def adjust(self, settings: Settings) -> None:
        """Use changed GPUs and workers from now on; attempts keep the GPUs that they have."""
        self._local = settings.local

    @property
    def _slots(self) -> int:
        return self._local.at_once(self._ranks)

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady for a GPU that is not visible here."""
        check_gpus(self._local.gpus, "auto", os.environ, ranks=self._ranks)
        _, hard_s = resource.getrlimit(resource.RLIMIT_CPU)
        if hard_s != resource.RLIM_INFINITY:
            logger.warning("`ulimit -Ht` of this shell ends each worker after %d s of CPU", hard_s)

    def free_slots(self, busy: Iterable[Task]) -> Sequence[int | None]:
        """Return the numbers of the slots on which nothing runs.

        A slot with GPUs is free when none of these has an attempt, whatever their order was when it
        began.  Without GPUs no more attempts run than there are workers.
        """
        tasks = list(busy)
        if not self._local.gpus:
            taken = {task.slot for task in tasks}
            free = [slot for slot in range(self._slots) if slot not in taken]
            return free[: max(0, self._slots - len(tasks))]
        # Tasks of earlier versions have no GPUs on record: the list has not changed since.
        used = {gpu for task in tasks for gpu in task.gpus or self.gpus_of(task.slot)}
        return [slot for slot in range(self._slots) if used.isdisjoint(self.gpus_of(slot))]

    def gpus_of(self, slot: int | None) -> tuple[int | str, ...]:
        """Return the entries of `local.gpus` on a slot."""
        if slot is None:
            return ()
        return self._local.gpus[slot * self._ranks : (slot + 1) * self._ranks]

    def submit(self, submission: Submission, folder: Path) -> str:
        """Start the worker of the submission's only task and return its job id."""
        folder.mkdir(parents=True, exist_ok=True)
        write_pickles(submission, folder, self._paths)
        (task,) = submission.tasks
        # Short for people to read: the submission's folder makes it unique.
        job_id = submission.id
        job = f"{job_id}_{task.index}"
        # submitit looks for the pickle under the job's name.
        (folder / f"{job}_submitted.pkl").symlink_to(task_pickle(folder, task.index).name)
        command = [
            # Forked, so that the supervisor is nobody's child and no controller has to reap it.
            *("setsid", "--fork", "sh", "-c", _SUPERVISOR, "sh"),
            *(str(folder / "process"), str(folder / "exit")),
            *("timeout", "--foreground", f"--kill-after={_KILL_AFTER_S}"),
            str(submission.resources.timeout_min * 60),
            *shlex.split(worker_command(folder, submission.resources.python)),
        ]
        try:
            with (folder / f"{job}_0_log.out").open("ab") as log:
                subprocess.run(
                    command,
                    env=self._environment(job, task),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=True,
                )
        except (OSError, subprocess.CalledProcessError) as exc:
            raise SubmissionError(f"cannot start a worker: {exc}") from exc
        return job_id

    def _environment(self, job: str, task: Task) -> dict[str, str]:
        environment = {
            # The variables of a surrounding allocation are not about our worker.
            **without_options(os.environ),
            **worker_environment(self._paths.code),
            LOCAL_JOB_VARIABLE: job,
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_JOB_ID": job,
            "SUBMITIT_LOCAL_NTASKS": "1",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_GLOBALID": "0",
            "SUBMITIT_LOCAL_LOCALID": "0",
        }
        if task.gpus:
            environment |= worker_variables(task.gpus, os.environ)
        # Concurrent workers must not each start a thread for every core.
        share = len(os.sched_getaffinity(0)) // (self._slots * self._ranks)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, share)))
        return environment

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        """Return the state of each worker, and which submissions ever started one."""
        return PollResult(
            reports={job.job_id: self._report(job) for job in jobs},
            found={submission.id: self._find(submission) for submission in intended},
        )

    def _find(self, submission: Submission) -> str | None:
        folder = self._paths.submission(submission.id)
        if (folder / "process").exists() or (folder / "exit").exists():
            return submission.id
        for _ in range(_TRIES):
            if _is_starting(folder):
                return submission.id
            time.sleep(_RETRY_S)
        return None

    def _report(self, job: LiveJob) -> JobReport:
        folder = self._paths.submission(job.submission)
        code = _read_words(folder / "exit")
        if code:
            return _ended(int(code[0]))
        is_recorded = (folder / "process").exists()
        if _supervisor(folder) is not None:
            return JobReport(state=JobState.RUNNING, raw="running", node=os.uname().nodename)
        if not is_recorded and _is_starting(folder):
            return JobReport(state=JobState.PENDING, raw="starting")
        # The supervisor may have ended between the two checks.
        code = _read_words(folder / "exit")
        return _ended(int(code[0])) if code else JobReport(state=JobState.VANISHED)

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """End workers: SIGTERM to the whole session, then SIGKILL to what is left of it."""
        folders = [self._paths.submission(job.submission) for job in jobs]
        alive = {folder: group for folder in folders if (group := _supervisor(folder)) is not None}
        groups = alive.values()
        for number in (signal.SIGTERM, signal.SIGKILL):
            for group in groups:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, number)
            deadline = time.monotonic() + _GRACE_S
            while time.monotonic() < deadline and any(_group_alive(group) for group in groups):
                time.sleep(0.05)
        for folder in alive:
            if not (folder / "exit").exists():
                _record_killed(folder)

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        """Do nothing: this machine is the only node, and no job is pending."""

    def log(self, job: LiveJob) -> Path:
        """Return the path of the worker's output, as submitit names it."""
        return self._paths.submission(job.submission) / f"{job.job_id}_0_log.out"


def _ended(code: int) -> JobReport:
    raw = "TIMEOUT" if code == _TIMED_OUT else "ended"
    number = code - 128 if code > 128 else None
    return JobReport(state=JobState.ENDED, raw=raw, exit_code=code, signal=number)


def _supervisor(folder: Path) -> int | None:
    """Return the process, and process group, of a supervisor that is alive, or None."""
    process = _read_words(folder / "process")
    is_alive = len(process) == 2 and start_ticks(int(process[0])) == int(process[1])
    return int(process[0]) if is_alive else None


def _is_starting(folder: Path) -> bool:
    """Whether a supervisor that has not yet recorded itself is alive."""
    marker = str(folder / "process")
    return any(marker in line for _, line in command_lines())


def _record_killed(folder: Path) -> None:
    """Write the exit code that the supervisor, killed with its worker, could not write."""
    # Without it the job would have vanished, which takes longer to establish.
    with contextlib.suppress(OSError):
        write_atomically(folder / "exit", f"{128 + signal.SIGKILL}\n".encode())


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        # Another user's process has the number by now.
        return False
    return True
