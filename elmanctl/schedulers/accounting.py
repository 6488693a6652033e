"""Slurm accounting (sacct): jobs that squeue no longer lists, and ends that it reports in part."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from elmanctl.clock import from_text
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob
from elmanctl.schedulers.slurm import AccountingOff, Slurm, SlurmSilent
from elmanctl.schedulers.slurm_output import JobRow

# Backoff after a failure: the number of polls that do not ask sacct is 1, 3, 7, and at most this.
_MOST_SKIPPED = 9

# An end waits so many polls for accounting to complete it: accounting lags behind by seconds, and
# may be down for longer.
_LAGGING_POLLS = 2
_DOWN_POLLS = 5

logger = logging.getLogger(__name__)


class Accounting:
    """sacct, not asked again where accounting is disabled, and with backoff after a failure.

    `error` is why it did not answer in this poll; `is_enabled` is None until it was needed.
    """

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._failures = 0
        self._failure: str | None = None
        self._skip = 0
        self.error: str | None = None
        self.is_enabled: bool | None = None

    def rows(self, names: Sequence[str], since: str | None) -> list[JobRow] | None:
        """Return sacct's answer, None without one."""
        if self.is_enabled is False:
            return None
        if self._skip:
            self._skip -= 1
            self.error = self._failure
            return None
        # Tolerance for a clock that differs from the cluster's.
        start = from_text(since).astimezone() - timedelta(hours=1) if since else None
        try:
            rows = self._slurm.accounting(
                names, since=start.strftime("%Y-%m-%dT%H:%M:%S") if start else "1970-01-01"
            )
        except AccountingOff as exc:
            logger.warning("this cluster keeps no accounting: %s", exc.message)
            self.is_enabled = False
            return None
        except SlurmSilent as exc:
            self._failures += 1
            self._skip = min(2**self._failures - 1, _MOST_SKIPPED)
            self.error = self._failure = exc.message
            logger.warning("%s; not asked in the next %d polls", exc.message, self._skip)
            return None
        self.is_enabled, self._failures = True, 0
        return rows


class PartialEnds:
    """Ends that squeue reports in part: without the signal of a step, or who cancelled the job.

    Under `enable_stepmgr` slurmctld does not learn how a step ended; accounting does.
    """

    def __init__(self) -> None:
        self._polls: dict[str, int] = {}

    def completed(
        self,
        ended: Mapping[str, JobReport],
        accounted: Mapping[str, JobReport],
        accounting: Accounting,
    ) -> dict[str, JobReport]:
        """Return the ends by job id, completed by what accounting knows of them.

        An end that accounting may still complete counts as a running job until the next poll.
        """
        if accounting.is_enabled is False:
            return dict(ended)
        most = _LAGGING_POLLS if accounting.error is None else _DOWN_POLLS
        judged = {}
        for job_id, own in ended.items():
            known = accounted.get(job_id)
            self._polls[job_id] = self._polls.get(job_id, 0) + 1
            if known is not None and known.state is JobState.ENDED:
                judged[job_id] = _both(own, known)
            elif self._polls[job_id] >= most:
                judged[job_id] = own
            else:
                judged[job_id] = as_completing(own)
        self._polls = {job: n for job, n in self._polls.items() if job in ended}
        return judged


def as_completing(own: JobReport) -> JobReport:
    """Return the report of a job that ended, as long as accounting may complete it."""
    return replace(own, state=JobState.RUNNING, raw="COMPLETING", exit_code=None)


def _both(own: JobReport, known: JobReport) -> JobReport:
    """Return squeue's report of an end, with what only accounting knows."""
    return replace(
        own,
        raw=known.raw,
        reason=own.reason or known.reason,
        node=own.node or known.node,
        exit_code=known.exit_code if own.exit_code is None else own.exit_code,
        signal=known.signal,
    )


def report_unlisted(
    job: LiveJob, accounted: Mapping[str, JobReport], arrays: Collection[tuple[str, str]]
) -> JobReport:
    """Return the report of a job that squeue does not list.

    `accounted` are accounting's reports by job id, `arrays` the ids and names of the arrays of
    which Slurm knows any task.
    """
    report = accounted.get(job.job_id)
    if report is None:
        array = job.job_id.partition("_")[0]
        return JobReport(state=JobState.VANISHED, has_siblings=(array, job.job_name) in arrays)
    if report.state is JobState.ENDED:
        return report
    return replace(report, is_unlisted=True)
