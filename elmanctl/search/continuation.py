"""Checkpoints from which the next attempt of an evaluation may resume; pure."""

from collections.abc import Sequence

from elmanctl.ledger.records import Attempt, VerdictKind
from elmanctl.verdicts.policy import rule_of

# The training ended by itself: resuming from its checkpoint would end in the same way.
_ENDED_BY_ITSELF = frozenset(
    {
        VerdictKind.COMPLETED,
        VerdictKind.DIVERGED,
        VerdictKind.INVALID,
        VerdictKind.PYTHON_ERROR,
    }
)


def checkpoint_folders(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    """Return the folders with checkpoints that the next attempt may resume from, newest first.

    After an end of its own the training starts from scratch.  After a node failure or an unclear
    end that attempt's own checkpoint is skipped in favour of earlier ones.
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
