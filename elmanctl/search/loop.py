"""Loop of the controller: ask, check, submit, wait, tell; it knows no Slurm and prints nothing.

Every decision is recorded before it takes effect, so a controller that starts after a kill at any
instant continues from the ledger alone.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from elmanctl.constants import RESEED
from elmanctl.errors import SearchPaused
from elmanctl.ledger import payloads
from elmanctl.ledger.records import (
    NO_BRANCH,
    Evaluation,
    EvaluationPlan,
    RunStatus,
    State,
    Verdict,
    evaluation_id,
)
from elmanctl.schedulers.executor import Executor, PollResult
from elmanctl.schedulers.scheduler_note import read_note
from elmanctl.search.actions import apply_requests
from elmanctl.search.attempt_monitor import Watcher
from elmanctl.search.branches import next_branch
from elmanctl.search.confirmation_plan import due_confirmations
from elmanctl.search.dispatch import Dispatcher
from elmanctl.search.early_stopping import EarlyStopping
from elmanctl.search.fitness import feedback_on, fitness_values, is_spare
from elmanctl.search.model_pruning import ModelPruning
from elmanctl.search.nodes import exclude_bad_nodes, judged_attempts
from elmanctl.search.optimizers.port import SelfEnding
from elmanctl.search.poll import Poller, QueryPace
from elmanctl.search.rebuild import rebuild_optimizers
from elmanctl.search.reevaluation import due_reevaluation
from elmanctl.search.repeats import Known, answer_from, answering
from elmanctl.search.requeue import recovery_hint
from elmanctl.search.retry import Decisions, trip
from elmanctl.search.session import Session
from elmanctl.search.sharing import Sharing
from elmanctl.search.starved_jobs import StarvedJobs
from elmanctl.search.stop_rules import evaluations_to_ask, stop_reason
from elmanctl.space.candidates import Candidate, CandidateBuilder, ask_candidates
from elmanctl.space.space import SearchSpace
from elmanctl.verdicts.policy import Feedback


class View(Protocol):
    """Observer of the loop: a live display, or a log."""

    def refresh(self, session: Session, trouble: str | None) -> None:
        """Called after every turn of the loop; `trouble` is that of the scheduler, if any."""

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Called when an attempt has got its verdict."""

    def generation_done(self, session: Session, generation: int) -> None:
        """Called when the optimizer has learned from a generation."""

    def confirmation_asked(self, asked: payloads.ConfirmationAsked) -> None:
        """Called when the best of the search are to be trained again on fresh seeds."""


class Controller:
    """Drives one run until it is finished, paused or asked to stop.

    With `confirms_now` it asks no further generation: it confirms the best so far and then pauses.
    """

    def __init__(
        self,
        session: Session,
        executor: Executor,
        view: View,
        *,
        pace: QueryPace,
        tick_s: float,
        stop: threading.Event,
        sharing: Sharing | None = None,
        confirms_now: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._confirms_now = confirms_now
        self._view = view
        self._tick_s = tick_s
        self._stop = stop
        note = read_note(session.paths.scheduler)
        self._poller = Poller(session, executor, pace, after=note)
        self._decisions = Decisions(session)
        self._models = ModelPruning(session)
        self._stopping = EarlyStopping(session, executor, now=now)
        self._dispatcher = Dispatcher(
            *(session, executor, self._poller, self._decisions, self._models, self._stopping),
            sharing=sharing,
            now=now,
        )
        self._watcher = Watcher(session, executor, now=now)
        self._starved = StarvedJobs(session, executor, now=now)
        self._known = Known(session.state)
        # One of each for each branch of a sweep.
        self._optimizers = rebuild_optimizers(session)
        space = SearchSpace.decode(session.run["space"])
        self._builders = [
            CandidateBuilder(branch, session.settings, session.run["executor"])
            for branch in space.branches
        ]

    def drive(self) -> None:
        """Run to the end; return early when asked to stop.

        Raises SearchPaused when the search stops itself, EnvironmentNotReady when the scheduler
        does not answer at the start.
        """
        self.start()
        while not self._stop.is_set():
            if self.advance():
                return
            self.submit()
            self._stop.wait(self._tick_s)
        self.interrupt()

    def start(self) -> None:
        """Settle what an earlier controller left; raises EnvironmentNotReady as `drive` does."""
        self._observe(self._dispatcher.adopt_all())
        # For attempts judged by a controller that died before it excluded their nodes.
        exclude_bad_nodes(self._session, judged_attempts(self._session.state))

    def advance(self) -> bool:
        """Do all that is due but submissions; return whether the search has ended.

        Raises SearchPaused when the search stops itself.
        """
        session = self._session
        session.lease.renew()
        apply_requests(session, self._watcher)
        polled = self._poller.poll()
        if polled is not None:
            self._dispatcher.adopt(polled)
        self._observe(polled)
        if session.state.status is RunStatus.CANCELLED:
            # Its jobs are ending; their verdicts are still recorded.
            return not session.state.live_attempts()
        self._stopping.look(polled)
        return self._go_on()

    def submit(self) -> None:
        """Submit what is waiting, as far as there is room; raises as `submit_waiting` does."""
        if self._session.state.status is not RunStatus.CANCELLED:
            self._dispatcher.submit_waiting()
        self._view.refresh(self._session, self._poller.trouble)

    def interrupt(self) -> None:
        """Record that the controller was asked to stop."""
        if self._session.state.status is not RunStatus.CANCELLED:
            self._session.record(payloads.RunInterrupted())

    def leave(self) -> None:
        """Give this run's share of the slots to the other runs of this process."""
        self._dispatcher.leave()

    @property
    def asked_s(self) -> float:
        """When the scheduler was last asked about this run, by the clock of its pace."""
        return self._poller.asked_s

    def _go_on(self) -> bool:
        """Advance as far as possible without waiting; return whether the search is finished."""
        self._close_decided()
        self._models.prune()
        self._answer_repeats()
        if self._advance():
            self._models.prune(is_end=True)
            self._session.record(self._ending())
            self._view.refresh(self._session, None)
            return True
        self._answer_repeats()
        return False

    def _ending(self) -> payloads.RunFinished | payloads.RunPaused:
        """Return the event that ends the work on a run of which nothing is left to do now."""
        state = self._session.state
        done = state.totals.get("generations_told", 0)
        if state.ended_by is not None:
            return payloads.RunFinished(reason=state.ended_by)
        if done >= state.generations:
            return payloads.RunFinished(reason="all generations are done")
        return payloads.RunPaused(
            reason=f"{done} of {state.generations} generations are done, and their best confirmed",
            hint=f"`elmanctl resume {state.run['name']}` goes on with the search",
        )

    def _observe(self, polled: PollResult | None) -> None:
        judged = self._watcher.look(polled)
        for evaluation, verdict in judged:
            self._view.judged(evaluation, verdict)
            self._models.add(evaluation)
        exclude_bad_nodes(self._session, [(e, e.attempts[-1]) for e, _ in judged])
        if polled is not None:
            self._starved.look(polled)

    def _close_decided(self) -> None:
        """Close evaluations that get no retry; pause the search at failures that would repeat."""
        session = self._session
        failed = []
        for evaluation, decision in self._decisions.waiting():
            if decision.close is not None:
                session.record(
                    payloads.EvaluationClosed(evaluation=evaluation.id, state=decision.close)
                )
            if decision.close is State.FAILED:
                failed.append(evaluation)
        found = trip(session.state, session.settings, failed)
        if found is not None:
            raise SearchPaused(found.reason, hint=recovery_hint(session.state))

    def _answer_repeats(self) -> None:
        """Answer the repeats of finished evaluations, without a job."""
        state = self._session.state
        for evaluation in state.waiting_evaluations():
            source = answering(state, evaluation)
            if source is not None and source.state.is_finished:
                self._session.record(answer_from(state, evaluation, source))

    def _advance(self) -> bool:
        """Ask what comes next when all so far is done; return whether nothing is left.

        Generations come first, then the confirmations of the best.
        """
        state = self._session.state
        generation = state.generation
        if state.is_busy:
            return False
        is_last = generation + 1 >= state.generations or state.ended_by is not None
        if self._confirms_now and not is_last:
            return not self._confirm()
        if generation >= 0 and generation not in state.told and not self._tell(generation):
            return False
        if self._stops() or is_last:
            return not self._confirm()
        again = due_reevaluation(state, self._session.settings)
        if again is not None:
            self._session.record(again)
            return False
        search = self._session.settings.search
        count = evaluations_to_ask(state, search, search.population)
        self._ask(generation + 1, next_branch(state, search, len(self._optimizers)), [None] * count)
        return False

    def _ask(self, generation: int, branch: int, replaces: Sequence[str | None]) -> None:
        """Ask points of a generation from the optimizer of its branch, and record them."""
        candidates, refused = ask_candidates(
            self._optimizers[branch].ask, self._builders[branch], len(replaces)
        )
        # The study's optimizer asks no other point for one that cannot be built.
        self._record_points(generation, branch, candidates, refused, replaces[: len(candidates)])

    def _stops(self) -> bool:
        """Record that a stop rule ends the search, if one does; return whether one has."""
        session = self._session
        if session.state.generation < 0 or session.state.ended_by is not None:
            return session.state.ended_by is not None
        reason = stop_reason(session.state, session.settings.search, len(self._optimizers))
        endings = [each.ending for each in self._optimizers if isinstance(each, SelfEnding)]
        reason = next(filter(None, endings), reason)
        if reason is None:
            return False
        session.record(payloads.SearchEnded(reason=reason))
        return True

    def _confirm(self) -> bool:
        """Ask for the confirmations that the best still lack; return whether there are any."""
        due = due_confirmations(self._session.state, self._session.settings)
        if due is None:
            return False
        self._session.record(due)
        self._view.confirmation_asked(due)
        return True

    def _tell(self, generation: int) -> bool:
        """Tell a generation, or ask replacements for failed points and return False."""
        state, settings = self._session.state, self._session.settings
        branch = state.turns.get(generation, 0)
        members = state.generation_members(generation)
        if branch == NO_BRANCH:
            self._session.record(payloads.GenerationTold(generation=generation, told=()))
            self._view.generation_done(self._session, generation)
            return True
        values = fitness_values(members, settings.search.failed_loss)
        # The last one may be smaller than the others.
        population = sum(e.replaces is None for e in members)
        replaced = {e.replaces for e in members if e.replaces}
        valued = [name for name, _ in values]
        missing = [
            e.id
            for e in members
            if e.state is State.FAILED
            and feedback_on(e) is Feedback.NOTHING
            and e.id not in replaced
            and not is_spare(e, members, valued)
        ]
        room = settings.retry.replacements - len(replaced)
        room = evaluations_to_ask(state, settings.search, max(0, room))
        if missing and room > 0 and len(values) < population:
            # After a full disk the failed point itself may be retried, so no replacement is asked.
            self._dispatcher.check_room()
            names = missing[: min(room, population - len(values))]
            self._ask(generation, branch, names)
            return False
        if len(values) < population // 2:
            raise SearchPaused(
                f"only {len(values)} of {population} evaluations of g{generation:03} gave a loss",
                hint=recovery_hint(state),
            )
        points = {e.id: e.point for e in members}
        self._session.record(payloads.GenerationTold(generation=generation, told=tuple(values)))
        self._optimizers[branch].report([(points[name], value) for name, value in values])
        self._view.generation_done(self._session, generation)
        return True

    def _record_points(
        self,
        generation: int,
        branch: int,
        candidates: Sequence[Candidate],
        refused: int,
        replaces: Sequence[str | None],
    ) -> None:
        """Record new evaluations."""
        first = len(self._session.state.generation_members(generation))
        self._session.record(
            payloads.PointsAsked(
                generation=generation,
                evaluations=self._new_evaluations(generation, first, candidates, replaces),
                refused=refused,
                branch=branch,
            )
        )

    def _new_evaluations(
        self,
        generation: int,
        first: int,
        candidates: Sequence[Candidate],
        replaces: Sequence[str | None],
    ) -> tuple[EvaluationPlan, ...]:
        """Return the evaluations of candidates, numbered from `first`; repeats name their original.

        With `search.repeats` at `reseed` a repeat gets the next seed of its configuration.
        """
        state, settings = self._session.state, self._session.settings
        self._known.update(state)
        evaluations: list[EvaluationPlan] = []
        repeated: Counter[str] = Counter()
        for index, (candidate, replaced) in enumerate(zip(candidates, replaces, strict=True)):
            name = evaluation_id(generation, first + index)
            original = self._known.first(candidate.config, candidate.lr, name)
            seed = settings.train.seed
            if original is not None and settings.search.repeats == RESEED:
                repeated[original] += 1
                seed += len(state.repeats.get(original, ())) + repeated[original]
            evaluations.append(
                EvaluationPlan(
                    id=name,
                    point=candidate.point,
                    config=candidate.config,
                    lr=candidate.lr,
                    parameters=candidate.parameters,
                    seed=seed,
                    replaces=replaced,
                    repeats=original,
                )
            )
        return tuple(evaluations)
