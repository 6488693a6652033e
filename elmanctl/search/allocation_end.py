"""End of the allocation in which a controller works: what is begun before it, and what is cut."""

import logging
import math
import time
from collections.abc import Callable

from elmanctl import clock
from elmanctl.errors import EnvironmentNotReady, SearchPaused
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Resources
from elmanctl.schedulers.executor import AllocationExecutor
from elmanctl.search.poll import live_job
from elmanctl.search.session import Session
from elmanctl.search.workload import attempt_resources

logger = logging.getLogger(__name__)

# SIGUSR2 comes so long before the end, as to jobs; attempts are ended when there was time for a
# checkpoint.
WARNING_S = 90.0
CUT_S = 30.0

_AGAIN_S = 5.0

# The longest evaluation so far is not the longest there can be.
_MARGIN = 1.2


def needed_s(state: RunState | None, resources: Resources) -> float:
    """Return how long an evaluation takes: as the longest so far and a margin, or its limit."""
    limit_s = 60.0 * resources.timeout_min
    known = [
        attempt.elapsed_s
        for evaluation in ({} if state is None else state.evaluations).values()
        if evaluation.state is State.COMPLETED
        for attempt in evaluation.attempts[-1:]
        if attempt.elapsed_s is not None
    ]
    return min(limit_s, _MARGIN * max(known)) if known else limit_s


def shortage(left_s: float | None, needed: float) -> str | None:
    """Return why no evaluation is begun in what is left of an allocation, None if there is room."""
    if left_s is None or left_s - WARNING_S >= needed:
        return None
    if left_s <= 0:
        return "the allocation has ended"
    return (
        f"the allocation ends in {clock.format_rough(left_s)}, and an evaluation needs "
        f"{clock.format_rough(needed)}, with {WARNING_S:.0f} s to spare"
    )


def has_time(session: Session, executor: AllocationExecutor, *, is_idle: bool) -> bool:
    """Whether an evaluation can end before its allocation does.

    Raises SearchPaused when it cannot and the search `is_idle`: no attempt is live.
    """
    resources = attempt_resources(session.settings, session.run["executor"], {})
    reason = shortage(executor.left_s, needed_s(session.state, resources))
    if reason is not None and is_idle:
        raise SearchPaused(
            reason,
            hint=f"`elmanctl resume {session.run['name']} --inside` in the next allocation goes "
            "on; without `--inside` each evaluation is a job",
        )
    return reason is None


class AllocationEnd:
    """Ends the attempts of an allocation before that does it, so that none loses its progress."""

    def __init__(
        self,
        session: Session,
        executor: AllocationExecutor,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._executor = executor
        self._now = now
        self._warned: set[str] = set()
        self._next_cut = -math.inf

    def look(self) -> None:
        """Announce the end to attempts at work, or end them, if it is near."""
        left_s, state = self._executor.left_s, self._session.state
        if left_s is None or left_s > WARNING_S:
            return
        jobs = [
            live_job(state, attempt)
            for _, attempt in state.live_attempts()
            if attempt.job_id is not None
        ]
        try:
            if left_s <= CUT_S:
                # A step takes a while to end, and scancel is not repeated in each turn.
                if jobs and self._now() >= self._next_cut:
                    self._next_cut = self._now() + _AGAIN_S
                    self._executor.cut(jobs)
                return
            new = [job for job in jobs if job.job_id not in self._warned]
            if new:
                logger.warning("the allocation ends in %.0f s: attempts save their state", left_s)
                self._executor.warn(new)
                self._warned |= {job.job_id for job in new}
        except EnvironmentNotReady as exc:
            # Done again in the next turn.
            logger.warning("%s", exc.message)
