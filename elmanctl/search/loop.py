"""The search: ask, check, submit, wait, tell; it knows no Slurm and prints nothing.

Everything it decides is in the ledger before it acts on it, so that a controller that starts
after a kill at any instant goes on from the ledger alone.
"""

import hashlib
import threading
from collections.abc import Sequence
from typing import Protocol

from elmanctl.errors import LedgerCorrupt, SearchPaused
from elmanctl.jobs.executor import Executor
from elmanctl.jobs.ownership import refuse_foreign_files
from elmanctl.jobs.retry import decide, systematic_failure
from elmanctl.ledger.encoding import encode_evaluation
from elmanctl.ledger.files import write_atomically
from elmanctl.ledger.records import (
    Evaluation,
    RunStatus,
    State,
    Verdict,
    VerdictKind,
    evaluation_id,
)
from elmanctl.search.actions import apply_requests
from elmanctl.search.candidates import Candidate, CandidateBuilder, ask_candidates
from elmanctl.search.dispatch import Dispatcher, verdicts_since_reopened
from elmanctl.search.fitness import has_diverged, told_values
from elmanctl.search.optimizer import CmaOptimizer
from elmanctl.search.session import Session
from elmanctl.search.space import SearchSpace
from elmanctl.search.watch import Watcher


class View(Protocol):
    """Somebody who looks on: a live display, or a log."""

    def refresh(self, session: Session, silent_reason: str | None) -> None:
        """Called after every turn of the loop."""

    def judged(self, evaluation: Evaluation, verdict: Verdict) -> None:
        """Called when an attempt has its verdict."""

    def generation_done(self, session: Session, generation: int) -> None:
        """Called when the optimizer has learned from a generation."""


class Controller:
    """Drives one run until it is finished, paused or asked to stop."""

    def __init__(
        self,
        session: Session,
        executor: Executor,
        view: View,
        *,
        poll_s: float,
        tick_s: float,
        stop: threading.Event,
    ) -> None:
        self._session = session
        self._view = view
        self._tick_s = tick_s
        self._stop = stop
        self._dispatcher = Dispatcher(session, executor, poll_s=poll_s)
        self._watcher = Watcher(session, executor, poll_s=poll_s)
        self._recent: list[VerdictKind] = []
        self._optimizer = self._restore()
        space = SearchSpace.decode(session.run["space"])
        self._builder = CandidateBuilder(space, session.settings, session.run["executor"])

    def drive(self) -> None:
        """Run to the end; return early when asked to stop.

        Raises SearchPaused when the search stops itself, EnvironmentNotReady when the scheduler
        cannot say what became of an earlier submission.
        """
        session = self._session
        self._dispatcher.adopt()
        while not self._stop.is_set():
            session.lease.renew()
            apply_requests(session, self._watcher)
            self._dispatcher.adopt_later()
            self._observe()
            if session.state.status is RunStatus.CANCELLED:
                # Its jobs are told to end; what became of them goes on record.
                if not session.state.live_attempts():
                    return
            elif self._go_on():
                return
            self._view.refresh(session, self._watcher.silent_reason)
            self._stop.wait(self._tick_s)
        if session.state.status is not RunStatus.CANCELLED:
            session.record("run_interrupted")

    def _go_on(self) -> bool:
        """Take the search as far as it goes without waiting; return whether it is finished."""
        self._close_decided()
        if self._advance():
            self._session.record("run_finished", reason="all generations are done")
            self._view.refresh(self._session, None)
            return True
        self._dispatcher.submit_waiting()
        return False

    def _observe(self) -> None:
        for evaluation, verdict in self._watcher.look():
            self._view.judged(evaluation, verdict)
            if verdict.kind is VerdictKind.COMPLETED:
                self._recent.clear()
            else:
                self._recent.append(verdict.kind)

    def _close_decided(self) -> None:
        """Close evaluations whose last verdict is final; stop at a failure that will repeat."""
        settings = self._session.settings
        for evaluation in list(self._session.state.evaluations.values()):
            verdicts = verdicts_since_reopened(evaluation)
            if evaluation.state is not State.CREATED or not verdicts:
                continue
            decision = decide(verdicts, settings.retry, mem_gb=None)
            if decision.close is not None:
                self._session.record(
                    "evaluation_closed", evaluation=evaluation.id, state=decision.close.value
                )
        kind = systematic_failure(self._recent, settings.retry.breaker)
        if kind is not None:
            raise SearchPaused(
                f"the last {settings.retry.breaker} attempts ended as {kind}"
                if kind is not VerdictKind.DISK_FULL
                else "an attempt met a full disk",
                hint=_mend_hint(self._session),
            )

    def _advance(self) -> bool:
        """Ask the next points when there is nothing to wait for; return whether all is done."""
        state = self._session.state
        generation = state.generation
        if any(not e.state.is_finished for e in state.evaluations.values()):
            return False
        if state.live_attempts():
            return False
        if generation >= 0 and generation not in state.told and not self._tell(generation):
            return False
        if generation + 1 >= state.generations:
            return True
        population = self._session.settings.search.population
        candidates, refused = ask_candidates(self._optimizer, self._builder, population)
        self._record_points(generation + 1, candidates, refused, [None] * population)
        return False

    def _tell(self, generation: int) -> bool:
        """Tell a generation, or ask for points in place of failed ones and return False."""
        members = self._members(generation)
        told = told_values(members)
        population = self._session.settings.search.population
        replaced = {e.replaces for e in members if e.replaces}
        missing = [
            e.id
            for e in members
            if e.state is State.FAILED and not has_diverged(e) and e.id not in replaced
        ]
        room = self._session.settings.retry.replacements - len(replaced)
        if missing and room > 0 and len(told) < population:
            names = missing[: min(room, population - len(told))]
            candidates, refused = ask_candidates(self._optimizer, self._builder, len(names))
            self._record_points(generation, candidates, refused, names)
            return False
        if len(told) < population // 2:
            raise SearchPaused(
                f"only {len(told)} of {population} evaluations of g{generation:03} gave a loss",
                hint=_mend_hint(self._session),
            )
        points = {e.id: e.point for e in members}
        self._session.record(
            "generation_told", generation=generation, told=[list(pair) for pair in told]
        )
        self._optimizer.tell([points[name] for name, _ in told], [value for _, value in told])
        self._view.generation_done(self._session, generation)
        return True

    def _record_points(
        self,
        generation: int,
        candidates: Sequence[Candidate],
        refused: int,
        replaces: Sequence[str | None],
    ) -> None:
        """Put new evaluations on record, after the optimizer's state that asked for them."""
        session = self._session
        first = len(self._members(generation))
        state = self._optimizer.dump()
        asked = sum(e.generation == generation for e in session.state.evaluations.values())
        # A controller that was paused here and wakes up must not overwrite its successor's file:
        # hash keys in the pickle make the same state other bytes in another process.
        file = f"g{generation:03}-{asked:02}-lease{session.lease.fence}.pickle"
        session.paths.optimizer.mkdir(exist_ok=True)
        write_atomically(session.paths.optimizer / file, state)
        evaluations = [
            Evaluation(
                id=evaluation_id(generation, first + index),
                generation=generation,
                point=candidate.point,
                config=candidate.config,
                parameters=candidate.parameters,
                seed=session.settings.train.seed,
                replaces=replaced,
            )
            for index, (candidate, replaced) in enumerate(zip(candidates, replaces, strict=True))
        ]
        session.record(
            "points_asked",
            generation=generation,
            evaluations=[encode_evaluation(evaluation) for evaluation in evaluations],
            refused=refused,
            optimizer={"file": file, "sha256": hashlib.sha256(state).hexdigest()},
        )

    def _restore(self) -> CmaOptimizer:
        """Return the optimizer as it was after the ledger's last event."""
        session = self._session
        saved = session.state.optimizer_file
        if saved is None:
            return start_optimizer(session)
        path = session.paths.optimizer / str(saved["file"])
        refuse_foreign_files([path], why="a pickle is a program")
        try:
            data = path.read_bytes()
        except OSError as exc:
            raise LedgerCorrupt(f"the optimizer's state cannot be read: {path}") from exc
        if hashlib.sha256(data).hexdigest() != saved["sha256"]:
            raise LedgerCorrupt(f"the optimizer's state is damaged: {path}")
        optimizer = CmaOptimizer.load(data)
        told = session.state.told.get(session.state.generation)
        if told is not None:
            evaluations = session.state.evaluations
            optimizer.tell([evaluations[name].point for name, _ in told], [v for _, v in told])
        return optimizer

    def _members(self, generation: int) -> list[Evaluation]:
        evaluations = self._session.state.evaluations.values()
        return [e for e in evaluations if e.generation == generation]


def _mend_hint(session: Session) -> str:
    name = session.run["name"]
    return (
        f"see why with `elmanctl status {name}`, mend it, open what failed again with "
        f"`elmanctl requeue --failed --run {name}`, then `elmanctl resume {name}`"
    )


def start_optimizer(session: Session) -> CmaOptimizer:
    """Return the optimizer of a run before its first generation."""
    search = session.settings.search
    space = SearchSpace.decode(session.run["space"])
    return CmaOptimizer.start(
        space.coordinates,
        session.run["start"]["point"],
        sigma=search.sigma,
        population=search.population,
        seed=search.seed,
    )
