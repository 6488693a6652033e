"""Point source: the optimizers of a run, whose points become evaluations of the ledger."""

from collections import Counter
from collections.abc import Sequence

from elmanctl.constants import RESEED
from elmanctl.ledger import payloads
from elmanctl.ledger.records import EvaluationPlan, evaluation_id
from elmanctl.search.optimizers.port import SelfEnding
from elmanctl.search.rebuild import rebuild_optimizers
from elmanctl.search.repeats import Known
from elmanctl.search.session import Session
from elmanctl.search.stop_rules import stop_reason
from elmanctl.space.candidates import Candidate, CandidateBuilder, ask_candidates
from elmanctl.space.space import SearchSpace


class PointSource:
    """Asks points of the optimizer of each branch, and reports to it; without a sweep there is one.

    Raises LedgerError as `rebuild_optimizers` does.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known = Known(session.state)
        self._optimizers = rebuild_optimizers(session)
        space = SearchSpace.decode(session.run["space"])
        self._builders = [
            CandidateBuilder(branch, session.settings, session.run["executor"])
            for branch in space.branches
        ]

    @property
    def branches(self) -> int:
        """The number of branches."""
        return len(self._optimizers)

    def ask(self, generation: int, branch: int, replaces: Sequence[str | None]) -> None:
        """Ask points of a generation, and record them; `replaces` names what each takes over.

        Raises InvalidConfiguration when nearly no point is valid.
        """
        candidates, refused = ask_candidates(
            self._optimizers[branch].ask, self._builders[branch], len(replaces)
        )
        first = len(self._session.state.generation_members(generation))
        self._session.record(
            payloads.PointsAsked(
                generation=generation,
                # The study's optimizer asks no other point for one that cannot be built.
                evaluations=self._evaluations(
                    generation, first, candidates, replaces[: len(candidates)]
                ),
                refused=refused,
                branch=branch,
            )
        )

    def report(self, branch: int, told: Sequence[tuple[str, float]]) -> None:
        """Report values of evaluations, which are on record already."""
        evaluations = self._session.state.evaluations
        self._optimizers[branch].report([(evaluations[name].point, value) for name, value in told])

    def stops(self) -> bool:
        """Record that a stop rule ends the search, if one does; return whether one has."""
        session = self._session
        if session.state.generation < 0 or session.state.ended_by is not None:
            return session.state.ended_by is not None
        reason = stop_reason(session.state, session.settings.search, self.branches)
        endings = [each.ending for each in self._optimizers if isinstance(each, SelfEnding)]
        reason = next(filter(None, endings), reason)
        if reason is None:
            return False
        session.record(payloads.SearchEnded(reason=reason))
        return True

    def _evaluations(
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
