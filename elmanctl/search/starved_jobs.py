"""Jobs that wait although nothing is before them: no node is left that they may run on.

sbatch refuses a job that excludes every node of its partition.  Where the nodes that are left are
down or drained it takes the job, which then waits until one comes back, with the exclusions it was
submitted with.  So these are eased: at once by what ended meanwhile, and after a while by taking
back the oldest.
"""

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.records import Resources
from elmanctl.schedulers.executor import Executor, JobState, LiveJob, PollResult
from elmanctl.search.effective_settings import avoided_nodes
from elmanctl.search.nodes import readmit_oldest
from elmanctl.search.poll import live_job
from elmanctl.search.session import Session

logger = logging.getLogger(__name__)

# Slurm's reasons of a job for which no node is left; one that only waits for its turn has others.
NO_NODE = re.compile(
    r"ReqNodeNotAvail|Nodes required for job are DOWN|BadConstraints", re.IGNORECASE
)

# Nodes are often back within minutes, and a bad one may cost an attempt.
PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class _Stuck:
    """A job that no node is left for: what it avoids now, and of that what it must avoid."""

    job: LiveJob
    resources: Resources
    avoids: tuple[str, ...]
    own: frozenset[str]
    reason: str


class Waiting:
    """Eases the exclusions of jobs that wait because of them."""

    def __init__(
        self, session: Session, executor: Executor, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._session = session
        self._executor = executor
        self._now = now
        self._since: float | None = None
        self._avoided: dict[str, tuple[str, ...]] = {}

    def look(self, polled: PollResult) -> None:
        """Act on what the scheduler said of jobs that wait."""
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
            job = live_job(self._session, attempt)
            found.append(_Stuck(job, resources, avoids, own, str(report.reason)))
        return found

    def _easier(self, stuck: list[_Stuck]) -> list[tuple[_Stuck, tuple[str, ...]]]:
        """Return the jobs that avoid more than they must by now, each with what it must."""
        in_force = {node.node for node in avoided_nodes(self._session.state)}
        musts = [
            (one, tuple(node for node in one.avoids if node in in_force or node in one.own))
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
                # Tried again at the next look.
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
