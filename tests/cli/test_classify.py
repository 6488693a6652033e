"""`elmanctl classify`: logs in, kinds out."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from elmanctl.cli.classify import read_ends
from tests.command_line import CommandLine, QuickCommandLine


@pytest.fixture
def folder(quick: QuickCommandLine) -> Path:
    path = quick.folder / "logs"
    path.mkdir()
    (path / "b.log").write_text("step 1 loss nan\n", encoding="utf-8")
    (path / "a.err").write_text("step 1 loss 2.0\nMemoryError\n", encoding="utf-8")
    (path / "c.bin").write_text("MemoryError\n", encoding="utf-8")
    (path / "nested.log").mkdir()
    return path


def test_folder_is_a_table_of_its_logs_in_order(quick: QuickCommandLine, folder: Path) -> None:
    done = quick("classify", "logs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "FILE\tKIND\tEVIDENCE",
        "logs/a.err\toom\t2: MemoryError",
        "logs/b.log\tdiverged\t1: step 1 loss nan",
    ]


def test_json_names_kind_and_lines(quick: QuickCommandLine, folder: Path) -> None:
    done = quick("classify", "logs/c.bin", "logs/b.log", "--json")
    found = json.loads(done.stdout)
    assert found["version"] == 1
    assert found["logs"] == [
        {
            "file": "logs/c.bin",
            "kind": "oom",
            "confidence": "likely",
            "cause": "host",
            "evidence": [{"line": 1, "text": "MemoryError"}],
        },
        {
            "file": "logs/b.log",
            "kind": "diverged",
            "confidence": "likely",
            "cause": None,
            "evidence": [{"line": 1, "text": "step 1 loss nan"}],
        },
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent.log", "no such file: absent.log"), ("empty", "no logs in empty")],
)
def test_what_is_not_there_is_not_found(quick: QuickCommandLine, name: str, message: str) -> None:
    (quick.folder / "empty").mkdir()
    done = quick("classify", name)
    assert done.returncode == 3
    assert message in done.stderr
    assert not done.stdout


def test_nothing_is_printed_when_one_of_the_files_is_missing(
    quick: QuickCommandLine, folder: Path
) -> None:
    assert not quick("classify", "logs/b.log", "absent.log").stdout


def test_standard_input_is_read(elmanctl: CommandLine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "elmanctl", "classify", "-"],
        cwd=elmanctl.folder,
        env=elmanctl.environment,
        input=b"step 1 loss 2.0\nOSError: [Errno 28] No space left on device \xff\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"-\tdisk_full\t2: OSError" in done.stdout


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"\x00\xff\xfe" * 999, bytes(range(256)) * 50, b"x" * 400_000, b"\r" * 9999],
    ids=["empty", "newline", "zeros", "bytes", "one line", "returns"],
)
def test_any_bytes_are_given_a_kind(quick: QuickCommandLine, data: bytes) -> None:
    (quick.folder / "any.log").write_bytes(data)
    done = quick("classify", "any.log", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["logs"][0]["kind"] in ("lost", "undetermined")


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 599, 600, 2_000_000])
def test_ends_of_a_file_are_read_with_their_true_line_numbers(size: int) -> None:
    data = b"".join(b"%d\n" % number for number in range(1, size))
    parts = read_ends(io.BytesIO(data), head_bytes=100, tail_bytes=500)
    lines = [line for first, text in parts for line in enumerate(text.split("\n"), start=first)]
    expected = data.decode().split("\n")
    whole = [(n, line) for n, line in lines if line]
    # Only where the middle was left out may a line be torn.
    assert sum(expected[n - 1] != line for n, line in whole) <= 2
    assert [line for _, line in lines[:9]] == expected[:9]
    if size > 2:
        assert whole[-1] == (size - 1, str(size - 1))


def test_error_at_the_end_of_a_huge_log_is_found(quick: QuickCommandLine) -> None:
    count = 300_000
    with (quick.folder / "huge.log").open("w", encoding="utf-8") as stream:
        stream.writelines(f"step {n} loss 2.5 and so on and on\n" for n in range(count))
        stream.write("MemoryError\n")
    done = quick("classify", "huge.log")
    assert done.stdout.splitlines()[1] == f"huge.log\toom\t{count + 1}: MemoryError"
