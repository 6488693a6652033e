"""End of a rank before its time: what it said of it, and which of several ends explains the rest.

When one rank ends, the others' exchanges break, and each of them sees a closed connection: an echo,
which explains nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl.jobs.claim import node_name
from elmanctl.jobs.failure import chain, classify_exception, frame_of, message_of
from elmanctl.jobs.full_disk import full_disk_of_node
from elmanctl.jobs.place import Place
from elmanctl.ledger.records import VerdictKind
from elmanctl.verdicts.node_disk import names_node_disk

# torch's errors of an exchange between ranks; those of gloo are a RuntimeError with a file's name.
_OF_EXCHANGE = ("DistError", "DistBackendError", "DistNetworkError", "DistStoreError")
_ECHO = re.compile(r"\bgloo/gloo/|Connection (?:closed|reset) by peer|ncclRemoteError")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception that ended a rank, as a verdict with its evidence."""

    kind: VerdictKind
    text: str
    file: str | None = None
    line: int | None = None
    is_echo: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """The end of a rank; without a `failure` it ended without a word, and `how` was seen."""

    rank: int
    count: int
    node: str
    how: str = ""
    failure: Failure | None = None

    @property
    def is_echo(self) -> bool:
        """Whether another rank's end explains this one."""
        return self.failure is not None and self.failure.is_echo

    def describe(self) -> str:
        """Return the end in one line."""
        which = f"rank {self.rank} of {self.count} on {self.node}"
        return f"{which} failed: {self.failure.text}" if self.failure else f"{which} {self.how}"


class RankLost(Exception):
    """Another rank ended without a word: only the scheduler can know why."""

    def __init__(self, end: RankEnd) -> None:
        super().__init__(end.describe())
        self.end = end


class RankFailed(Exception):
    """Another rank ended with an exception of its own."""

    def __init__(self, end: RankEnd, failure: Failure) -> None:
        super().__init__(failure.text)
        self.end = end
        self.failure = failure


def root_of(ends: Sequence[RankEnd]) -> RankEnd | None:
    """Return the first end that no other one explains."""
    return next((end for end in ends if not end.is_echo), None)


def failure_of(exc: BaseException, run_folder: Path, place: Place) -> Failure:
    """Return an exception of this rank as a verdict with its evidence; of several it is named."""
    kind, text = classify_exception(exc)
    if (full := full_disk_of_node(exc, run_folder)) is not None:
        kind = VerdictKind.ENVIRONMENT
        text += f"\n{full} of {node_name()} is full, a disk that only this node has"
    elif kind is VerdictKind.ENVIRONMENT and names_node_disk(text):
        # The disk looks like the node's own, but holds the run or is shared by nodes.
        kind = VerdictKind.DISK_FULL
    if place.count > 1:
        first, *rest = text.split("\n")
        text = "\n".join([f"{first} ({place.describe(node_name())})", *rest])
    file, line = frame_of(exc, run_folder) or (None, None)
    return Failure(kind=kind, text=text, file=file, line=line, is_echo=is_echo(exc))


def is_echo(exc: BaseException) -> bool:
    """Whether an exception says no more than that another rank is gone."""
    return any(
        type(link).__name__ in _OF_EXCHANGE or _ECHO.search(message_of(link)) is not None
        for link, is_cause in chain(exc)
        if is_cause
    )


def encode_failure(failure: Failure) -> dict[str, Any]:
    """Return a failure as plain data, to be sent to rank 0."""
    names = ("kind", "text", "file", "line", "is_echo")
    return {name: getattr(failure, name) for name in names}


def decode_failure(data: Mapping[str, Any]) -> Failure:
    """Return the failure that another rank sent."""
    return Failure(**{**data, "kind": VerdictKind(data["kind"])})
