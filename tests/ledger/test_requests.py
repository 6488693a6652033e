import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from elmanctl import clock
from elmanctl.errors import LedgerCorrupt, LedgerError
from elmanctl.ledger.requests import (
    CLOCK_SKEW_S,
    REQUESTS_FOLDER,
    answer_request,
    leave_request,
    pending_requests,
    wait_for_answer,
    withdraw_request,
)
from tests.patience import PATIENCE_S


def wait(folder: Path, name: str, timeout_s: float = 0.0) -> Mapping[str, object] | None:
    return wait_for_answer(folder, name, timeout_s=timeout_s, poll_s=0.01, is_alive=lambda: True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / REQUESTS_FOLDER).iterdir())


def test_empty_mailbox_has_no_requests(tmp_path: Path) -> None:
    assert pending_requests(tmp_path) == []


def test_requests_are_read_in_the_order_of_asking(tmp_path: Path) -> None:
    names = [leave_request(tmp_path, "requeue", {"evaluations": [str(i)]}) for i in range(20)]
    pending = pending_requests(tmp_path)
    assert [request.id for request in pending] == names
    assert [request.arguments for request in pending] == [
        {"evaluations": [str(i)]} for i in range(20)
    ]
    assert pending[0].command == "requeue"


def test_answer_reaches_who_asked_and_empties_the_mailbox(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "cancel", {})
    (request,) = pending_requests(tmp_path)
    assert wait(tmp_path, name) is None
    answer_request(tmp_path, request, {"cancelled": 3})
    assert files(tmp_path) == [f"{name}.answer.json"]
    assert pending_requests(tmp_path) == []
    assert wait(tmp_path, name) == {"cancelled": 3}
    assert files(tmp_path) == []


def test_request_answered_again_gives_the_same_answer(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "cancel", {})
    (request,) = pending_requests(tmp_path)
    answer_request(tmp_path, request, {"n": 1})
    answer_request(tmp_path, request, {"n": 1})
    assert wait(tmp_path, name) == {"n": 1}


def test_answer_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "clean", {})
    (request,) = pending_requests(tmp_path)
    timer = threading.Timer(0.05, answer_request, (tmp_path, request, {"freed_bytes": 1}))
    timer.start()
    assert wait(tmp_path, name, timeout_s=PATIENCE_S) == {"freed_bytes": 1}
    timer.join()


def test_waiting_ends_with_the_time_or_with_the_controller(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "clean", {})
    start = time.monotonic()
    assert wait(tmp_path, name, timeout_s=0.05) is None
    assert time.monotonic() - start >= 0.05
    start = time.monotonic()
    gone = wait_for_answer(
        tmp_path, name, timeout_s=PATIENCE_S, poll_s=PATIENCE_S, is_alive=lambda: False
    )
    assert gone is None
    assert time.monotonic() - start < PATIENCE_S


def test_last_answer_of_a_controller_that_ended_is_found(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "clean", {})
    (request,) = pending_requests(tmp_path)

    def answers_and_ends() -> bool:
        answer_request(tmp_path, request, {"n": 1})
        return False

    answer = wait_for_answer(tmp_path, name, timeout_s=60, poll_s=1, is_alive=answers_and_ends)
    assert answer == {"n": 1}


def test_withdrawn_request_is_gone(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "clean", {})
    assert withdraw_request(tmp_path, name) is True
    assert withdraw_request(tmp_path, name) is False
    assert pending_requests(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b'{"version":1}',
        b'{"version":1,"id":"other","command":"clean","arguments":{},"at":"x"}',
        b"[]",
        b"\xff",
    ],
)
def test_damaged_request_is_moved_aside_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    name = leave_request(tmp_path, "clean", {})
    good = leave_request(tmp_path, "cancel", {})
    (tmp_path / REQUESTS_FOLDER / f"{name}.json").write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert [request.id for request in pending_requests(tmp_path)] == [good]
    assert f"request {name} is damaged" in caplog.text
    assert f"{name}.json.damaged" in files(tmp_path)
    assert [request.id for request in pending_requests(tmp_path)] == [good]


def test_damaged_answer_is_an_error(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "clean", {})
    path = tmp_path / REQUESTS_FOLDER / f"{name}.answer.json"
    for damage in (b"{", b'{"version":1}'):
        path.write_bytes(damage)
        with pytest.raises(LedgerCorrupt):
            wait(tmp_path, name)


def test_only_known_commands_can_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="requeue, cancel, clean"):
        leave_request(tmp_path, "destroy", {})
    with pytest.raises(ValueError, match="JSON"):
        leave_request(tmp_path, "clean", {"older_than_s": float("inf")})
    assert pending_requests(tmp_path) == []


def test_mailbox_that_cannot_be_used_is_a_ledger_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot leave"):
        leave_request(tmp_path / "none", "clean", {})
    name = leave_request(tmp_path, "clean", {})
    (request,) = pending_requests(tmp_path)
    with pytest.raises(LedgerError, match="cannot answer"):
        answer_request(tmp_path / "none", request, {})
    mailbox = tmp_path / REQUESTS_FOLDER
    (mailbox / f"{name}.json").unlink()
    (mailbox / f"{name}.json").mkdir()
    (mailbox / f"{name}.answer.json").mkdir()
    with pytest.raises(LedgerError, match="cannot read"):
        wait(tmp_path, name)
    with pytest.raises(LedgerError, match="cannot withdraw"):
        withdraw_request(tmp_path, name)


def test_request_of_a_process_that_was_killed_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = leave_request(tmp_path, "clean", {})
    child = os.fork()
    if not child:
        leave_request(tmp_path, "cancel", {"all": True}, waits_s=300)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(files(tmp_path)) == 2
    assert [request.id for request in pending_requests(tmp_path)] == [ours]
    assert files(tmp_path) == [f"{ours}.json"]
    assert "cancel" in caplog.text and "is dropped" in caplog.text


def test_request_of_another_machine_is_dropped_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    leave_request(tmp_path, "clean", {}, waits_s=300)
    forever = leave_request(tmp_path, "clean", {})
    monkeypatch.undo()
    assert len(pending_requests(tmp_path)) == 2
    late = clock.now() + timedelta(seconds=300 + CLOCK_SKEW_S + 1)
    monkeypatch.setattr(clock, "now", lambda: late)
    assert [request.id for request in pending_requests(tmp_path)] == [forever]


def test_request_that_names_nobody_is_carried_out(tmp_path: Path) -> None:
    name = leave_request(tmp_path, "clean", {})
    path = tmp_path / REQUESTS_FOLDER / f"{name}.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    for key in ("asker", "expires_at"):
        del data[key]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert [request.id for request in pending_requests(tmp_path)] == [name]
