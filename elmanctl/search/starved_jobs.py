"""Starved jobs: pending jobs whose node exclusions leave them no node to run on.

sbatch refuses a job that excludes every node of its partition.  If the other nodes are down or
drained it accepts the job, which stays pending with the exclusions it was submitted with.  These
are relaxed: at once by expired exclusions, and after a while by readmitting the oldest one.
"""

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.submissions import Resources
from elmanctl.schedulers.executor import Executor, JobState, LiveJob, PollResult
from elmanctl.search.effective_settings import avoided_nodes
from elmanctl.search.nodes import readmit_oldest
from elmanctl.search.poll import live_job
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)

# Slurm's pending reasons when no node is usable; a job that waits for its turn has others.
NO_NODE = re.compile(
    r"ReqNodeNotAvail|Nodes required for job are DOWN|BadConstraints", re.IGNORECASE
)

# Nodes are often back within minutes, and a bad one may cost an attempt.
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class _Stuck:
    """A starved job: the nodes it excludes, and those that its own evaluation excludes."""

    job: LiveJob
    resources: Resources
    avoids: tuple[str, ...]
    own: frozenset[str]
    reason: str


class StarvedJobs:
    """Relaxes the node exclusions of starved jobs."""

    def __init__(
        self, session: Session, executor: Executor, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._executor = executor
        self._now = now
        self._since: float | None = None
        self._avoided: dict[str, tuple[str, ...]] = {}

    def look(self, polled: PollResult) -> None:
        """Relax exclusions according to the pending reasons of one poll."""
        stuck = self._stuck(polled)
        if not stuck:
            self._since = None
            return
        if self._since is None:
            self._since = self._now()
        if self._now() - self._since >= PATIENCE_S and not self._easier(stuck):
            blocking = {node for one in stuck for node in one.avoids if node not in one.own}
            if readmit_oldest(self._session, stuck[0].reason, among=blocking):
                self._since = self._now()
        self._ease(self._easier(stuck))

    def _stuck(self, polled: PollResult) -> list[_Stuck]:
        state, found = self._session.state, []
        for evaluation, attempt in state.live_attempts():
            report = polled.reports.get(str(attempt.job_id))
            if report is None or report.state is not JobState.PENDING:
                continue
            if not NO_NODE.search(report.reason or ""):
                continue
            resources = state.submissions[attempt.submission].resources
            avoids = self._avoided.get(str(attempt.job_id), resources.exclude)
            if not avoids:
                continue
            changes: Mapping[str, Any] = evaluation.changes
            own = frozenset(changes.get("exclude", ()))
            job = live_job(state, attempt)
            found.append(_Stuck(job, resources, avoids, own, str(report.reason)))
        return found

    def _easier(self, stuck: list[_Stuck]) -> list[tuple[_Stuck, tuple[str, ...]]]:
        """Return the jobs with outdated exclusions, each with those that still hold."""
        current = {node.node for node in avoided_nodes(self._session.state)}
        musts = [
            (one, tuple(node for node in one.avoids if node in current or node in one.own))
            for one in stuck
        ]
        return [(one, must) for one, must in musts if must != one.avoids]

    def _ease(self, jobs: list[tuple[_Stuck, tuple[str, ...]]]) -> None:
        alike: dict[tuple[str, tuple[str, ...]], list[_Stuck]] = defaultdict(list)
        for one, must in jobs:
            alike[one.job.submission, must].append(one)
        for (_, must), group in alike.items():
            try:
                self._executor.avoid(
                    [one.job for one in group], replace(group[0].resources, exclude=must)
                )
            except EnvironmentNotReady as exc:
                # Retried at the next poll.
                logger.warning("%s", exc.message)
                continue
            self._avoided |= {one.job.job_id: must for one in group}
            freed = sorted({node for one in group for node in one.avoids}.difference(must))
            logger.warning(
                "%d jobs found no node (%s) and may run on %s again",
                len(group),
                group[0].reason,
                ", ".join(freed),
            )
