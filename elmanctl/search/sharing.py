"""Sharing of slots between runs that one process drives: the run that is least far goes first."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from elmanctl.ledger.records import Attempt
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.submissions import Task
from elmanctl.schedulers.executor import Executor, JobState
from elmanctl.search.poll import live_job
from elmanctl.search.session import Session

_ALIVE = (JobState.PENDING, JobState.RUNNING)


@dataclass(slots=True, eq=False)
class Sharer:
    """A run that takes slots; `wanted` counts its attempts that wait for one."""

    session: Session
    executor: Executor
    wanted: Callable[[], int]
    _busy: tuple[int, list[Task]] = (-1, [])

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self.session.state

    def busy(self) -> list[Task]:
        """Return the task of each live attempt, and those whose lane its job still holds.

        They are worked out once for each event of the ledger.
        """
        seq = self.state.seq
        if self._busy[0] != seq:
            self._busy = (seq, _holding(self.state))
        return self._busy[1]

    def held(self) -> list[Task]:
        """Return those whose worker is alive on a numbered slot, of a run that is not driven."""
        numbered = {
            str(attempt.job_id): (task, live_job(self.state, attempt))
            for attempt, task in _live(self.state)
            if task.slot is not None
        }
        if not numbered:
            return []
        reports = self.executor.poll([job for _, job in numbered.values()], []).reports
        # Of a step in an allocation there is none while only Slurm could say how it stands.
        gone = {name for name, report in reports.items() if report.state not in _ALIVE}
        return [task for name, (task, _) in numbered.items() if name not in gone]

    @property
    def started(self) -> int:
        """How many evaluations were started, or need no training."""
        new = sum(not evaluation.attempts for evaluation in self.state.waiting_evaluations())
        return len(self.state.evaluations) - new


class Sharing:
    """Divides the slots of a machine, or the jobs in flight, between runs."""

    def __init__(self) -> None:
        self._driven: list[Sharer] = []
        self._left: list[Sharer] = []

    def join(self, sharer: Sharer) -> None:
        """Let a run take part."""
        self._driven.append(sharer)

    def leave(self, sharer: Sharer) -> None:
        """Give the share of a run to the others; its workers keep their slots until they end."""
        self._driven.remove(sharer)
        self._left.append(sharer)

    def free_slots(self, sharer: Sharer) -> Sequence[int | None]:
        """Return the free slots that a run may take now."""
        busy = [task for one in self._driven for task in one.busy()]
        held = [task for one in self._left for task in one.held()]
        free = sharer.executor.free_slots([*busy, *held])
        if len(self._driven) == 1 or not free:
            return free
        wanted = [one.wanted() for one in self._driven]
        given = divide(len(free), wanted, [one.started for one in self._driven])
        return free[: given[self._driven.index(sharer)]]


def divide(free: int, wanted: Sequence[int], started: Sequence[int]) -> list[int]:
    """Return how many of the free slots each run gets.

    One after the other goes to the run with the fewest evaluations started, among those that want
    one; between equals the first of them gets it.
    """
    given = [0] * len(wanted)
    for _ in range(free):
        waiting = [run for run, most in enumerate(wanted) if given[run] < most]
        if not waiting:
            break
        given[min(waiting, key=lambda run: started[run] + given[run])] += 1
    return given


def _holding(state: RunState) -> list[Task]:
    """Return the tasks of live attempts, with all of those that share a job with one."""
    held: dict[tuple[str, int], None] = {}
    for _, attempt in state.live_attempts():
        name, index = attempt.submission, attempt.task_index
        submission = state.submissions[name]
        # Most searches have no lanes, and this is asked often.
        lanes = submission.lanes_of(index) if submission.resources.per_job > 1 else ()
        for lane in lanes or (index,):
            held[name, lane] = None
    tasks = _tasks(state, {name for name, _ in held})
    return [tasks[key] for key in held]


def _tasks(state: RunState, submissions: Iterable[str]) -> dict[tuple[str, int], Task]:
    """Return the tasks of submissions by submission and index."""
    return {
        (name, task.index): task for name in submissions for task in state.submissions[name].tasks
    }


def _live(state: RunState) -> list[tuple[Attempt, Task]]:
    """Return each live attempt with its task."""
    live = [attempt for _, attempt in state.live_attempts()]
    tasks = _tasks(state, {attempt.submission for attempt in live})
    return [(attempt, tasks[attempt.submission, attempt.task_index]) for attempt in live]
