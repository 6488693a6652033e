"""Odd files of workers and other users in a run's folder: no search stops or waits for them."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from elmanctl import processes
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.disk import walk
from elmanctl.ledger.holder import is_gone, this_process
from elmanctl.ledger.mounts import mounts
from elmanctl.ledger.requests import REQUESTS_FOLDER, leave_request
from elmanctl.ledger.scan import scan
from elmanctl.ledger.state import load_run
from elmanctl.run.paths import AttemptPaths
from elmanctl.schedulers.executor import JobState
from elmanctl.schedulers.slurm_output import parse_squeue
from elmanctl.search.actions import apply_requests
from elmanctl.verdicts.log_tail import read_log_tail
from tests.search.scripted import Runs
from tests.search.test_attempt_monitor import Watched
from tests.users import NOBODY, as_root

pytestmark = pytest.mark.usefixtures("no_power_failures")

HUGE_BYTES = 20 << 30


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    def give_up(number: int, frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def watched(runs: Runs) -> Iterator[Watched]:
    found = Watched(runs.new())
    yield found
    found.session.close()


def hole(path: Path) -> None:
    """Make a file of 20 GiB that takes no room."""
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)


def result(paths: AttemptPaths, **more: Any) -> None:
    spec = json.loads(paths.spec.read_text(encoding="utf-8"))
    own = {key: spec[key] for key in ("evaluation", "attempt", "parameters_expected")}
    verdict = {"kind": "completed", "evidence": [{"source": "result", "text": "x"}]}
    data = {"version": 1, "verdict": verdict, "loss": 2.0, "steps": 10, **own, **more}
    paths.result.write_text(json.dumps(data), encoding="utf-8")


def beat(paths: AttemptPaths, **more: Any) -> None:
    at = "2026-01-01T00:00:00.000Z"
    data = {"at": at, "started_at": at, "phase": "training", "step": 3, "host": "n7", **more}
    paths.heartbeat.write_text(json.dumps(data), encoding="utf-8")
    result(paths)


def nested(paths: AttemptPaths) -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    result(paths, deep=deep)


def deep_folders(paths: AttemptPaths) -> None:
    result(paths)
    at = os.open(paths.folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def result_beside_a_pipe(paths: AttemptPaths) -> None:
    result(paths)
    os.mkfifo(paths.heartbeat)


LEFT: dict[str, tuple[Callable[[AttemptPaths], None], str]] = {
    "a pipe for a result": (lambda paths: os.mkfifo(paths.result), "undetermined"),
    "a hole for a result": (lambda paths: hole(paths.result), "undetermined"),
    "a large result": (lambda paths: result(paths, blob="x" * 300_000), "undetermined"),
    "a nested result": (nested, "undetermined"),
    "a line that is true": (
        lambda paths: result(
            paths, verdict={"kind": "python_error", "evidence": [{"text": "x", "line": True}]}
        ),
        "python_error",
    ),
    "a pipe for a heartbeat": (
        result_beside_a_pipe,
        "completed",
    ),
    "a number for a host": (lambda paths: beat(paths, host=5), "completed"),
    "an escape for a host": (lambda paths: beat(paths, host="n\x1b[2J"), "completed"),
    "a time without a zone": (lambda paths: beat(paths, at="2026-01-01T00:00:00"), "completed"),
    "1500 folders": (deep_folders, "completed"),
}


@pytest.mark.parametrize("name", LEFT)
def test_whatever_a_worker_leaves_it_gets_a_verdict(watched: Watched, name: str) -> None:
    leave, verdict = LEFT[name]
    folder = watched.run.paths.attempt("g000-e01", 1).folder
    # Neither Python nor pytest can remove folders that are so deep.
    with ExitStack() as after:
        after.callback(lambda: subprocess.run(["rm", "-rf", folder], check=True))
        leave(watched.run.paths.attempt("g000-e01", 1))
        watched.report(JobState.ENDED, "FAILED", exit_code=1)
        judged = watched.look() + watched.look(20.0)
        assert judged == [("g000-e01", verdict)]
        attempt = load_run(watched.run.folder).state.evaluations["g000-e01"].attempts[0]
        assert attempt.node in (None, "n1", "n7")
        assert watched.run.paths.ledger.stat().st_size < 20_000


@pytest.mark.parametrize(
    ("told", "elapsed_s"),
    [
        ({"started_at": "2026-01-01T01:00:00.000Z"}, None),
        ({"started_at": "2026-01-01T01:00:00.000Z", "elapsed_s": 12.5}, 12.5),
        ({"elapsed_s": -1.0}, 0.0),
        ({"at": "9999-01-01T00:00:00.000Z"}, None),
    ],
)
def test_clock_that_is_set_costs_no_negative_time(
    watched: Watched, told: dict[str, Any], elapsed_s: float | None
) -> None:
    beat(watched.run.paths.attempt("g000-e01", 1), **told)
    watched.report(JobState.ENDED, "COMPLETED", exit_code=0)
    assert watched.look() == [("g000-e01", "completed")]
    assert watched.session.state.evaluations["g000-e01"].attempts[0].elapsed_s == elapsed_s


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("requeue", {"evaluations": 5}),
        ("requeue", {"evaluations": [["g000-e00"]]}),
        ("requeue", {"evaluations": ["g000-e00"], "timeout_min": "soon"}),
        ("requeue", {"evaluations": ["g000-e00"], "timeout_min": -1}),
        ("requeue", {"evaluations": ["g000-e00"], "exclude": 5}),
        ("requeue", {"only_on": "n1"}),
        ("cancel", {"all": "no"}),
        ("clean", {"keep_best": -1}),
        ("clean", {"keep_last": []}),
        ("clean", {"kinds": 5}),
    ],
)
def test_request_that_nobody_can_carry_out_is_answered(
    watched: Watched, command: str, arguments: dict[str, Any]
) -> None:
    leave_request(watched.run.folder, command, arguments)
    apply_requests(watched.session, watched.watcher)
    (applied,) = watched.session.state.applied_requests.values()
    assert applied["answer"]["exit_code"] == 2
    evaluations = watched.session.state.evaluations.values()
    assert all(e.state.value == "submitted" for e in evaluations)


def forged(folder: Path, **changes: Any) -> None:
    data = {"version": 1, "id": "a", "command": "cancel", "arguments": {"all": True}}
    data |= {"at": "2026-01-01T00:00:00.000Z", "asker": None, "expires_at": None, **changes}
    (folder / "a.json").write_text(json.dumps(data), encoding="utf-8")


FORGED: dict[str, Callable[[Path], None]] = {
    "a pipe": lambda folder: os.mkfifo(folder / "a.json"),
    "a folder": lambda folder: (folder / "a.json").mkdir(),
    "a hole": lambda folder: hole(folder / "a.json"),
    "a link to itself": lambda folder: (folder / "a.json").symlink_to("a.json"),
    "no time": lambda folder: forged(folder, expires_at="soon"),
    "a time without a zone": lambda folder: forged(folder, expires_at="2030-01-01T00:00:00"),
    "a huge process": lambda folder: forged(
        folder, asker=asdict(this_process(os.uname().nodename, 0)) | {"pid": 10**30}
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_request_is_set_aside(watched: Watched, name: str) -> None:
    mailbox = watched.run.folder / REQUESTS_FOLDER
    mailbox.mkdir(exist_ok=True)
    FORGED[name](mailbox)
    for _ in range(2):
        apply_requests(watched.session, watched.watcher)
    assert watched.session.state.applied_requests == {}
    assert not os.path.lexists(mailbox / "a.json")


def test_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    hole(log)
    with log.open("ab") as file:
        file.write(b"\nValueError: no\n")
    found = read_log_tail(log, tmp_path)
    assert found is not None and found.lines[-1] == "ValueError: no"
    assert found.file == "log (its last 64 KiB)"


def test_ledger_that_is_a_hole_or_a_pipe_is_refused(tmp_path: Path) -> None:
    hole(tmp_path / "ledger.jsonl")
    with pytest.raises(LedgerCorrupt, match="64 MiB"):
        load_run(tmp_path)
    with pytest.raises(LedgerCorrupt, match="64 MiB"):
        scan(tmp_path / "ledger.jsonl")


@as_root
def test_processes_of_others_are_not_asked_what_they_are_called() -> None:
    child = os.fork()
    if not child:
        os.setuid(NOBODY)
        signal.pause()
    try:
        while Path(f"/proc/{child}").stat().st_uid != NOBODY:
            pass
        assert child not in dict(processes.command_lines())
        assert os.getpid() in dict(processes.command_lines())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("pid", [10**30, 0, -1])
def test_holder_with_an_impossible_number_is_gone(pid: int) -> None:
    data = asdict(this_process(os.uname().nodename, 1)) | {"pid": pid}
    assert is_gone(type(this_process("h", 0))(**data)) is True


@as_root
def test_what_is_mounted_in_a_run_is_neither_counted_nor_cleaned(
    watched: Watched, tmp_path: Path
) -> None:
    outside = tmp_path / "outside ü"
    outside.mkdir()
    (outside / "model.pt").write_bytes(b"x" * 9999)
    inside = watched.run.paths.attempt("g000-e01", 1).folder / "checkpoint \xfc"
    inside.mkdir()
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    try:
        found = [one.parts[-1] for one in walk(watched.run.folder)]
    finally:
        subprocess.run(["umount", "--lazy", inside], check=True)
    assert inside.name in found and "model.pt" not in found


def test_mount_of_any_name_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    line = b"36 35 98:0 / /net/m\xff\\040x\xc3\xbc rw - fuse.sshfs /dev/x rw\n\n"
    monkeypatch.setattr(Path, "read_bytes", lambda path: line)
    (mount,) = mounts()
    assert os.fsencode(mount.point) == b"/net/m\xff x\xc3\xbc" and mount.kind == "fuse.sshfs"


def test_digits_that_are_no_numbers_are_no_exit_code() -> None:
    (row,) = parse_squeue("7_0|FAILED|None|n1|7|²:³|1:²|name|")
    assert (row.report.exit_code, row.report.signal) == (None, None)
