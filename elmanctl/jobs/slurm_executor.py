"""Attempts as Slurm jobs: each submission is one array, submitted once, found by its name."""

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from elmanctl.clock import from_text
from elmanctl.errors import SubmissionError
from elmanctl.jobs.executor import (
    JobReport,
    JobState,
    LiveJob,
    Resources,
    Sighting,
    SubmissionTooLarge,
    SubmissionUnknown,
)
from elmanctl.jobs.paths import RunPaths
from elmanctl.jobs.processes import command_lines
from elmanctl.jobs.slurm import AccountingOff, JobRow, Slurm, SlurmSilent, askable
from elmanctl.jobs.slurm_command import NoAnswer, run_command
from elmanctl.jobs.slurm_environment import job_environment
from elmanctl.jobs.submission import SCRIPT_NAME, excluded, make_script, write_pickles
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.records import Submission

# An answer that may follow an acceptance: the controller of the cluster was slow, not unwilling.
_MAYBE_ACCEPTED = ("timed out", "Unable to contact", "connection refused", "Connection reset")

SBATCH_TIMEOUT_S = 180

_TOO_LARGE = "Invalid job array specification"

# Slurm's own default of MaxArraySize, which few clusters lower.
_USUAL_ARRAY = 1001

# Accounting that fails is asked again after one more look, then three, seven, and at last nine.
_MOST_SKIPPED = 9

logger = logging.getLogger(__name__)


class SlurmExecutor:
    """Submits attempts as one Slurm array a submission."""

    name = "slurm"

    def __init__(self, paths: RunPaths, *, max_jobs: int, slurm: Slurm | None = None) -> None:
        self._paths = paths
        self._max_jobs = max_jobs
        self._slurm = slurm or Slurm()
        self._accounting: bool | None = None
        self._failures = 0
        self._failure: str | None = None
        self._skip = 0
        self._unheard: str | None = None
        self._array_limit = _USUAL_ARRAY
        self._knows_array_limit = False
        self._asks_array_limit = False

    @property
    def tasks_per_submission(self) -> int | None:
        """How many attempts one array may hold, 0 until the next look has asked for it."""
        return 0 if self._asks_array_limit else self._array_limit

    def check(self) -> None:
        """Raise EnvironmentNotReady when Slurm cannot be reached from here."""
        self._slurm.check()

    def free_slots(self, busy: Iterable[int | None]) -> Sequence[int | None]:
        """Return one unnumbered slot for each further job that may be queued."""
        return [None] * max(0, self._max_jobs - len(list(busy)))

    def submit(self, submission: Submission, folder: Path) -> str:
        """Write the pickles and the script, call sbatch, and return the array's job id.

        Raises SubmissionError when sbatch refused, SubmissionTooLarge when that was for the
        array's size, SubmissionUnknown when its answer is missing.
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
            raise SubmissionError(f"cannot run `sbatch`: {exc}") from exc
        job_id = done.stdout.strip().partition(";")[0]
        if done.code == 0 and job_id.isdigit():
            return job_id
        words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.code}"
        # Success without a job id, or an end by a signal: Slurm may have heard of it.
        unsure = done.code <= 0
        if unsure or any(text.casefold() in words.casefold() for text in _MAYBE_ACCEPTED):
            raise SubmissionUnknown(words)
        if _TOO_LARGE in words and len(submission.tasks) > 1:
            self._learn_array_limit(len(submission.tasks))
            raise SubmissionTooLarge(words)
        raise SubmissionError(
            words,
            hint="change what its jobs ask for with "
            f"`elmanctl resume {self._paths.folder.name} --set slurm.partition=NAME`, or another "
            "key of `[slurm]`; for the next search set it in elman.toml",
        )

    def _learn_array_limit(self, refused: int) -> None:
        # Where Slurm's configuration allows it, and yet it was refused, fewer are tried.
        self._array_limit = refused // 2
        self._asks_array_limit = not self._knows_array_limit

    def look(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> Sighting:
        """Ask squeue about everything, then one more command: sacct about what squeue lacks.

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
        self._unheard = None
        seen = {(row.job_id, row.name): row.report for row in rows}
        reports = {
            job.job_id: seen[job.job_id, job.job_name]
            for job in jobs
            if (job.job_id, job.job_name) in seen
        }
        names = {row.name: row.array_id for row in rows if not row.is_refusal}
        found |= {one.id: names[one.job_name] for one in unstarted if one.job_name in names}
        gone = [job for job in jobs if job.job_id not in reports]
        missing = [one for one in unstarted if one.id not in found]
        if self._asks_array_limit:
            self._ask_array_limit()
        elif gone or missing:
            more_reports, more_found = self._ask_accounting(gone, missing)
            reports |= more_reports
            found |= more_found
        return Sighting(
            reports=reports, found=found, unheard=self._unheard, accounting=self._accounting
        )

    def _ask_array_limit(self) -> None:
        try:
            limit = self._slurm.array_limit()
        except SlurmSilent as exc:
            logger.warning("the limit on arrays is not known: %s", exc.message)
            limit = None
        # Without an answer the half of what was refused is tried.
        self._array_limit = limit or self._array_limit
        self._knows_array_limit = limit is not None
        self._asks_array_limit = False
        logger.info("an array holds %d attempts at most here", self._array_limit)

    def _ask_accounting(
        self, gone: Sequence[LiveJob], missing: Sequence[Submission]
    ) -> tuple[dict[str, JobReport], dict[str, str | None]]:
        """Return reports of jobs, and ids of submissions, that squeue does not list."""
        asked = askable([one.job_name for one in missing] + [job.job_name for job in gone])
        dates = [one.intended_at for one in missing] + [job.since for job in gone]
        rows = self._accounting_rows(asked, min((at for at in dates if at), default=None))
        if rows is None and self._accounting is not False:
            vanished = JobReport(state=JobState.VANISHED, reason=self._unheard)
            return {job.job_id: vanished for job in gone}, {}
        known = {(row.job_id, row.name): row.report for row in rows or []}
        reports = {}
        for job in gone:
            report = known.get((job.job_id, job.job_name))
            if job.job_name not in asked:
                continue
            if report is None or report.state is not JobState.ENDED:
                # Accounting lags behind: a job that left squeue is not running because of it.
                report = JobReport(state=JobState.VANISHED)
            reports[job.job_id] = report
        arrays = {row.name: row.array_id for row in rows or [] if not row.is_refusal}
        found = {one.id: arrays.get(one.job_name) for one in missing if one.job_name in asked}
        return reports, found

    def _accounting_rows(self, names: Sequence[str], since: str | None) -> list[JobRow] | None:
        """Return sacct's answer, None without one; accounting that is off is asked once only."""
        if self._accounting is False:
            return None
        if self._skip:
            self._skip -= 1
            self._unheard = self._failure
            return None
        # Room for clocks that differ between this machine and the cluster's.
        start = from_text(since).astimezone() - timedelta(hours=1) if since else None
        try:
            rows = self._slurm.accounting(
                names, since=start.strftime("%Y-%m-%dT%H:%M:%S") if start else "1970-01-01"
            )
        except AccountingOff as exc:
            logger.warning("this cluster keeps no accounting: %s", exc.message)
            self._accounting = False
            return None
        except SlurmSilent as exc:
            self._failures += 1
            self._skip = min(2**self._failures - 1, _MOST_SKIPPED)
            self._unheard = self._failure = exc.message
            logger.warning("%s; not asked in the next %d looks", exc.message, self._skip)
            return None
        self._accounting, self._failures = True, 0
        return rows

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Cancel jobs by scancel."""
        if jobs:
            self._slurm.cancel([job.job_id for job in jobs])

    def avoid(self, jobs: Sequence[LiveJob], resources: Mapping[str, Any]) -> None:
        """Change what jobs that wait exclude, by scontrol."""
        self._slurm.exclude([job.job_id for job in jobs], excluded(Resources.decode(resources)))

    def log(self, job: LiveJob) -> Path:
        """Return the file of the job's output, as submitit names it."""
        return self._paths.submission(job.submission) / f"{job.job_id}_0_log.out"


def _wait_for_sbatch(scripts: Iterable[str]) -> None:
    """Wait while a dead controller's sbatch is still talking to Slurm: its answer decides."""
    wanted = set(scripts)
    while wanted and any(
        "sbatch" in line and any(script in line for script in wanted) for _, line in command_lines()
    ):
        time.sleep(0.2)


def _started_job(folder: Path) -> str | None:
    """Return the array's job id by the links that its tasks make when they start."""
    for link in folder.glob("*_submitted.pkl"):
        job_id = link.name.partition("_")[0]
        if job_id.isdigit():
            return job_id
    return None
