"""Inside executor: attempts as steps of srun on the nodes of the allocation it was started in.

What ran as jobs before, or in another allocation, is polled as ever.  The files of a step and its
supervisor show how it stands, so that Slurm is asked only about the allocation itself, and about
what these leave open.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.submissions import Allocation, Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import steps, supervisor
from elmanctl.schedulers.allocation import (
    Granted,
    Slot,
    is_in_step,
    job_id_here,
    read_granted,
    slots_of,
)
from elmanctl.schedulers.executor import JobReport, LiveJob, PollResult
from elmanctl.schedulers.lanes import STEP_FILE
from elmanctl.schedulers.slurm import UNKNOWN_JOB, Slurm, SlurmSilent
from elmanctl.schedulers.slurm_environment import allocation, job_environment
from elmanctl.schedulers.slurm_executor import SlurmExecutor
from elmanctl.schedulers.submission import (
    STEP_NAME,
    local_variables,
    make_step,
    task_pickle,
    write_pickles,
)
from elmanctl.settings import Settings

logger = logging.getLogger(__name__)


class InsideExecutor(SlurmExecutor):
    """Starts each attempt as one step, on a slot of the allocation.

    `resources` and `gpus` are those of one attempt.  Raises EnvironmentNotReady outside of an
    allocation, in one without room for an attempt, and when Slurm does not answer.
    """

    def __init__(
        self,
        paths: RunPaths,
        settings: Settings,
        resources: Resources,
        *,
        gpus: int,
        slurm: Slurm | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        slurm = slurm or Slurm()
        super().__init__(paths, max_jobs=settings.search.max_jobs, slurm=slurm)
        self.has_arrays = False
        self._poll_s = settings.slurm.poll_s
        self._now = now
        self._next_query = now() + self._poll_s
        self._asks_end = self._is_new = True
        self._avoided: Collection[str] = ()
        self._host_names = cache(slurm.host_names)
        self._number = allocation(os.environ)
        self._granted = self._ask(job_id_here(os.environ))
        self.slots = slots_of(self._granted, resources, gpus)
        if is_in_step(os.environ):
            logger.warning(
                "this shell is a step of the allocation itself: if it holds the GPUs, no other "
                "step gets one; `salloc`, or `srun --overlap`, leaves them free"
            )

    def _ask(self, job_id: str) -> Granted:
        return read_granted(job_id, self._slurm.job(job_id), self._host_names)

    @property
    def tasks_per_submission(self) -> int | None:
        """One: each step is started by itself."""
        return 1

    @property
    def allocation(self) -> Allocation:
        """The allocation that it was started in."""
        return self._granted.allocation

    @property
    def slot_count(self) -> int:
        """The number of slots on all of its nodes."""
        return len(self.slots)

    @property
    def left_s(self) -> float | None:
        """The seconds until the allocation ends, None where it has no limit."""
        if not self._granted.is_alive:
            return 0.0
        ends_at = self._granted.ends_at
        return None if ends_at is None else max(0.0, ends_at - time.time())

    def adjust(self, settings: Settings, avoided: Collection[str]) -> None:
        """Use a changed number of attempts and interval, and avoid these nodes."""
        self._max_jobs, self._poll_s = settings.search.max_jobs, settings.slurm.poll_s
        self._avoided = avoided

    def free_slots(self, busy: Iterable[Task]) -> Sequence[int | None]:
        """Return the numbers of the slots on which nothing runs, as many as may be queued."""
        tasks = list(busy)
        taken = {task.slot for task in tasks if task.allocation == self.allocation}
        good = [n for n, slot in enumerate(self.slots) if slot.node not in self._avoided]
        # A bad node is better than none.
        numbers = good or range(len(self.slots))
        room = max(0, self._max_jobs - len(tasks))
        return [number for number in numbers if number not in taken][:room]

    def request(self, resources: Resources) -> Resources:
        """Return the resources without what only a job has: its partition, options and lanes."""
        return replace(resources, partition=None, account=None, extra={}, exclude=(), per_job=1)

    def submit(self, submission: Submission, folder: Path) -> str:
        """Start srun for the submission's only task and return the id of its attempt.

        Raises SubmissionError when no process can be started.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_pickles(submission, folder, self._paths)
        (task,) = submission.tasks
        assert task.slot is not None
        job_id = steps.job_id_of(submission)
        # submitit looks for the pickle under the job's name.
        with suppress(FileExistsError):
            (folder / f"{job_id}_submitted.pkl").symlink_to(task_pickle(folder, task.index).name)
        script = folder / STEP_NAME
        write_atomically(script, make_step(submission, folder, self._paths.code).encode())
        command = self._srun(submission, self.slots[task.slot], script)
        environment = {**job_environment(os.environ), **local_variables(job_id)}
        supervisor.start(folder, command, environment, folder / f"{job_id}_0_log.out")
        return job_id

    def _srun(self, submission: Submission, slot: Slot, script: Path) -> list[str]:
        asked_mb = round((submission.resources.mem_gb or 0) * 1024)
        share = next(one for one in self._granted.shares if one.node == slot.node)
        # A retry may ask for more memory than its slot has, and for no more than the node.
        mem_mb = min(max(slot.mem_mb, asked_mb), share.mem_mb)
        return [
            # srun knows an element of an array by its own number alone, squeue by both.
            *("srun", f"--jobid={self._number}", "--exact", "--nodes=1", "--ntasks=1"),
            *(f"--nodelist={slot.node}", f"--cpus-per-task={slot.cpus}", f"--gres={slot.gres}"),
            *([f"--mem={mem_mb}M"] if mem_mb else []),
            *(f"--time={submission.resources.timeout_min}", f"--job-name={submission.job_name}"),
            *("--unbuffered", "bash", str(script)),
        ]

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        """Read how the steps here stand, and at intervals ask Slurm about all else.

        While it is not asked there is no report on what the files leave open.
        """
        here = self.allocation
        reports: dict[str, JobReport] = {}
        for job in jobs:
            if job.allocation == here:
                own = steps.own_report(self._paths.submission(job.submission), self.log(job))
                if own is not None:
                    reports[job.job_id] = own
        open_jobs = [job for job in jobs if job.job_id not in reports]
        own_intents = [one for one in intended if one.allocation == here]
        found = {one.id: steps.found(one, self._paths.submission(one.id)) for one in own_intents}
        others = [one for one in intended if one.allocation != here]
        # What an earlier controller left is asked about at once.
        is_due = self._now() >= self._next_query or (self._is_new and bool(open_jobs or others))
        self._is_new = False
        if not is_due:
            return PollResult(reports=reports, found=found)
        polled = self._query(open_jobs, others)
        return replace(
            polled, reports={**polled.reports, **reports}, found={**polled.found, **found}
        )

    def _query(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        """Ask about the allocation, or if anything is open by turns about that."""
        try:
            self._asks_end = not self._asks_end or not (jobs or intended)
            if not self._asks_end:
                return super().poll(jobs, intended)
            self._granted = self._ask(self.allocation.job_id)
            return PollResult()
        except SlurmSilent as exc:
            if UNKNOWN_JOB in exc.message:
                self._granted = replace(self._granted, is_alive=False)
            # What the files show is known all the same.
            return PollResult(accounting_error=exc.message)
        except EnvironmentNotReady:
            self._granted = replace(self._granted, is_alive=False)
            return PollResult()
        finally:
            self._next_query = self._now() + self._poll_s

    def warn(self, jobs: Sequence[LiveJob]) -> None:
        """Send the steps of the allocation the signal that makes them save their state."""
        own = [job for job in jobs if job.allocation == self.allocation]
        folders = [self._paths.submission(job.submission) for job in own]
        for folder in folders:
            (folder / steps.END_FILE).touch()
        if names := steps.numbers(own, folders):
            self._slurm.signal(names, "USR2")

    def cut(self, jobs: Sequence[LiveJob]) -> None:
        """End the steps of the allocation, and what still waits to become one."""
        own = [job for job in jobs if job.allocation == self.allocation]
        folders = [self._paths.submission(job.submission) for job in own]
        for folder in folders:
            (folder / steps.END_FILE).touch()
        names = steps.numbers(own, folders)
        if names:
            self._slurm.cancel(names)
        supervisor.end([folder for folder in folders if not (folder / STEP_FILE).exists()])
