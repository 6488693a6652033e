"""The state of a run at one event, with its running totals."""

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from elmanctl.ledger.disk_use import DiskUse
from elmanctl.ledger.overlay import Overlay
from elmanctl.ledger.records import Attempt, Evaluation, ExcludedNode, RunStatus, State
from elmanctl.ledger.spending import Spent, devices
from elmanctl.ledger.submissions import Submission, SubmissionState

# So many of the best evaluations are known without a look at the others.
LEADERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldJob:
    """A job of several attempts: how many, how many have ended, and the sum of when, in seconds."""

    lanes: int
    ended: int = 0
    ends_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A remark in the ledger."""

    at: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One exchange with the optimizer about a generation: evaluations asked, or values reported.

    `refused` points were dropped while it asked; `told` is None where it did.
    """

    generation: int
    asked: tuple[str, ...] = ()
    refused: int = 0
    told: tuple[tuple[str, float], ...] | None = None


@dataclass(slots=True, kw_only=True)
class RunState:
    """The state of a run.  Only `apply` changes it; the records in it are immutable.

    `run` is empty before the first event; `reason` is why the run stands still, `advice` the next
    thing to do.  `generation` is the newest one asked, `generations` the length of the search,
    `ended_by` the reason of the stop rule that ended it earlier.  `told` maps a generation that is
    done to the values reported to the optimizer, `refused` to the points refused while it was
    asked, `turns` to its branch of a sweep, which is 0 where it names none.  `reported` maps an
    evaluation to its value, `unreported` are the decided ones without any, in the order of the
    decisions, `exchanges` all that was asked and reported, in order.
    `controller` is the newest one: host, pid, at.  `changes` maps `section.key` to the value that
    replaces a setting, `freed_bytes` an evaluation, or "" for none, to the bytes that cleaning
    freed, `excluded_nodes` a node to its newest exclusion, past ones included.  `failures_in_a_row`
    names the (evaluation, attempt) that failed since an attempt completed, the run paused or an
    evaluation was reopened, in the order of their ends.

    Running sums: `spent` is the cost of ended attempts by verdict, `saved` that of the jobs that
    answered repeats did without, `answered` their number, `spared` what the rest of the trainings
    that were stopped early would have cost, `trained` the evaluations that ever had a job, `wall_s`
    the working time of controllers, `slot_s` that of all slots while points were still to come and
    `idle_s` that of empty ones among them, `held_idle_s` the GPU-seconds that jobs and allocations
    held without an attempt at work, `disk` the bytes of attempts.  `repeats` maps an
    evaluation to those of the same configuration, in order, `confirmations` one to those that train
    it again on fresh seeds.

    The rest are indexes over these, so that no query gets slower with the length of a run: `totals`
    are the sums of `counted`, `positions` the order of the evaluations, `waiting` those that need
    an attempt, `live` those that have a live one, also where they were cancelled, `members` those
    of each generation, `open` the generations that are not done, `intended` the submissions without
    an answer, `held_jobs` the jobs of several attempts that have not all ended, `leaders` the best
    as (loss, generation, id).  A value in a dict is replaced, never changed in place.
    """

    run: Mapping[str, Any] = field(default_factory=dict)
    status: RunStatus = RunStatus.RUNNING
    reason: str | None = None
    advice: str | None = None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    submissions: dict[str, Submission] = field(default_factory=dict)
    told: dict[int, list[tuple[str, float]]] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)
    unreported: dict[str, None] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)
    generation: int = -1
    generations: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    ended_by: str | None = None
    applied_requests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    controller: Mapping[str, Any] | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    freed_bytes: dict[str, int] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    saved: Spent = field(default_factory=Spent)
    answered: int = 0
    spared: Spent = field(default_factory=Spent)
    trained: int = 0
    wall_s: float = 0.0
    slot_s: float = 0.0
    idle_s: float = 0.0
    held_idle_s: float = 0.0
    held_jobs: dict[str, HeldJob] = field(default_factory=dict)
    repeats: dict[str, tuple[str, ...]] = field(default_factory=dict)
    confirmations: dict[str, tuple[str, ...]] = field(default_factory=dict)
    excluded_nodes: dict[str, ExcludedNode] = field(default_factory=dict)
    failures_in_a_row: list[tuple[str, int]] = field(default_factory=list)
    disk: DiskUse = field(default_factory=DiskUse)
    notes: list[Note] = field(default_factory=list)
    seq: int = 0
    fence: int = 0
    last_event_at: str | None = None
    totals: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    live: dict[str, int] = field(default_factory=dict)
    members: dict[int, tuple[str, ...]] = field(default_factory=dict)
    open: dict[int, None] = field(default_factory=dict)
    intended: dict[str, None] = field(default_factory=dict)
    leaders: tuple[tuple[float, int, str], ...] = ()

    def put(self, evaluation: Evaluation) -> None:
        """Replace an evaluation or add a new one."""
        name = evaluation.id
        before = self.evaluations.get(name)
        if before is None:
            self.positions[name] = self.totals.get("evaluations", 0)
            members = self.members.get(evaluation.generation, ())
            self.members[evaluation.generation] = (*members, name)
        else:
            self._count(before, -1)
            self._unrank(before)
        self.evaluations[name] = evaluation
        self._count(evaluation, 1)
        self._rank(evaluation)
        is_live = evaluation.has_live_attempt
        self._list(self.live, name, is_live)
        self._list(self.waiting, name, not is_live and not evaluation.state.is_finished)

    def put_submission(self, submission: Submission) -> None:
        """Replace a submission or add a new one."""
        self.submissions[submission.id] = submission
        if submission.state is SubmissionState.INTENDED:
            self.intended[submission.id] = None
        else:
            self.intended.pop(submission.id, None)

    def free(self, name: str, freed_bytes: int) -> None:
        """Count what cleaning freed of an evaluation, or under "" of what belongs to none."""
        evaluation = self.evaluations.get(name)
        if evaluation is not None:
            self._count(evaluation, -1)
        self.freed_bytes[name] = self.freed_bytes.get(name, 0) + freed_bytes
        if evaluation is not None:
            self._count(evaluation, 1)

    def add(self, total: str, number: int) -> None:
        """Add to one of the totals."""
        self.totals[total] = self.totals.get(total, 0) + number

    def live_attempts(self) -> list[tuple[Evaluation, Attempt]]:
        """Return every attempt that is not finished, with its evaluation, in order."""
        return [(item, item.attempts[-1]) for item in self._in_order(self.live)]

    def waiting_evaluations(self) -> list[Evaluation]:
        """Return the evaluations that are not decided and have no live attempt, in order."""
        return self._in_order(self.waiting)

    @property
    def is_busy(self) -> bool:
        """Whether an evaluation is not decided, or a job may still be running."""
        return bool(self.waiting or self.live)

    @property
    def flights(self) -> tuple[tuple[Attempt, int], ...]:
        """Every attempt that is not finished, with the number by which its time counts."""
        attempts = [attempt for _, attempt in self.live_attempts()]
        counts = {
            name: devices(self.submissions[name].resources)
            for name in {attempt.submission for attempt in attempts}
        }
        return tuple((attempt, counts[attempt.submission]) for attempt in attempts)

    @property
    def confirmed(self) -> tuple[tuple[Evaluation, tuple[Evaluation, ...]], ...]:
        """Every evaluation that was asked again on fresh seeds, with its confirmations."""
        return tuple(
            (self.evaluations[name], tuple(self.confirmations_of(name)))
            for name in self.confirmations
        )

    @property
    def newest_settled(self) -> int:
        """How many are decided of generations that are not done; replaced ones are left out.

        A part of a state holds all evaluations that are not decided, and those that replace others.
        """
        names = [name for generation in self.open for name in self.members.get(generation, ())]
        held = [self.evaluations[name] for name in names if name in self.evaluations]
        left_out = {e.id for e in held if not e.state.is_finished}
        left_out |= {e.replaces for e in held if e.replaces}
        return sum(name not in left_out for name in names)

    def generation_members(self, generation: int) -> list[Evaluation]:
        """Return the evaluations of a generation, in order."""
        return [self.evaluations[name] for name in self.members.get(generation, ())]

    def same_configuration(self, first: str, before: str | None = None) -> list[Evaluation]:
        """Return an evaluation and its repeats in order; where given, those before one of them."""
        names = (first, *self.repeats.get(first, ()))
        if before is not None:
            names = names[: names.index(before)]
        return [self.evaluations[name] for name in names]

    def confirmations_of(self, name: str) -> list[Evaluation]:
        """Return the confirmations of an evaluation, in order."""
        return [self.evaluations[each] for each in self.confirmations.get(name, ())]

    def unanswered(self) -> list[Submission]:
        """Return the submissions that are intended and not answered, in order."""
        return [self.submissions[name] for name in self.intended]

    def counts(self) -> dict[State, int]:
        """Return how many evaluations are in each state; every state is a key."""
        return {state: self.totals.get(f"state:{state}", 0) for state in State}

    def ranked(self) -> list[Evaluation]:
        """Return the completed evaluations, lowest loss first, equal losses in order of id.

        Answered repeats are none of them: their loss is that of another one.  Nor are
        confirmations: the search did not choose among them.
        """
        keys = filter(None, map(rank, self.evaluations.values()))
        return [self.evaluations[name] for _, _, name in sorted(keys)]

    @property
    def refused_share(self) -> float:
        """The share of sampled points that were refused before they cost anything."""
        refused = self.totals.get("refused", 0)
        return refused / max(1, refused + self.totals.get("evaluations", 0))

    def best(self) -> Evaluation | None:
        """Return the completed evaluation of the lowest loss, or None."""
        if self.leaders:
            return self.evaluations[self.leaders[0][2]]
        return next(iter(self.ranked()), None)

    @property
    def best_configuration(self) -> str | None:
        """The first evaluation of the best one's configuration, None without a completed one."""
        best = self.best()
        return None if best is None else best.configuration

    @property
    def size_bytes(self) -> int:
        """What the attempts left on disk, less what cleaning freed of it."""
        return self.totals.get("size_bytes", 0)

    def size_of(self, evaluation: Evaluation) -> int:
        """Return what an evaluation's attempts left on disk, less what cleaning freed of it."""
        written = sum(attempt.size_bytes or 0 for attempt in evaluation.attempts)
        return max(0, written - self.freed_bytes.get(evaluation.id, 0))

    def trial(self) -> "RunState":
        """Return a state to try an event on: it shares all with this one and changes nothing."""
        overlaid: dict[str, Any] = {name: Overlay(getattr(self, name)) for name in _DICTS}
        lists: dict[str, Any] = {name: list(getattr(self, name)) for name in _LISTS}
        return replace(self, **overlaid, **lists)

    def adopt(self, trial: "RunState") -> None:
        """Become what a trial of this state has become."""
        for name in _DICTS:
            getattr(trial, name).write_back()
        for name in _VALUES:
            setattr(self, name, getattr(trial, name))

    def _list(self, names: dict[str, int], name: str, belongs: bool) -> None:
        if belongs:
            names[name] = self.positions[name]
        else:
            names.pop(name, None)

    def _in_order(self, names: dict[str, int]) -> list[Evaluation]:
        return [self.evaluations[name] for name in sorted(names, key=names.__getitem__)]

    def _count(self, evaluation: Evaluation, sign: int) -> None:
        for total, number in counted(evaluation, self.size_of(evaluation)):
            self.add(total, sign * number)

    def _unrank(self, evaluation: Evaluation) -> None:
        key = rank(evaluation)
        if key is not None:
            self.add("ranked", -1)
            self.leaders = tuple(other for other in self.leaders if other != key)

    def _rank(self, evaluation: Evaluation) -> None:
        key = rank(evaluation)
        if key is None:
            return
        # Behind the last known one there may be others that are not known here.
        knows_all = self.totals.get("ranked", 0) == len(self.leaders)
        self.add("ranked", 1)
        if knows_all or (self.leaders and key < self.leaders[-1]):
            leaders = list(self.leaders)
            insort(leaders, key)
            self.leaders = tuple(leaders[:LEADERS])


# What handlers change in place.  `run` is plain JSON from an event, and replaced as a whole.
_DICTS = tuple(
    each.name for each in fields(RunState) if each.default_factory is dict and each.name != "run"
)
_LISTS = tuple(each.name for each in fields(RunState) if each.default_factory is list)
_VALUES = tuple(each.name for each in fields(RunState) if each.name not in _DICTS)


def rank(evaluation: Evaluation) -> tuple[float, int, str] | None:
    """Return what completed evaluations are sorted by; None for any other.

    Answered repeats and confirmations are others.
    """
    if evaluation.state is not State.COMPLETED or evaluation.loss is None:
        return None
    if evaluation.answer is not None or evaluation.confirms is not None:
        return None
    return (evaluation.loss, evaluation.generation, evaluation.id)


def counted(evaluation: Evaluation, size_bytes: int) -> list[tuple[str, int]]:
    """Return what one evaluation adds to the totals of its run.

    Whole numbers only, so that adding and taking back in any order leaves no trace.
    """
    parts = [("evaluations", 1), (f"state:{evaluation.state}", 1), ("size_bytes", size_bytes)]
    parts += [
        (f"verdict:{attempt.verdict.kind}", 1)
        for attempt in evaluation.attempts
        if attempt.verdict is not None
    ]
    if evaluation.confirms is not None:
        is_decided = evaluation.state.is_finished
        parts += [("confirmations", 1), ("confirmations_decided", int(is_decided))]
    # The job of a cancelled evaluation may still be ending; it is no longer waited for.
    if evaluation.has_live_attempt and not evaluation.state.is_finished:
        parts += [("live", 1), (f"live:{evaluation.attempts[-1].state}", 1)]
    return parts
