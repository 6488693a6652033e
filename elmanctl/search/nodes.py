"""Exclusion of bad nodes from new submissions; every exclusion is recorded and expires."""

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

# A single node in sbatch's --exclude, without characters that are special to a shell.
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

# Messages of sbatch when the remaining nodes cannot run a job, or a node name is unknown.
_NOTHING_LEFT = re.compile(
    r"node configuration is not available|nodes? .*not available|Invalid node name",
    re.IGNORECASE,
)


def exclude_bad_nodes(session: Session, judged: Iterable[tuple[Evaluation, Attempt]]) -> None:
    """Record the exclusion of nodes that made attempts fail."""
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
        # Further failures of jobs that were on the node already do not extend its exclusion.
        # Times in a ledger have one format, which compares in order.
        if until <= now or (known is not None and known.until > finished_at):
            continue
        assert attempt.verdict is not None
        reason = f"{attempt.verdict.kind} of {evaluation.id} attempt {attempt.number}"
        session.record(NodeExcluded(node=node, until=clock.to_text(until), reason=reason))
        logger.warning("no new jobs on %s until %s: %s", node, clock.to_text(until), reason)


def judged_attempts(state: RunState) -> list[tuple[Evaluation, Attempt]]:
    """Return every finished attempt, in the order of their ends."""
    ended = [
        (evaluation, attempt)
        for evaluation in state.evaluations.values()
        for attempt in evaluation.attempts
        if attempt.finished_at is not None
    ]
    return sorted(ended, key=lambda pair: str(pair[1].finished_at))


def says_no_node(error: str) -> bool:
    """Whether sbatch refused a submission for lack of a usable node."""
    return bool(_NOTHING_LEFT.search(error))


def readmit_oldest(session: Session, words: str, *, among: Collection[str] | None = None) -> bool:
    """End the oldest exclusion, of `among` if given; return whether there was one.

    `words` is the scheduler's message that no node is left.  Jobs would wait forever otherwise,
    and a bad node may have been fixed meanwhile.
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
