"""The mailbox `requests/` between commands and the controller that holds the lease.

A request is `requests/<id>.json`, its answer `requests/<id>.answer.json`; both appear whole.  The
controller records a request as `request_applied` before it answers; a request whose id is on
record is answered again, not applied again.  A request whose process has ended, or that has
expired, is removed and never applied.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt, LedgerError, os_errors_as
from elmanctl.ledger.files import read_json, sync_folder, write_json
from elmanctl.ledger.holder import Holder, is_gone, this_process

REQUESTS_FOLDER = "requests"
COMMANDS = ("requeue", "cancel", "clean", "set")

# What clocks of one cluster may differ by; authentication in Slurm fails beyond it.
CLOCK_SKEW_S = 300.0

_VERSION = 1
_ANSWER = ".answer.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A command for the controller; ids sort by time.

    `asker` is the process that waits for the answer, until `expires_at`.
    """

    version: int = _VERSION
    id: str
    command: str
    arguments: Mapping[str, Any]
    at: str
    asker: Holder | None = None
    expires_at: str | None = None

    @property
    def is_awaited(self) -> bool:
        """Whether its process may still wait for the answer."""
        if self.asker is not None and is_gone(self.asker) is True:
            return False
        return self.expires_at is None or clock.now() < _moment(self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a request."""

    version: int = _VERSION
    request: str
    answer: Mapping[str, Any]


def leave_request(
    folder: Path, command: str, arguments: Mapping[str, object], *, waits_s: float | None = None
) -> str:
    """Put a request into the mailbox of the run in `folder` and return its id.

    Its caller, this process, is going to wait for the answer for `waits_s`, or for ever.

    Raises ValueError for an unknown command or arguments that are not JSON, LedgerError when the
    mailbox cannot be written.
    """
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not one of {', '.join(COMMANDS)}")
    moment = clock.now()
    name = f"{moment:%Y%m%dT%H%M%S%fZ}-{os.urandom(8).hex()}"
    mailbox = folder / REQUESTS_FOLDER
    with os_errors_as(LedgerError, f"cannot leave a request in {mailbox}"):
        mailbox.mkdir(exist_ok=True)
        request = Request(
            id=name,
            command=command,
            arguments=arguments,
            at=clock.to_text(moment),
            asker=this_process(socket.gethostname(), 0),
            expires_at=None
            if waits_s is None
            else clock.to_text(moment + timedelta(seconds=waits_s + CLOCK_SKEW_S)),
        )
        write_json(_request_path(folder, name), encode(request))
    return name


def pending_requests(folder: Path) -> list[Request]:
    """Return the requests that have no answer yet, oldest first.

    A damaged one is renamed to `*.damaged`, with a warning in the log.  An expired one is removed:
    its user got no answer, and may have done something else since.
    """
    requests = []
    with os_errors_as(LedgerError, f"cannot read the requests in {folder}"):
        for path in sorted((folder / REQUESTS_FOLDER).glob("[!.]*.json")):
            if path.name.endswith(_ANSWER):
                continue
            request = _read_request(path)
            if request is None:
                continue
            if request.is_awaited:
                requests.append(request)
            elif _remove(path):
                logger.warning(
                    "%s of %s is dropped: who asked for it is gone", request.command, request.at
                )
    return requests


def answer_request(folder: Path, request: Request, answer: Mapping[str, object]) -> None:
    """Leave the answer, then remove the request."""
    answered = encode(Answer(request=request.id, answer=answer))
    with os_errors_as(LedgerError, f"cannot answer request {request.id}"):
        try:
            write_json(_answer_path(folder, request.id), answered)
        except IsADirectoryError as exc:
            # It cannot be read there; the request is on record, and must not be met again for ever.
            logger.warning("request %s has no answer: %s", request.id, exc)
        _remove(_request_path(folder, request.id))


def wait_for_answer(
    folder: Path,
    request_id: str,
    *,
    timeout_s: float,
    poll_s: float,
    is_alive: Callable[[], bool],
) -> Mapping[str, object] | None:
    """Return the answer to a request and remove it; None when there is none in time.

    Gives up early once `is_alive` says that the controller is gone; the next holder of the lease
    looks for the request in `RunState.applied_requests` before applying it.  Raises
    LedgerCorrupt when the answer is damaged.
    """
    end_s = time.monotonic() + timeout_s
    while True:
        # Asked first: an answer left just before the controller ended must be found after it.
        goes_on = is_alive() and time.monotonic() < end_s
        answer = _take_answer(_answer_path(folder, request_id))
        if answer is not None or not goes_on:
            return answer
        time.sleep(min(poll_s, max(0.0, end_s - time.monotonic())))


def withdraw_request(folder: Path, request_id: str) -> bool:
    """Remove a request; return whether it was still there, hence not answered.

    A live controller may have read it already; only under the lease is the answer final.
    """
    with os_errors_as(LedgerError, f"cannot withdraw request {request_id}"):
        return _remove(_request_path(folder, request_id))


def _request_path(folder: Path, name: str) -> Path:
    return folder / REQUESTS_FOLDER / f"{name}.json"


def _answer_path(folder: Path, name: str) -> Path:
    return folder / REQUESTS_FOLDER / f"{name}{_ANSWER}"


def _read_request(path: Path) -> Request | None:
    """Read one request; None when it was withdrawn meanwhile or is damaged."""
    try:
        data = read_json(path)
        return _decode_request(data, path.stem) if data is not None else None
    except (ValueError, LedgerCorrupt, OSError) as exc:
        # A pipe or a folder in place of a request is no reason to stop a search either.
        damaged = path.with_name(f"{path.name}.damaged")
        with suppress(FileNotFoundError):
            path.rename(damaged)
        logger.warning("request %s is damaged, moved to %s: %s", path.stem, damaged, exc)
        return None


def _decode_request(data: Mapping[str, Any], name: str) -> Request:
    # Requests of version 0.1 have neither.
    data = {"asker": None, "expires_at": None, **data}
    request = decode(Request, data, "request", LedgerCorrupt)
    if request.version != _VERSION or request.id != name:
        raise LedgerCorrupt(
            f"version {request.version} and id {request.id} are not {_VERSION} and {name}"
        )
    if request.expires_at is not None:
        _moment(request.expires_at)
    return request


def _moment(text: str) -> datetime:
    moment = clock.from_text(text)
    if moment.tzinfo is None:
        raise LedgerCorrupt(f"`{text}` does not say of which zone it is")
    return moment


def _take_answer(path: Path) -> Mapping[str, Any] | None:
    with os_errors_as(LedgerError, f"cannot read {path}"):
        try:
            data = read_json(path)
        except ValueError as exc:
            raise LedgerCorrupt(str(exc)) from exc
        if data is None:
            return None
        answer = decode(Answer, data, "answer", LedgerCorrupt).answer
        path.unlink(missing_ok=True)
    return answer


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True
