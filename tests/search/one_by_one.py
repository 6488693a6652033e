"""A scheduler in memory whose jobs end one at a time, in any order."""

import random
from collections.abc import Sequence
from pathlib import Path

from elmanctl.ledger.submissions import Submission
from elmanctl.schedulers.executor import LiveJob, PollResult
from tests.search.scripted import ScriptedExecutor, World


class OrderedWorld(World):
    """A world that knows how long the ledger was when it was polled, and how often in a row."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.size_bytes = 0
        self.quiet_polls = 0
        self.order = 0

    def turn(self, job_id: str) -> float:
        """Return a number of a job by which jobs end, the lowest first; each `order` has others."""
        return random.Random(repr((self.order, self.tasks[job_id]))).random()


class OneByOne(ScriptedExecutor):
    """A scheduler whose jobs end one at a time, in an order of their own.

    The next one ends once the controller has nothing more to record: the order is the same however
    often a controller dies.
    """

    world: OrderedWorld

    def poll(self, jobs: Sequence[LiveJob], intended: Sequence[Submission]) -> PollResult:
        world, ids = self.world, {job.job_id for job in jobs}
        # A controller polls twice before it records anything after its start.
        size_bytes = world.paths.ledger.stat().st_size
        world.quiet_polls = world.quiet_polls + 1 if size_bytes == world.size_bytes else 0
        world.size_bytes = size_bytes
        due = None
        if ids and world.quiet_polls > 1 and not ids & set(world.ended):
            due = min(ids, key=lambda job_id: world.turn(job_id))
        world.held = {world.tasks[job_id][0] for job_id in ids - {due}}
        return super().poll(jobs, intended)
