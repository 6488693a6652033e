"""Settings of early stopping: the rule by which evaluations of a search end early, if any."""

from dataclasses import dataclass

from elmanctl.bounds import setting
from elmanctl.constants import OFF, STOPPING_RULES


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppingSettings:
    """[stopping]: ending evaluations of a search early that will not become its best."""

    rule: str = setting(
        OFF,
        "Rule: off, curve (the final loss is predicted) or asha (successive halving)",
        words=STOPPING_RULES,
        absent=OFF,
    )
    first: float = setting(
        0.1,
        "Share of the training budget before which nothing is stopped, the first rung of asha",
        least=0.05,
        most=0.9,
        absent=0.1,
    )
    chance: float = setting(
        0.03,
        "Under curve, stop at a smaller chance than this of ending below the best",
        above=0,
        most=0.5,
        absent=0.03,
    )
    eta: float = setting(
        3.0,
        "Under asha, one in so many goes on from a rung, and the next rung is so much later",
        least=1.5,
        most=100,
        absent=3.0,
    )

    @property
    def is_on(self) -> bool:
        """Whether evaluations may be stopped early."""
        return self.rule != OFF
