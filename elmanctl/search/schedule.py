"""Schedule of a search: when points are asked and values reported, and when the search is over."""

from typing import Protocol


class Schedule(Protocol):
    """One of the modes of a search; what it decides is a function of the ledger's events."""

    def advance(self, *, asks: bool) -> bool:
        """Report what is due, and ask what is due where it `asks`; return whether all is done.

        Nothing is done as long as an evaluation is not decided.  Raises SearchPaused when too few
        evaluations of a generation gave a loss.
        """
