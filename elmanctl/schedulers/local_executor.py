"""Local executor: attempts as processes of this machine, each in a session of its own.

Each has a supervisor, so that a later controller can adopt the attempt or read how it ended.
`timeout` ends a worker over its limit with or without a controller.
"""

import logging
import os
import resource
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import supervisor
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob, PollResult
from elmanctl.schedulers.gpus import check_gpus, worker_variables
from elmanctl.schedulers.slurm_environment import without_options
from elmanctl.schedulers.submission import (
    local_variables,
    task_pickle,
    worker_command,
    worker_environment,
    write_pickles,
)
from elmanctl.settings import LocalSettings, Settings

logger = logging.getLogger(__name__)

_KILL_AFTER_S = 20

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

    def adjust(self, settings: Settings, avoided: Collection[str]) -> None:
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
            *("timeout", "--foreground", f"--kill-after={_KILL_AFTER_S}"),
            str(submission.resources.timeout_min * 60),
            *shlex.split(worker_command(folder, submission.resources.python)),
        ]
        log = folder / f"{job}_0_log.out"
        supervisor.start(folder, command, self._environment(job, task), log)
        return job_id

    def _environment(self, job: str, task: Task) -> dict[str, str]:
        environment = {
            # The variables of a surrounding allocation are not about our worker.
            **without_options(os.environ),
            **worker_environment(self._paths.code),
            **local_variables(job),
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
            found={one.id: self._find(one) for one in intended},
        )

    def _find(self, submission: Submission) -> str | None:
        was_started = supervisor.was_started(self._paths.submission(submission.id))
        return submission.id if was_started else None

    def _report(self, job: LiveJob) -> JobReport:
        folder = self._paths.submission(job.submission)
        code = supervisor.exit_code(folder)
        if code is not None:
            return _ended(code)
        is_recorded = supervisor.is_recorded(folder)
        if supervisor.group(folder) is not None:
            return JobReport(state=JobState.RUNNING, raw="running", node=os.uname().nodename)
        if not is_recorded and supervisor.is_starting(folder):
            return JobReport(state=JobState.PENDING, raw="starting")
        # The supervisor may have ended between the two checks.
        code = supervisor.exit_code(folder)
        return JobReport(state=JobState.VANISHED) if code is None else _ended(code)

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """End workers: SIGTERM to the whole session, then SIGKILL to what is left of it."""
        supervisor.end([self._paths.submission(job.submission) for job in jobs])

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        """Do nothing: this machine is the only node, and no job is pending."""

    def log(self, job: LiveJob) -> Path:
        """Return the path of the worker's output, as submitit names it."""
        return self._paths.submission(job.submission) / f"{job.job_id}_0_log.out"


def _ended(code: int) -> JobReport:
    raw = "TIMEOUT" if code == _TIMED_OUT else "ended"
    number = code - 128 if code > 128 else None
    return JobReport(state=JobState.ENDED, raw=raw, exit_code=code, signal=number)
