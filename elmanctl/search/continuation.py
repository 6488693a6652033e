"""Which attempts' checkpoints the next attempt of an evaluation may go on from; pure."""

from collections.abc import Sequence

from elmanctl.ledger.records import Attempt, VerdictKind
from elmanctl.verdicts.policy import rule_of

# The training ended by itself: from any state of it the same end would follow.
_ENDED_BY_ITSELF = frozenset(
    {
        VerdictKind.COMPLETED,
        VerdictKind.DIVERGED,
        VerdictKind.INVALID,
        VerdictKind.PYTHON_ERROR,
    }
)


def checkpoint_folders(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Return the folders whose checkpoints the next attempt may go on from, the newest first.

    What ended by itself is begun anew, whatever was before it.  Where the node or the evidence
    was wanting, that attempt's own state is left alone, and those before it count.
    """
    folders = []
    for attempt in reversed(attempts):
        if attempt.verdict is None:
            continue
        if attempt.verdict.kind in _ENDED_BY_ITSELF:
            break
        if rule_of(attempt.verdict).resumes:
            folders.append(f"attempt-{attempt.number}")
    return tuple(folders)
