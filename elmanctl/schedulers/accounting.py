"""Asking accounting about jobs that squeue does not list, or whose end it does not tell."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from elmanctl.clock import from_text
from elmanctl.schedulers.executor import JobReport, JobState, LiveJob
from elmanctl.schedulers.slurm import AccountingOff, JobRow, Slurm, SlurmSilent

# Accounting that fails is asked again after one more look, then three, seven, and at last nine.
_MOST_SKIPPED = 9

# How many looks an end waits for what accounting adds to it: it lags behind by seconds, and may
# be down for longer.
_LAGGING_LOOKS = 2
_SILENT_LOOKS = 5

logger = logging.getLogger(__name__)


class Accounting:
    """sacct, and whether it can be asked: off is for good, silence for a few looks.

    `unheard` is why it did not answer in this look; `is_kept` whether there is any, None while
    nobody had to know.
    """

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._failures = 0
        self._failure: str | None = None
        self._skip = 0
        self.unheard: str | None = None
        self.is_kept: bool | None = None

    def rows(self, names: Sequence[str], since: str | None) -> list[JobRow] | None:
        """Return sacct's answer, None without one; accounting that is off is asked once only."""
        if self.is_kept is False:
            return None
        if self._skip:
            self._skip -= 1
            self.unheard = self._failure
            return None
        # Room for clocks that differ between this machine and the cluster's.
        start = from_text(since).astimezone() - timedelta(hours=1) if since else None
        try:
            rows = self._slurm.accounting(
                names, since=start.strftime("%Y-%m-%dT%H:%M:%S") if start else "1970-01-01"
            )
        except AccountingOff as exc:
            logger.warning("this cluster keeps no accounting: %s", exc.message)
            self.is_kept = False
            return None
        except SlurmSilent as exc:
            self._failures += 1
            self._skip = min(2**self._failures - 1, _MOST_SKIPPED)
            self.unheard = self._failure = exc.message
            logger.warning("%s; not asked in the next %d looks", exc.message, self._skip)
            return None
        self.is_kept, self._failures = True, 0
        return rows


class Ends:
    """The ends of which squeue tells half: no signal of a step, or not who cancelled a job.

    Under `enable_stepmgr` slurmctld does not hear how a step ended; accounting does.
    """

    def __init__(self) -> None:
        self._looks: dict[str, int] = {}

    def completed(
        self,
        ended: Mapping[str, JobReport],
        told: Mapping[str, JobReport],
        accounting: Accounting,
    ) -> dict[str, JobReport]:
        """Return the ends by job id, with what accounting adds to them.

        One on which accounting may yet tell is not over until the next look.
        """
        if accounting.is_kept is False:
            return dict(ended)
        most = _LAGGING_LOOKS if accounting.unheard is None else _SILENT_LOOKS
        judged = {}
        for job_id, own in ended.items():
            known = told.get(job_id)
            self._looks[job_id] = self._looks.get(job_id, 0) + 1
            if known is not None and known.state is JobState.ENDED:
                judged[job_id] = _both(own, known)
            elif self._looks[job_id] >= most:
                judged[job_id] = own
            else:
                judged[job_id] = not_over(own)
        self._looks = {job: n for job, n in self._looks.items() if job in ended}
        return judged


def not_over(own: JobReport) -> JobReport:
    """Return the report of a job that ended and of which more is to be heard."""
    return replace(own, state=JobState.RUNNING, raw="COMPLETING", exit_code=None)


def _both(own: JobReport, known: JobReport) -> JobReport:
    """Return what squeue says of an end, with accounting's word where that says more."""
    return replace(
        own,
        raw=known.raw,
        reason=own.reason or known.reason,
        node=own.node or known.node,
        exit_code=known.exit_code if own.exit_code is None else own.exit_code,
        signal=known.signal,
    )


def report_unlisted(
    job: LiveJob, told: Mapping[str, JobReport], arrays: Collection[tuple[str, str]]
) -> JobReport:
    """Return what is known of a job that squeue does not list.

    `told` is accounting's answer by job id, `arrays` are the job ids and names of the arrays of
    which Slurm knows any task.
    """
    report = told.get(job.job_id)
    if report is None:
        array = job.job_id.partition("_")[0]
        return JobReport(state=JobState.VANISHED, has_siblings=(array, job.job_name) in arrays)
    if report.state is JobState.ENDED:
        return report
    return replace(report, is_unlisted=True)
