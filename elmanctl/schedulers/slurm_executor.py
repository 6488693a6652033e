"""Attempts as Slurm jobs: each submission is one array, submitted once, found by its name."""

import contextlib
import errno
import logging
import os
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from elmanctl.command import NoAnswer, run_command
from elmanctl.errors import SubmissionError
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.records import Resources, Submission
from elmanctl.run.paths import RunPaths
from elmanctl.run.processes import command_lines
from elmanctl.schedulers.accounting import Accounting, Ends, not_over, report_unlisted
from elmanctl.schedulers.executor import (
    JobReport,
    JobState,
    LiveJob,
    Sighting,
    SubmissionDeferred,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.schedulers.sbatch_answer import Cause, Outcome, SbatchAnswer, read_answer
from elmanctl.schedulers.slurm import JobRow, Slurm, SlurmSilent, askable
from elmanctl.schedulers.slurm_environment import job_environment
from elmanctl.schedulers.submission import SCRIPT_NAME, excluded, make_script, write_pickles

SBATCH_TIMEOUT_S = 180

# What hangs in the kernel, at a file server that is away, outlives SIGKILL.
_KILLED_S = 5.0

# What is no program that can be run, now or later: a script without `#!` is one, too.
_NO_PROGRAM = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ELOOP),
    errno.E2BIG,
)

# Slurm's own default of MaxArraySize, which few clusters lower.
_USUAL_ARRAY = 1001

logger = logging.getLogger(__name__)


class SlurmExecutor:
    """Submits attempts as one Slurm array a submission, or as one job each where there are none."""

    name = "slurm"

    def __init__(self, paths: RunPaths, *, max_jobs: int, slurm: Slurm | None = None) -> None:
        self._paths = paths
        self._max_jobs = max_jobs
        self._slurm = slurm or Slurm()
        self._accounting = Accounting(self._slurm)
        self._ends = Ends()
        self._array_limit = _USUAL_ARRAY
        self._knows_array_limit = False
        self._asks_array_limit = False
        self._has_arrays = True
        self._taken: list[Resources] = []
        self._banner: str | None = None

    @property
    def tasks_per_submission(self) -> int | None:
        """How many attempts one array may hold, 0 until the next look has asked for it."""
        return 0 if self._asks_array_limit else self._array_limit

    @property
    def has_arrays(self) -> bool:
        """Whether this cluster takes job arrays, as far as is known."""
        return self._has_arrays

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady when Slurm is not here, or does not answer when asked."""
        self._slurm.check(asks=asks)

    def free_slots(self, busy: Iterable[int | None]) -> Sequence[int | None]:
        """Return one unnumbered slot for each further job that may be queued."""
        return [None] * max(0, self._max_jobs - len(list(busy)))

    def submit(self, submission: Submission, folder: Path) -> str:
        """Write the pickles and the script, call sbatch, and return the id of the job or array.

        Raises SubmissionError when sbatch refused for good, SubmissionDeferred when it did for
        now, SubmissionTooLarge when that was for the array's size, SubmissionUnknown when its
        answer is missing.
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
            # Else no process, no memory, a file server that is away: this machine's, and for now.
            kind = SubmissionError if exc.errno in _NO_PROGRAM else SubmissionDeferred
            raise kind(f"cannot run `sbatch`: {exc}") from exc
        answer = read_answer(done.code, done.stdout, done.stderr)
        if answer.job_id is not None:
            self._note_taken(submission)
            return answer.job_id
        if done.code == 0:
            self._tell_banner(answer.words)
            raise SubmissionUnknown(answer.words, is_taken=True)
        if answer.cause is Cause.LOST:
            raise SubmissionUnknown(answer.words)
        job_id = None if answer.is_certain else self._listed(submission, answer)
        if job_id is None:
            raise self._refusal(submission, answer)
        return job_id

    def _refusal(self, submission: Submission, answer: SbatchAnswer) -> SubmissionError:
        """Return the error that says what kind of refusal it was."""
        if answer.cause is Cause.ARRAY and submission.is_array:
            self._learn_array_limit(len(submission.tasks))
            return SubmissionTooLarge(answer.words)
        is_deferred = answer.outcome is Outcome.NOT_NOW
        if answer.cause is Cause.POLICY:
            # The same words tell of a limit on jobs, and of what no job may ask for.
            is_deferred = len(submission.tasks) > 1 or bool(self._taken) or self._has_jobs()
        if answer.cause is Cause.UNHEARD:
            # The request is all right: the same was taken before.
            is_deferred = _asked_for(submission) in self._taken
        if not is_deferred:
            return SubmissionError(answer.words, hint=_request_hint(self._run, answer.key))
        is_limit = answer.cause in (Cause.LIMIT, Cause.POLICY)
        hint = _limit_hint(self._run) if is_limit else None
        if answer.cause is Cause.CLOSED:
            hint = f"`elmanctl resume {self._run} --set slurm.partition=NAME` goes elsewhere"
        return SubmissionDeferred(answer.words, hint=hint, is_limit=is_limit)

    @property
    def _run(self) -> str:
        return self._paths.folder.name

    def _note_taken(self, submission: Submission) -> None:
        asked = _asked_for(submission)
        if asked not in self._taken:
            self._taken.append(asked)

    def _listed(self, submission: Submission, answer: SbatchAnswer) -> str | None:
        """Return the job of this name that squeue lists although sbatch failed, None without one.

        Raises SubmissionUnknown where squeue cannot be asked.
        """
        try:
            rows = self._slurm.queue()
        except SlurmSilent:
            raise SubmissionUnknown(answer.words) from None
        named = (r for r in rows if r.name == submission.job_name and not r.is_refusal)
        return next((row.array_id for row in named), None)

    def _has_jobs(self) -> bool:
        """Whether jobs of this user are waiting or running, which a limit on jobs would count."""
        try:
            return any(row.report.state is not JobState.ENDED for row in self._slurm.queue())
        except SlurmSilent:
            return True

    def _tell_banner(self, words: str) -> None:
        # The id of the job, and the time maybe, are other ones each time.
        banner = re.sub(r"\d+", "", words)
        level = logging.DEBUG if banner == self._banner else logging.WARNING
        self._banner = banner
        logger.log(level, "sbatch says more than a job id, jobs are found by their name: %s", words)

    def _learn_array_limit(self, refused: int) -> None:
        if refused == 1:
            self._has_arrays, self._array_limit = False, 1
            logger.warning("this cluster takes no job arrays: each attempt is a job of its own")
            return
        # Where Slurm's configuration allows it, and yet it was refused, fewer are tried.
        self._array_limit = refused // 2
        self._asks_array_limit = not self._knows_array_limit

    def look(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> Sighting:
        """Ask squeue about everything, then one more command: sacct about what squeue lacks.

        An end whose cause squeue may not know waits for sacct, and is not over meanwhile.

        When an array was refused for its size, its limit is asked for in place of sacct, once.
        A submission that has started left its job id in its folder; others are known by their
        unique name.  Raises SlurmSilent when squeue cannot be asked.
        """
        found: dict[str, str | None] = {}
        unstarted = []
        for submission in intended:
            started = _started_job(self._paths.submission(submission.id))
            if started is None:
                unstarted.append(submission)
            else:
                found[submission.id] = started
        _wait_for_sbatch(str(self._paths.submission(one.id) / SCRIPT_NAME) for one in unstarted)
        rows = self._slurm.queue() if jobs or unstarted else []
        self._accounting.unheard = None
        listed = {(row.job_id, row.name): row for row in rows}
        ours = {job: listed.get((job.job_id, job.job_name)) for job in jobs}
        half = {job for job, row in ours.items() if row is not None and self._tells_half(job, row)}
        reports = {
            job.job_id: not_over(row.report) if job in half else row.report
            for job, row in ours.items()
            if row is not None
        }
        names = {row.name: row.array_id for row in rows if not row.is_refusal}
        found |= {one.id: names[one.job_name] for one in unstarted if one.job_name in names}
        missing = [one for one in unstarted if one.id not in found]
        unclear = {job: row for job, row in ours.items() if row is None or job in half}
        if self._asks_array_limit:
            self._ask_array_limit()
        elif unclear or missing:
            more_reports, more_found = self._ask_accounting(unclear, missing, rows)
            reports |= more_reports
            found |= more_found
        return Sighting(
            reports=reports,
            found=found,
            unheard=self._accounting.unheard,
            accounting=self._accounting.is_kept,
        )

    def _tells_half(self, job: LiveJob, row: JobRow) -> bool:
        """Whether squeue leaves open why a job ended: it never says who cancelled one."""
        began_nothing = row.report.node is not None and not self.log(job).exists()
        return row.hides_step or (row.report.raw == "CANCELLED" and began_nothing)

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
        # Without an answer the half of what was refused is tried.
        self._array_limit = limit or self._array_limit
        logger.info("an array holds %d attempts at most here", self._array_limit)

    def _ask_accounting(
        self,
        unclear: Mapping[LiveJob, JobRow | None],
        missing: Sequence[Submission],
        listed: Sequence[JobRow],
    ) -> tuple[dict[str, JobReport], dict[str, str | None]]:
        """Return reports of jobs, and ids of submissions, on which squeue does not say enough.

        `unclear` holds squeue's row of each job, None where there is none.
        """
        asked = askable([one.job_name for one in missing] + [job.job_name for job in unclear])
        dates = [one.intended_at for one in missing] + [job.since for job in unclear]
        rows = self._accounting.rows(asked, min((at for at in dates if at), default=None))
        own = {(job.job_id, job.job_name) for job in unclear}
        told = {row.job_id: row.report for row in rows or [] if (row.job_id, row.name) in own}
        ended = {job.job_id: row.report for job, row in unclear.items() if row is not None}
        reports = self._ends.completed(ended, told, self._accounting)
        known = [row for row in (*listed, *(rows or [])) if not row.is_refusal]
        arrays = {(row.array_id, row.name) for row in known}
        silent = rows is None and self._accounting.is_kept is not False
        for job in (job for job, row in unclear.items() if row is None):
            if silent or job.job_name in asked:
                report = report_unlisted(job, told, arrays)
                reports[job.job_id] = (
                    replace(report, reason=self._accounting.unheard) if silent else report
                )
        if silent:
            return reports, {}
        accepted = {row.name: row.array_id for row in rows or [] if not row.is_refusal}
        found = {one.id: accepted.get(one.job_name) for one in missing if one.job_name in asked}
        return reports, found

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Cancel jobs by scancel."""
        if jobs:
            self._slurm.cancel([job.job_id for job in jobs])

    def avoid(self, jobs: Sequence[LiveJob], resources: Resources) -> None:
        """Change what jobs that wait exclude, by scontrol."""
        self._slurm.exclude([job.job_id for job in jobs], excluded(resources))

    def log(self, job: LiveJob) -> Path:
        """Return the file of the job's output, as submitit names it."""
        return self._paths.submission(job.submission) / f"{job.job_id}_0_log.out"


def _asked_for(submission: Submission) -> Resources:
    """Return the request of a submission without the nodes that it avoids: those change."""
    return replace(submission.resources, exclude=())


def _request_hint(run: str, key: str | None) -> str:
    change = f"`elmanctl resume {run} --set {key or 'slurm.partition'}=VALUE`"
    if key is None:
        change += ", or another key of `[slurm]`,"
    return f"change what its jobs ask for: {change} goes on; elman.toml is for the next search"


def _limit_hint(run: str) -> str:
    return (
        f"`elmanctl resume {run} --set search.max_jobs=N` asks for no more than N at a time; "
        "jobs of yours outside this search count as well"
    )


def _wait_for_sbatch(scripts: Iterable[str]) -> None:
    """Wait while a dead controller's sbatch is still talking to Slurm: its answer decides.

    After the time that its own controller would have given it, it is killed as that one would have.
    Raises SlurmSilent where it cannot even be killed: it may yet submit.
    """
    wanted = set(scripts)
    deadline = time.monotonic() + SBATCH_TIMEOUT_S
    while wanted and (alive := list(_sbatch_of(wanted))):
        late_s = time.monotonic() - deadline
        if late_s > _KILLED_S:
            raise SlurmSilent(f"sbatch of an earlier controller cannot be killed: {alive}")
        if late_s > 0:
            logger.warning("sbatch of an earlier controller does not end, and is killed: %s", alive)
            for process in alive:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
        time.sleep(0.2)


def _sbatch_of(scripts: Collection[str]) -> Iterator[int]:
    """Yield the processes that run sbatch, or a wrapper of that name, on one of these scripts."""
    wanted = re.compile(rf"(?:^|[/ ])sbatch(?: --\S+)* (?:{'|'.join(map(re.escape, scripts))}) *$")
    yield from (process for process, line in command_lines() if wanted.search(line))


def _started_job(folder: Path) -> str | None:
    """Return the array's job id by the links that its tasks make when they start."""
    for link in folder.glob("*_submitted.pkl"):
        job_id = link.name.partition("_")[0]
        if job_id.isdigit():
            return job_id
    return None
