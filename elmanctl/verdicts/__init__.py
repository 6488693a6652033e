"""Verdicts: evidence of how an attempt ended, the judge, and the policy of what follows."""

from elmanctl.ledger.records import Verdict


def classify_log(text: str) -> Verdict:
    """Return the verdict of a training log by its text alone; see `logs.classify`."""
    # The rules are compiled at their import, which most commands do not need.
    from elmanctl.verdicts.logs import classify

    return classify.classify_log(text)
