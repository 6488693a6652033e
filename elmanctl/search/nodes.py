"""Bad nodes: which ones new submissions avoid, why, and until when.

Every exclusion is an event before it is acted on, and ends by itself.
"""

import logging
import re
from collections.abc import Collection, Iterable
from datetime import timedelta

from elmanctl import clock
from elmanctl.ledger.payloads import NodeExcluded, NodeReadmitted
from elmanctl.ledger.records import Attempt, Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.search.effective_settings import avoided_nodes
from elmanctl.search.session import Session
from elmanctl.verdicts.policy import Change, rule_of

logger = logging.getLogger(__name__)

# What can stand in sbatch's --exclude as one node, and means nothing to a shell.
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

# sbatch's words where the nodes that are left cannot run a job, or a name is none of its nodes.
_NOTHING_LEFT = re.compile(
    r"node configuration is not available|nodes? .*not available|Invalid node name",
    re.IGNORECASE,
)


def exclude_bad_nodes(session: Session, judged: Iterable[tuple[Evaluation, Attempt]]) -> None:
    """Put on record that nodes are avoided on which attempts failed for the node's sake."""
    exclude_min = session.settings.retry.exclude_min
    if session.run["executor"] == "local" or exclude_min <= 0:
        return
    now = clock.now()
    for evaluation, attempt in judged:
        if not _blames_node(attempt):
            continue
        node, finished_at = str(attempt.node), str(attempt.finished_at)
        until = clock.from_text(finished_at) + timedelta(minutes=exclude_min)
        known = session.state.excluded_nodes.get(node)
        # Jobs that were on the node already may fail too; what is avoided is not avoided longer.
        # Times of one ledger are in one form, in which later ones compare as greater.
        if until <= now or (known is not None and known.until > finished_at):
            continue
        assert attempt.verdict is not None
        reason = f"{attempt.verdict.kind} of {evaluation.id} attempt {attempt.number}"
        session.record(NodeExcluded(node=node, until=clock.to_text(until), reason=reason))
        logger.warning("no new jobs on %s until %s: %s", node, clock.to_text(until), reason)


def judged_attempts(state: RunState) -> list[tuple[Evaluation, Attempt]]:
    """Return every attempt that ended, in the order in which they ended."""
    ended = [
        (evaluation, attempt)
        for evaluation in state.evaluations.values()
        for attempt in evaluation.attempts
        if attempt.finished_at is not None
    ]
    return sorted(ended, key=lambda pair: str(pair[1].finished_at))


def says_no_node(error: str) -> bool:
    """Whether sbatch refused a submission because no node is left for it."""
    return bool(_NOTHING_LEFT.search(error))


def readmit_oldest(session: Session, words: str, *, among: Collection[str] | None = None) -> bool:
    """Take back the oldest exclusion, of `among` where given; return whether there was one.

    `words` are the scheduler's on that no node is left.  The jobs would wait for ever otherwise,
    while a bad node may have been mended.
    """
    for node in avoided_nodes(session.state):
        if among is not None and node.node not in among:
            continue
        reason = f"no other node is left: {words.splitlines()[0]}"
        session.record(NodeReadmitted(node=node.node, reason=reason))
        logger.warning("jobs may run on %s again: %s", node.node, reason)
        return True
    return False


def _blames_node(attempt: Attempt) -> bool:
    if attempt.verdict is None or attempt.node is None or attempt.finished_at is None:
        return False
    blamed = rule_of(attempt.verdict).change is Change.NODE
    return blamed and NODE_NAME.fullmatch(attempt.node) is not None
