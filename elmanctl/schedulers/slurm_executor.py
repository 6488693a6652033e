"""Slurm executor: each submission is one job array, submitted once and found by its name.

A job has one attempt, or with `slurm.per_job` several, each a lane of it.
"""

import errno
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from elmanctl.command import NoAnswer, run_command
from elmanctl.errors import SubmissionError
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.submissions import Resources, Submission, Task
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers import accounting, steps
from elmanctl.schedulers.earlier_sbatch import (
    SBATCH_TIMEOUT_S,
    started_job,
    wait_for_sbatch,
)
from elmanctl.schedulers.executor import (
    JobReport,
    JobState,
    LiveJob,
    PollResult,
    SubmissionDeferred,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.schedulers.lanes import lane_folder, lane_report, slurm_job, to_cancel
from elmanctl.schedulers.sbatch_answer import Outcome, Reason, SbatchAnswer, read_answer
from elmanctl.schedulers.slurm import Slurm, SlurmSilent, askable
from elmanctl.schedulers.slurm_environment import job_environment
from elmanctl.schedulers.slurm_output import JobRow
from elmanctl.schedulers.submission import SCRIPT_NAME, excluded, make_script, write_pickles
from elmanctl.settings import Settings

# Errors of a file that can never be run, such as a script without `#!`.
_NO_PROGRAM = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP),
    errno.E2BIG,
)

# Polls in a row that do not know an allocation.
_GONE_POLLS = 2

# Slurm's default of MaxArraySize, which few clusters lower.
_USUAL_ARRAY = 1001

logger = logging.getLogger(__name__)


class SlurmExecutor:
    """Submits attempts as one job array per submission, or as single jobs without arrays."""

    name = "slurm"

    def __init__(
        self, paths: RunPaths, *, max_jobs: int, per_job: int = 1, slurm: Slurm | None = None
    ) -> None:
        self._paths = paths
        self._max_jobs = max_jobs
        self._per_job = per_job
        self._slurm = slurm or Slurm()
        self._accounting = accounting.Accounting(self._slurm)
        self._ends = accounting.PartialEnds()
        self._array_limit = _USUAL_ARRAY
        self._knows_array_limit = False
        self._asks_array_limit = False
        # As far as is known.
        self.has_arrays = True
        self._taken: list[Resources] = []
        self._banner: str | None = None
        self._gone: Counter[str] = Counter()

    @property
    def tasks_per_submission(self) -> int | None:
        """How many attempts one array may hold, 0 until the next poll has asked for it."""
        return 0 if self._asks_array_limit else self._array_limit * self._per_job

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady when Slurm is not here, or with `asks` does not answer."""
        self._slurm.check(asks=asks)

    def adjust(self, settings: Settings, avoided: Collection[str]) -> None:
        """Use a changed number of attempts, or of those in a job, from now on."""
        self._max_jobs = settings.search.max_jobs
        self._per_job = settings.slurm.per_job

    def free_slots(self, busy: Iterable[Task]) -> Sequence[int | None]:
        """Return one unnumbered slot for each further attempt that may be queued, by whole jobs."""
        jobs = max(0, self._max_jobs - len(list(busy))) // self._per_job
        return [None] * (jobs * self._per_job)

    def gpus_of(self, slot: int | None) -> tuple[int | str, ...]:
        """Return nothing: Slurm chooses the GPUs."""
        return ()

    def submit(self, submission: Submission, folder: Path) -> str:
        """Write the pickles and the script, call sbatch, and return the id of the job or array.

        Raises SubmissionError when sbatch refused for good, SubmissionDeferred when it refused for
        now, SubmissionTooLarge when the array was too large, SubmissionUnknown when its answer was
        lost.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_pickles(submission, folder, self._paths)
        script = folder / SCRIPT_NAME
        text = make_script(submission, folder, self._paths.code)
        write_atomically(script, text.encode())
        try:
            done = run_command(
                ["sbatch", "--parsable", str(script)],
                job_environment(os.environ),
                timeout_s=SBATCH_TIMEOUT_S,
            )
        except NoAnswer as exc:
            raise SubmissionUnknown(str(exc)) from exc
        except OSError as exc:
            # Otherwise it is temporary: no process, no memory, a file server that is down.
            kind = SubmissionError if exc.errno in _NO_PROGRAM else SubmissionDeferred
            raise kind(f"cannot run `sbatch`: {exc}") from exc
        answer = read_answer(done.code, done.stdout, done.stderr)
        if answer.job_id is not None:
            self._note_taken(submission)
            return answer.job_id
        if done.code == 0:
            self._log_banner(answer.words)
            raise SubmissionUnknown(answer.words, is_taken=True)
        if answer.reason is Reason.LOST:
            raise SubmissionUnknown(answer.words)
        job_id = None if answer.is_certain else self._listed(submission, answer)
        if job_id is None:
            raise self._refusal(submission, answer)
        return job_id

    def _refusal(self, submission: Submission, answer: SbatchAnswer) -> SubmissionError:
        """Return the error for a refusal."""
        if answer.reason is Reason.ARRAY and submission.is_array:
            self._learn_array_limit(math.ceil(len(submission.tasks) / self._per_job))
            return SubmissionTooLarge(answer.words)
        is_deferred = answer.outcome is Outcome.NOT_NOW
        if answer.reason is Reason.POLICY:
            # The same message reports a limit on jobs and a request that no job may make.
            is_deferred = len(submission.tasks) > 1 or bool(self._taken) or self._has_jobs()
        if answer.reason is Reason.UNKNOWN:
            # The request is fine: the same one was accepted before.
            is_deferred = _request_of(submission) in self._taken
        if not is_deferred:
            return SubmissionError(answer.words, hint=_request_hint(self._run, answer.key))
        is_limit = answer.reason in (Reason.LIMIT, Reason.POLICY)
        hint = _limit_hint(self._run) if is_limit else None
        if answer.reason is Reason.CLOSED:
            hint = f"`elmanctl resume {self._run} --set slurm.partition=NAME` uses another one"
        return SubmissionDeferred(answer.words, hint=hint, is_limit=is_limit)

    @property
    def _run(self) -> str:
        return self._paths.folder.name

    def _note_taken(self, submission: Submission) -> None:
        request = _request_of(submission)
        if request not in self._taken:
            self._taken.append(request)

    def _listed(self, submission: Submission, answer: SbatchAnswer) -> str | None:
        """Return the job of this name that squeue lists although sbatch failed, None if none.

        Raises SubmissionUnknown where squeue cannot be asked.
        """
        try:
            rows = self._slurm.queue()
        except SlurmSilent:
            raise SubmissionUnknown(answer.words) from None
        named = (r for r in rows if r.name == submission.job_name and not r.is_refusal)
        return next((row.array_id for row in named), None)

    def _has_jobs(self) -> bool:
        """Whether this user has pending or running jobs, which a limit on jobs would count."""
        try:
            return any(row.report.state is not JobState.ENDED for row in self._slurm.queue())
        except SlurmSilent:
            return True

    def _log_banner(self, words: str) -> None:
        # The job id, and perhaps the time, differ each time.
        banner = re.sub(r"\d+", "", words)
        level = logging.DEBUG if banner == self._banner else logging.WARNING
        self._banner = banner
        logger.log(level, "sbatch prints more than a job id, jobs are found by name: %s", words)

    def _learn_array_limit(self, refused: int) -> None:
        if refused == 1:
            self.has_arrays, self._array_limit = False, 1
            logger.warning("this cluster takes no job arrays: each attempt is a job of its own")
            return
        # If it was refused although Slurm's configuration allows it, try fewer.
        self._array_limit = refused // 2
        self._asks_array_limit = not self._knows_array_limit

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        """Poll Slurm for all jobs, and read how those of their lanes and steps ended that have.

        Raises SlurmSilent when squeue cannot be asked.
        """
        own = {slurm_job(job.job_id): _whole_job(job) for job in jobs}
        inside = [one for one in intended if one.allocation is not None]
        polled = self._poll(list(own.values()), [one for one in intended if one.allocation is None])
        whole = self._with_gone_allocations(jobs, polled.reports)
        reports = {
            job.job_id: self._part(job, report)
            for job in jobs
            if (report := whole.get(slurm_job(job.job_id))) is not None
        }
        found = {one.id: steps.found(one, self._paths.submission(one.id)) for one in inside}
        return replace(polled, reports=reports, found={**polled.found, **found})

    def _with_gone_allocations(
        self, jobs: Sequence[LiveJob], reports: Mapping[str, JobReport]
    ) -> Mapping[str, JobReport]:
        """Return the reports; an allocation that Slurm does not know any more has ended.

        That is so when several polls in a row agree, since Slurm lists all that is alive.
        """
        gone = {job.allocation.job_id for job in jobs if job.allocation is not None} & {
            job_id for job_id, report in reports.items() if report.state is JobState.VANISHED
        }
        self._gone = Counter({job_id: self._gone[job_id] + 1 for job_id in gone})
        ended = JobReport(state=JobState.ENDED, raw="gone")
        missed = {job_id for job_id, polls in self._gone.items() if polls >= _GONE_POLLS}
        return {**reports, **dict.fromkeys(missed, ended)}

    def _part(self, job: LiveJob, report: JobReport) -> JobReport:
        """Return the report on an attempt, given that on its job."""
        if job.allocation is not None:
            return steps.step_report(report, self._paths.submission(job.submission), self.log(job))
        return lane_report(report, self._lane(job)) if job.lanes else report

    def _lane(self, job: LiveJob) -> Path:
        return lane_folder(self._paths.submission(job.submission), job.task_index)

    def _poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        """Poll squeue for everything, then sacct for what squeue lacks: two commands at most.

        An end whose cause squeue may not know waits for sacct, and counts as running meanwhile.
        After an array was refused for its size, the limit is asked for once instead of sacct.  A
        submission that has started left its job id in its folder; others are found by their unique
        name.  Raises SlurmSilent when squeue cannot be asked.
        """
        found: dict[str, str | None] = {}
        unstarted = []
        for submission in intended:
            started = started_job(self._paths.submission(submission.id))
            if started is None:
                unstarted.append(submission)
            else:
                found[submission.id] = started
        wait_for_sbatch(str(self._paths.submission(one.id) / SCRIPT_NAME) for one in unstarted)
        rows = self._slurm.queue() if jobs or unstarted else []
        self._accounting.error = None
        listed = {(row.job_id, row.name): row for row in rows}
        ours = {job: listed.get((job.job_id, job.job_name)) for job in jobs}
        partial = {j for j, row in ours.items() if row is not None and self._is_partial(j, row)}
        reports = {
            job.job_id: accounting.as_completing(row.report) if job in partial else row.report
            for job, row in ours.items()
            if row is not None
        }
        names = {row.name: row.array_id for row in rows if not row.is_refusal}
        found |= {one.id: names[one.job_name] for one in unstarted if one.job_name in names}
        missing = [one for one in unstarted if one.id not in found]
        unclear = {job: row for job, row in ours.items() if row is None or job in partial}
        if self._asks_array_limit:
            self._ask_array_limit()
        elif unclear or missing:
            more_reports, more_found = self._ask_accounting(unclear, missing, rows)
            reports |= more_reports
            found |= more_found
        return PollResult(
            reports=reports,
            found=found,
            accounting_error=self._accounting.error,
            accounting=self._accounting.is_enabled,
        )

    def _is_partial(self, job: LiveJob, row: JobRow) -> bool:
        """Whether squeue leaves open why a job ended: it never shows who cancelled one."""
        never_began = row.report.node is not None and not self.log(job).exists()
        return row.hides_step or (row.report.raw == "CANCELLED" and never_began)

    def _ask_array_limit(self) -> None:
        try:
            limit = self._slurm.array_limit()
        except SlurmSilent as exc:
            logger.warning("the limit on arrays is not known: %s", exc.message)
            limit = None
        self._knows_array_limit = limit is not None
        self._asks_array_limit = False
        if limit == 0:
            self._learn_array_limit(1)
            return
        # Without an answer, half of what was refused is tried.
        self._array_limit = limit or self._array_limit
        logger.info("an array holds %d attempts at most here", self._array_limit)

    def _ask_accounting(
        self,
        unclear: Mapping[LiveJob, JobRow | None],
        missing: Sequence[Submission],
        listed: Sequence[JobRow],
    ) -> tuple[dict[str, JobReport], dict[str, str | None]]:
        """Return the reports of jobs, and the ids of submissions, that squeue leaves unclear.

        `unclear` holds squeue's row of each job, None where there is none.
        """
        asked = askable([one.job_name for one in missing] + [job.job_name for job in unclear])
        dates = [one.intended_at for one in missing] + [job.since for job in unclear]
        rows = self._accounting.rows(asked, min((at for at in dates if at), default=None))
        own = {(job.job_id, job.job_name) for job in unclear}
        accounted = {r.job_id: r.report for r in rows or [] if (r.job_id, r.name) in own}
        ended = {job.job_id: row.report for job, row in unclear.items() if row is not None}
        reports = self._ends.completed(ended, accounted, self._accounting)
        known = [row for row in (*listed, *(rows or [])) if not row.is_refusal]
        arrays = {(row.array_id, row.name) for row in known}
        silent = rows is None and self._accounting.is_enabled is not False
        for job in (job for job, row in unclear.items() if row is None):
            if silent or job.job_name in asked:
                report = accounting.report_unlisted(job, accounted, arrays)
                reports[job.job_id] = (
                    replace(report, reason=self._accounting.error) if silent else report
                )
        if silent:
            return reports, {}
        accepted = {row.name: row.array_id for row in rows or [] if not row.is_refusal}
        found = {one.id: accepted.get(one.job_name) for one in missing if one.job_name in asked}
        return reports, found

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Cancel jobs with scancel; steps where an allocation or a lane's neighbours go on."""
        inside = [job for job in jobs if job.allocation is not None]
        others = [job for job in jobs if job.allocation is None]
        ids = to_cancel(others, [self._paths.submission(job.submission) for job in others])
        ids += steps.to_cancel(inside, [self._paths.submission(job.submission) for job in inside])
        if ids:
            self._slurm.cancel(ids)

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        """Set the nodes that pending jobs exclude, with scontrol."""
        ids = dict.fromkeys(slurm_job(job.job_id) for job in jobs if job.allocation is None)
        self._slurm.exclude(list(ids), excluded(resources))

    def log(self, job: LiveJob) -> Path:
        """Return the path of the job's output, as submitit names it."""
        return self._paths.submission(job.submission) / f"{job.job_id}_0_log.out"


def _whole_job(job: LiveJob) -> LiveJob:
    """Return the job that an attempt is, or is a part of."""
    if job.allocation is None:
        return replace(job, job_id=slurm_job(job.job_id))
    return replace(job, job_id=job.allocation.job_id, job_name=job.allocation.job_name)


def _request_of(submission: Submission) -> Resources:
    """Return the request of a submission without the nodes that it avoids, which change."""
    return replace(submission.resources, exclude=())


def _request_hint(run: str, key: str | None) -> str:
    change = f"`elmanctl resume {run} --set {key or 'slurm.partition'}=VALUE`"
    if key is None:
        change += ", or another key of `[slurm]`,"
    return f"change the request: {change} continues; elman.toml applies to the next search"


def _limit_hint(run: str) -> str:
    return (
        f"`elmanctl resume {run} --set search.max_jobs=N` queues no more than N at a time; "
        "your jobs outside this search count, too"
    )
