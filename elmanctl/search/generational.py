"""Generational schedule: a generation is asked when all of the one before is decided."""

from elmanctl.errors import SearchPaused
from elmanctl.ledger import payloads
from elmanctl.ledger.records import NO_BRANCH, State
from elmanctl.search.branches import next_branch
from elmanctl.search.dispatch import Dispatcher
from elmanctl.search.fitness import feedback_on, fitness_values, is_spare, worst_reported
from elmanctl.search.point_source import PointSource
from elmanctl.search.reevaluation import due_reevaluation
from elmanctl.search.requeue import recovery_hint
from elmanctl.search.session import Session
from elmanctl.search.stop_rules import evaluations_to_ask
from elmanctl.verdicts.policy import Feedback


class Generational:
    """Asks and reports whole generations."""

    def __init__(self, session: Session, points: PointSource, dispatcher: Dispatcher) -> None:
        self._session = session
        self._points = points
        self._dispatcher = dispatcher

    def advance(self, *, asks: bool) -> bool:
        """Report the newest generation, and ask the next one; see `Schedule`."""
        state, search = self._session.state, self._session.settings.search
        generation = state.generation
        if state.is_busy:
            return False
        is_last = generation + 1 >= state.generations or state.ended_by is not None
        if not asks and not is_last:
            return True
        if generation in state.open and not self._report(generation):
            return False
        if self._points.stops() or is_last:
            return True
        again = due_reevaluation(state, self._session.settings)
        if again is not None:
            self._session.record(again)
            return False
        count = evaluations_to_ask(state, search, search.population)
        branch = next_branch(state, search, self._points.branches)
        self._points.ask(generation + 1, branch, [None] * count)
        return False

    def _report(self, generation: int) -> bool:
        """Report a generation, or ask replacements for failed points and return False."""
        state, settings = self._session.state, self._session.settings
        branch = state.turns.get(generation, 0)
        if branch == NO_BRANCH:
            self._session.record(payloads.GenerationTold(generation=generation, told=()))
            return True
        members = state.generation_members(generation)
        values = fitness_values(
            members, settings.search.failed_loss, worst_before=worst_reported(state, branch)
        )
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
            self._points.ask(generation, branch, missing[: min(room, population - len(values))])
            return False
        check_valued(self._session, generation, len(values), population)
        self._session.record(payloads.GenerationTold(generation=generation, told=tuple(values)))
        self._points.report(branch, values)
        return True


def check_valued(session: Session, generation: int, valued: int, population: int) -> None:
    """Raise SearchPaused where fewer than half of a generation have a fitness value."""
    if valued < population // 2:
        raise SearchPaused(
            f"only {valued} of {population} evaluations of g{generation:03} gave a loss",
            hint=recovery_hint(session.state),
        )
