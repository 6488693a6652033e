"""Full disks of the run and of the node, on real file systems that are too small."""

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from elmanctl.jobs import evaluation
from elmanctl.jobs.claim import this_worker
from elmanctl.jobs.failure import classify_exception
from elmanctl.jobs.full_disk import full_disk_of_node
from elmanctl.ledger.records import VerdictKind
from elmanctl.run.paths import RunPaths
from elmanctl.run.progress import read_table
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.log_tail import LogTail
from elmanctl.verdicts.node_disk import names_node_disk
from elmanctl.verdicts.observation import Observation


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 512 KiB."""
    folder = tmp_path_factory.mktemp("small")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=32", "none", folder], check=False
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def full(small: Path) -> Iterator[Path]:
    """The same without room."""
    with (small / "rest").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    yield small
    (small / "rest").unlink()


def failure(folder: Path) -> OSError:
    """Return what writing to a full disk raises; it names no file."""
    with pytest.raises(OSError) as raised, (folder / "more").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    (folder / "more").unlink()
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, None)
    return raised.value


def test_full_disk_that_another_node_does_not_have_is_found(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exc = failure(full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert full_disk_of_node(exc, tmp_path) is None
    monkeypatch.setenv("TMPDIR", str(full / "below" / "it"))
    assert full_disk_of_node(exc, tmp_path) == str(full)
    # The run's own disk decides over any other.
    assert full_disk_of_node(exc, full / "run") is None


def test_disk_on_which_what_did_not_fit_is_gone_again_is_found(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exc = failure(small)
    monkeypatch.setenv("TMPDIR", str(small))
    assert full_disk_of_node(exc, tmp_path) == str(small)
    exc.errno = errno.EDQUOT
    assert full_disk_of_node(exc, tmp_path) is None


@pytest.mark.parametrize("variable", ["TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_full_disk_of_a_compilers_cache_is_found(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv(variable, str(full / "cache"))
    assert full_disk_of_node(failure(full), tmp_path) == str(full)


def test_disk_that_has_room_again_is_found_by_the_name_or_by_who_wrote(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = OSError(errno.ENOSPC, "No space left on device", str(small / "gone" / "x"))
    assert full_disk_of_node(named, tmp_path) == str(small)
    ours = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("TMPDIR", str(small))
    assert full_disk_of_node(ours, tmp_path) is None
    program = compile(
        "def write():\n    raise OSError(28, 'No space left on device')",
        "/x/torch/_inductor/y.py",
        "exec",
    )
    names: dict[str, object] = {}
    exec(program, names)
    with pytest.raises(OSError) as raised:
        names["write"]()  # type: ignore[operator]
    assert full_disk_of_node(raised.value, tmp_path) == str(small)


def test_program_that_failed_for_want_of_room_is_told_from_one_that_failed(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CalledProcessError(1, ["cc", "main.c"])
    try:
        raise RuntimeError("no kernel") from failed
    except RuntimeError as exc:
        wrapped = exc
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert full_disk_of_node(wrapped, tmp_path) is None
    monkeypatch.setenv("TMPDIR", str(full))
    assert full_disk_of_node(wrapped, tmp_path) == str(full)
    assert full_disk_of_node(ValueError("x"), tmp_path) is None


def test_disk_without_room_for_another_file_is_full(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    with pytest.raises(OSError) as raised:
        for number in range(64):
            made.append(small / str(number))
            made[-1].touch()
    monkeypatch.setenv("TMPDIR", str(small))
    raised.value.filename = None
    assert full_disk_of_node(raised.value, tmp_path) == str(small)
    for path in made:
        path.unlink(missing_ok=True)


WORKER = """
import sys, tempfile
from pathlib import Path
from elmanctl.jobs import evaluation
from elmanctl.jobs.claim import this_worker
from elmanctl.run.paths import RunPaths

paths = RunPaths(Path(sys.argv[1])).attempt("g000-e00", 1)
try:
    with tempfile.NamedTemporaryFile(dir=sys.argv[2]) as file:
        file.write(bytes(1 << 21))
except OSError as exc:
    evaluation._Evaluation(paths, this_worker()).leave_failure(exc)
"""


def test_worker_with_a_full_tmp_blames_its_node_and_not_the_runs_disk(
    small: Path, tmp_path: Path
) -> None:
    attempt = tmp_path / "evaluations" / "g000-e00" / "attempt-1"
    attempt.mkdir(parents=True)
    (tmp_path / "finished").mkdir()
    subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), str(small)],
        check=True,
        env={**os.environ, "TMPDIR": str(small), "SLURMD_NODENAME": "n3"},
    )
    verdict = judge(Observation(result=read_table(attempt / "result.json")))
    assert verdict.kind is VerdictKind.ENVIRONMENT
    assert f"{small} of n3 is full, a disk that only this node has" in verdict.evidence[0].text


def test_tmp_that_a_failure_names_is_the_runs_disk_where_the_run_lies_there_too() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        paths = RunPaths(Path(folder)).attempt("g000-e00", 1)
        paths.folder.mkdir(parents=True)
        (Path(folder) / "finished").mkdir()
        exc = OSError(errno.ENOSPC, "No space left on device", "/tmp/elsewhere/x")
        assert classify_exception(exc)[0] is VerdictKind.ENVIRONMENT
        evaluation._Evaluation(paths, this_worker()).leave_failure(exc)
        verdict = judge(Observation(result=read_table(paths.result)))
    assert verdict.kind is VerdictKind.DISK_FULL


LINE = "OSError: [Errno 28] No space left on device: '/tmp/tmpab12'"


@pytest.mark.parametrize(
    ("line", "run_folder", "kind"),
    [
        (LINE, "/scratch/ann/run", VerdictKind.ENVIRONMENT),
        (LINE, "/tmp/run", VerdictKind.DISK_FULL),
        (LINE.replace("/tmp/", "/scratch/"), "/scratch/ann/run", VerdictKind.DISK_FULL),
        (LINE.partition(": '")[0], "/scratch/ann/run", VerdictKind.DISK_FULL),
    ],
)
def test_log_of_a_full_tmp_blames_the_node(line: str, run_folder: str, kind: VerdictKind) -> None:
    report = JobReport(state=JobState.ENDED, raw="FAILED", exit_code=1, node="n1")
    log = LogTail(file="x.out", lines=("Traceback (most recent call last):", line))
    seen = Observation(report=report, log=log, run_folder=run_folder, left_trace=True)
    assert judge(seen).kind is kind


def test_compilers_words_name_the_disk_too() -> None:
    text = "fatal error: error writing to /tmp/ccXy12.s: No space left on device"
    assert names_node_disk(text, "/scratch/run") == "/tmp"
    assert names_node_disk("cannot open /tmp/x", "/scratch/run") is None


def test_full_disk_is_found_in_a_group_of_exceptions(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(full))
    group = ExceptionGroup("two tasks failed", [ValueError("no"), failure(full)])
    assert classify_exception(group)[0] is VerdictKind.DISK_FULL
    assert full_disk_of_node(group, tmp_path) == str(full)


def test_exception_whose_text_cannot_be_had_names_no_disk(tmp_path: Path) -> None:
    mute = type("Mute", (ValueError,), {"__str__": lambda self: 1 / 0})
    assert full_disk_of_node(mute("x"), tmp_path) is None
