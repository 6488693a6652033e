"""Asynchronous schedule: an evaluation that ends is reported at once, and another one is asked.

Each evaluation is reported once, by itself, in the order in which they were decided, before
anything more is asked; the first report stands, whatever a requeue brings later.  What failed and
says nothing about its point is not reported, and its place is asked again.  A generation is no more
than `search.population` places that were asked one after the other: those of a sweep's branch, and
the measure of progress.
"""

from elmanctl.ledger import payloads
from elmanctl.ledger.records import Evaluation, State
from elmanctl.search.branches import next_branch
from elmanctl.search.dispatch import Dispatcher
from elmanctl.search.fitness import feedback_on, fitness_value, worst_reported
from elmanctl.search.generational import check_valued
from elmanctl.search.point_source import PointSource
from elmanctl.search.repeats import answer_repeats, answering
from elmanctl.search.session import Session
from elmanctl.search.stop_rules import evaluations_to_ask
from elmanctl.verdicts.policy import Feedback


class Asynchronous:
    """Asks as many points as there are free slots.

    Each decision is a function of the ledger's events and is recorded before the next one is made,
    so a controller that dies between two of them changes nothing.
    """

    def __init__(self, session: Session, points: PointSource, dispatcher: Dispatcher) -> None:
        self._session = session
        self._points = points
        self._dispatcher = dispatcher
        self._asks = True
        dispatcher.expect(self._to_come)

    def advance(self, *, asks: bool) -> bool:
        """Report what is decided, and ask as many points as there is room for; see `Schedule`."""
        state = self._session.state
        self._asks = asks
        room = self._dispatcher.room()
        while True:
            answer_repeats(self._session)
            for name in list(state.unreported):
                self._report(state.evaluations[name])
            if not asks and self._places_left():
                return not state.is_busy
            self._finish_generations()
            if self._points.stops():
                self._finish_generations()
                return not state.is_busy
            if not self._places_left() and not state.open:
                return not state.is_busy
            asked = self._ask()
            room -= asked
            # A repeat that is answered at once makes room for another; that one waits for a turn,
            # so that a search which knows all points of its space renews its lease.
            if not asked or room <= 0:
                return False

    def _report(self, evaluation: Evaluation) -> None:
        """Report a decided evaluation, if it has a fitness value."""
        state, search = self._session.state, self._session.settings.search
        branch = state.turns.get(evaluation.generation, 0)
        value = fitness_value(
            evaluation,
            state.generation_members(evaluation.generation),
            worst=lambda: worst_reported(state, branch, search.population),
            failed_loss=search.failed_loss,
        )
        if value is not None:
            self._session.record(payloads.ValueReported(evaluation=evaluation.id, value=value))
            self._points.report(branch, [(evaluation.id, value)])

    def _finish_generations(self) -> None:
        """Record that generations are done of which all places are decided.

        Once the search has ended, places that were not asked are not waited for.
        """
        state = self._session.state
        is_over = state.ended_by is not None
        for generation in list(state.open):
            members = state.generation_members(generation)
            places = sum(e.replaces is None for e in members)
            is_asked = is_over or (places >= self._population and not self._missing(generation))
            if is_asked and all(e.state.is_finished for e in members):
                valued = sum(e.id in state.reported for e in members)
                check_valued(self._session, generation, valued, places)
                self._session.record(payloads.GenerationTold(generation=generation, told=()))

    def _ask(self) -> int:
        """Ask points of one generation for the free slots; return how many."""
        room = min(self._dispatcher.room(), self._repeats_left())
        due = self._due(self._affordable(room))
        if due is None:
            return 0
        generation, replaces = due
        if replaces[0] is not None:
            # After a full disk the failed point itself may be retried.
            self._dispatcher.check_room()
        self._points.ask(generation, self._branch(generation), replaces)
        return len(replaces)

    def _due(self, most: int) -> tuple[int, list[str | None]] | None:
        """Return a generation, and what each of at most so many of its points is to replace.

        Those that replace failed ones come first; None if no point is to be asked.
        """
        state = self._session.state
        if most <= 0:
            return None
        for generation in state.open:
            missing = self._missing(generation)
            if missing:
                return generation, list(missing[:most])
        generation, asked = state.generation, self._asked(state.generation)
        if asked >= self._population:
            generation, asked = generation + 1, 0
        if generation >= state.generations:
            return None
        return generation, [None] * min(most, self._population - asked)

    def _missing(self, generation: int) -> list[str]:
        """Return the failed members of a generation that are to be replaced."""
        members = self._session.state.generation_members(generation)
        replaced = {e.replaces for e in members if e.replaces}
        room = self._session.settings.retry.replacements - len(replaced)
        failed = [
            e.id
            for e in members
            if e.state is State.FAILED
            and feedback_on(e) is Feedback.NOTHING
            and e.id not in self._session.state.reported
            and e.id not in replaced
        ]
        return failed[: max(0, room)]

    def _branch(self, generation: int) -> int:
        """Return the branch of a generation, which is decided when its first point is asked."""
        state = self._session.state
        if generation <= state.generation:
            return state.turns.get(generation, 0)
        return next_branch(state, self._session.settings.search, self._points.branches)

    def _affordable(self, room: int) -> int:
        """Return how many of so many points `search.evaluations` allows."""
        state, search = self._session.state, self._session.settings.search
        if search.evaluations is None:
            return room
        unstarted = [e for e in state.waiting_evaluations() if not e.attempts]
        to_come = sum(e.confirms is None and answering(state, e) is None for e in unstarted)
        return max(0, min(room, evaluations_to_ask(state, search, room + to_come) - to_come))

    def _repeats_left(self) -> int:
        """Return how many more repeats may wait for their original.

        They hold no slot, but are no endless supply either.
        """
        state = self._session.state
        waiting = sum(answering(state, e) is not None for e in state.waiting_evaluations())
        return max(0, self._population - waiting)

    def _to_come(self) -> int:
        """Return how many points would be asked now if all slots were free."""
        if not self._asks or not self._repeats_left():
            return 0
        missing = sum(len(self._missing(generation)) for generation in self._session.state.open)
        return self._affordable(missing + self._places_left())

    def _places_left(self) -> int:
        """Return how many places were never asked."""
        state = self._session.state
        if state.ended_by is not None:
            return 0
        asked = state.generation * self._population + self._asked(state.generation)
        return max(0, state.generations * self._population - asked)

    def _asked(self, generation: int) -> int:
        """Return how many places of a generation were asked, all of one that is done."""
        if generation not in self._session.state.open:
            return self._population
        members = self._session.state.generation_members(generation)
        return sum(e.replaces is None for e in members)

    @property
    def _population(self) -> int:
        return self._session.settings.search.population
