"""Verdicts: evidence of how an attempt ended, the judge, and the policy of what follows."""

from elmanctl.ledger.records import Verdict


def classify_log(text: str) -> Verdict:
    """Return the verdict of a training log by its text alone; see `logs.classifier`."""
    # The rules are compiled at their import, which most commands do not need.
    from elmanctl.verdicts.logs import classifier

    return classifier.classify_parts([(1, text)])
