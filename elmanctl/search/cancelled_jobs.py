"""Cancelled jobs: what the scheduler reports of them after they were cancelled."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.run_state import RunState
from elmanctl.schedulers.executor import Executor, JobReport, JobState
from elmanctl.search.poll import live_job


class Now(StrEnum):
    """State of a job after it was cancelled."""

    GONE = "gone"
    ENDING = "ending"
    WAITING = "waiting"
    RUNNING = "running"
    UNKNOWN = "not known"

    @property
    def is_there(self) -> bool:
        """Whether the job goes on in spite of the cancellation."""
        return self in (Now.WAITING, Now.RUNNING)


# States of jobs that are ending; scancel puts a job into the first at once.
_ENDING = ("COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")


def jobs_left(
    state: RunState, names: Iterable[str], executor: Executor
) -> tuple[Mapping[str, Now], str | None]:
    """Return the state of each evaluation's job unless its end is recorded.

    The second item is the reason why the scheduler could not be queried, if it could not.
    """
    live = {
        name: attempt
        for name in names
        if (attempt := state.evaluations[name].last_attempt) and not attempt.state.is_finished
    }
    jobs = {
        name: live_job(state, attempt)
        for name, attempt in live.items()
        if attempt.job_id is not None
    }
    try:
        reports = executor.poll(list(jobs.values()), []).reports if jobs else {}
    except EnvironmentNotReady as exc:
        return dict.fromkeys(live, Now.UNKNOWN), exc.message
    known = {name: reports.get(job.job_id) for name, job in jobs.items()}
    return {name: _now(known.get(name)) for name in live}, None


def _now(report: JobReport | None) -> Now:
    if report is None:
        return Now.UNKNOWN
    if report.is_unlisted or report.state in (JobState.ENDED, JobState.VANISHED):
        return Now.GONE
    if report.raw.partition(" ")[0] in _ENDING:
        return Now.ENDING
    return Now.WAITING if report.state is JobState.PENDING else Now.RUNNING
