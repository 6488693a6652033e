"""Attempts as Slurm jobs: each submission is one array, submitted once, found by its name."""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from elmanctl.clock import from_text
from elmanctl.errors import SubmissionError
from elmanctl.jobs.executor import JobReport, JobState, LiveJob, SubmissionUnknown
from elmanctl.jobs.paths import RunPaths
from elmanctl.jobs.processes import command_lines
from elmanctl.jobs.slurm import Slurm, SlurmSilent
from elmanctl.jobs.submission import SCRIPT_NAME, make_script, write_pickles
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.records import Submission

# An answer that may follow an acceptance: the controller of the cluster was slow, not unwilling.
_MAYBE_ACCEPTED = ("timed out", "Unable to contact", "connection refused", "Connection reset")

SBATCH_TIMEOUT_S = 180


class SlurmExecutor:
    """Submits attempts as one Slurm array a submission."""

    name = "slurm"
    tasks_per_submission = None

    def __init__(self, paths: RunPaths, *, max_jobs: int, slurm: Slurm | None = None) -> None:
        self._paths = paths
        self._max_jobs = max_jobs
        self._slurm = slurm or Slurm()

    def check(self) -> None:
        """Raise EnvironmentNotReady when Slurm cannot be reached from here."""
        self._slurm.check()

    def free_slots(self, busy: Iterable[int | None]) -> Sequence[int | None]:
        """Return one unnumbered slot for each further job that may be queued."""
        return [None] * max(0, self._max_jobs - len(list(busy)))

    def submit(self, submission: Submission, folder: Path) -> str:
        """Write the pickles and the script, call sbatch, and return the array's job id.

        Raises SubmissionError when sbatch refused, SubmissionUnknown when its answer is missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_pickles(submission, folder, self._paths)
        script = folder / SCRIPT_NAME
        text = make_script(submission, folder, self._paths.code)
        write_atomically(script, text.encode())
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", str(script)],
                capture_output=True,
                text=True,
                timeout=SBATCH_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
                # SBATCH_* would outrank the script, the job's name among it.
                env={k: v for k, v in os.environ.items() if not k.startswith("SBATCH_")},
                # Its own session: a Ctrl-C meant for the controller must not cut a submission.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as exc:
            raise SubmissionUnknown("`sbatch` did not answer") from exc
        except OSError as exc:
            raise SubmissionError(f"cannot run `sbatch`: {exc}") from exc
        job_id = done.stdout.strip().partition(";")[0]
        if done.returncode == 0 and job_id.isdigit():
            return job_id
        words = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        # Success without a job id, or an end by a signal: Slurm may have heard of it.
        unsure = done.returncode <= 0
        if unsure or any(text.casefold() in words.casefold() for text in _MAYBE_ACCEPTED):
            raise SubmissionUnknown(words)
        raise SubmissionError(
            words, hint="check `[slurm]` in elman.toml, or pass `--template` or `--partition`"
        )

    def find(self, submission: Submission, folder: Path) -> str | None:
        """Return the array's job id if this submission was accepted.

        A job that has started left its id in the folder; others are known by their unique name.
        """
        started = _started_job(folder)
        if started is not None:
            return started
        script = str(folder / SCRIPT_NAME)
        while any(script in line and "sbatch" in line for _, line in command_lines()):
            # A dead controller's sbatch is still talking to Slurm; its answer decides.
            time.sleep(0.2)
        assert submission.intended_at is not None
        # Room for clocks that differ between this machine and the cluster's.
        since = from_text(submission.intended_at).astimezone() - timedelta(hours=1)
        return self._slurm.find_name(submission.job_name, since=since.strftime("%Y-%m-%dT%H:%M:%S"))

    def reports(self, jobs: Sequence[LiveJob]) -> Mapping[str, JobReport]:
        """Ask squeue about all jobs, and sacct about those that squeue no longer lists."""
        wanted = {job.job_id for job in jobs}
        try:
            rows = self._slurm.queue()
        except SlurmSilent as exc:
            unknown = JobReport(state=JobState.UNKNOWN, reason=exc.message)
            return dict.fromkeys(wanted, unknown)
        reports = {row.job_id: row.report for row in rows if row.job_id in wanted}
        # squeue has no exit code: what ended is asked of sacct too, where sacct answers.
        ask = {job_id for job_id in wanted if job_id not in reports} | {
            job_id for job_id, report in reports.items() if report.state is JobState.ENDED
        }
        if ask:
            reports.update(self._ended(ask, reports))
        return reports

    def _ended(self, ask: set[str], listed: Mapping[str, JobReport]) -> dict[str, JobReport]:
        try:
            known = self._slurm.accounting(ask)
        except SlurmSilent:
            known = {}
        vanished = JobReport(state=JobState.VANISHED)
        answers = {}
        for job_id in ask:
            report = known.get(job_id)
            if report is None or (report.state is not JobState.ENDED):
                # Accounting lags behind: a job that left squeue is not running because of it.
                report = listed.get(job_id, vanished)
            answers[job_id] = report
        return answers

    def cancel(self, jobs: Sequence[LiveJob]) -> None:
        """Cancel jobs by scancel."""
        if jobs:
            self._slurm.cancel([job.job_id for job in jobs])

    def log(self, job: LiveJob) -> Path:
        """Return the file of the job's output, as submitit names it."""
        return self._paths.submission(job.submission) / f"{job.job_id}_0_log.out"


def _started_job(folder: Path) -> str | None:
    """Return the array's job id by the links that its tasks make when they start."""
    for link in folder.glob("*_submitted.pkl"):
        job_id = link.name.partition("_")[0]
        if job_id.isdigit():
            return job_id
    return None
