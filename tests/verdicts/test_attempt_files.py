"""Verdicts on the files that an attempt left."""

from pathlib import Path

import pytest

from elmanctl.ledger.records import VerdictKind
from elmanctl.run.paths import RunPaths
from elmanctl.run.progress import elapsed_s, heartbeat_age_s, read_table
from elmanctl.schedulers.executor import JobReport
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.log_tail import read_log_tail
from elmanctl.verdicts.observation import Observation, observe
from tests.verdicts.observed import ended


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    paths.attempt("g000-e00", 1).folder.mkdir(parents=True)
    paths.submission("s0001").mkdir(parents=True)
    return paths


def observed(run: RunPaths, report: JobReport | None) -> Observation:
    attempt = run.attempt("g000-e00", 1)
    job_log = run.submission("s0001") / "7_0_0_log.out"
    return observe(attempt, job_log, report, root=run.folder, limit_s=60.0)


@pytest.mark.parametrize("padding", [0, 100, 20_000])
def test_line_numbers_are_true_however_long_the_log(run: RunPaths, padding: int) -> None:
    """Beyond the part that is read, too, and with what some count as an end of a line."""
    lines = [f"step {i} \r progress \x0c\x1c\x85\u2028 of it" for i in range(padding)]
    lines += ["ValueError: no such thing", "bye"]
    path = run.submission("s0001") / "7_0_0_log.out"
    path.write_bytes("\n".join([*lines, ""]).encode())
    verdict = judge(observed(run, ended("FAILED", 1)))
    quote = verdict.evidence[0]
    assert quote.file == "submissions/s0001/7_0_0_log.out"
    assert quote.line == padding + 1
    assert path.read_bytes().split(b"\n")[quote.line - 1].decode() == quote.text


def test_log_of_bytes_that_are_no_text_is_read(run: RunPaths) -> None:
    path = run.submission("s0001") / "7_0_0_log.out"
    path.write_bytes(b"\xff\xfe\x00\nCUDA error: \xe9\n")
    assert judge(observed(run, ended("FAILED", 1))).kind is VerdictKind.CUDA_ERROR


def test_log_that_was_never_written_is_no_evidence(run: RunPaths) -> None:
    assert read_log_tail(run.submission("s0001") / "absent.out", run.folder) is None
    assert judge(observed(run, ended("FAILED", 1))).kind is VerdictKind.UNDETERMINED


def test_very_long_line_is_quoted_by_its_beginning(run: RunPaths) -> None:
    path = run.submission("s0001") / "7_0_0_log.out"
    path.write_text(f"ValueError: {'x' * 5000}\n", encoding="utf-8")
    assert len(judge(observed(run, ended("FAILED", 1))).summary) == 400


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"loss": NaN}', '{"loss": 1e999}', '{"a": 1, "a": 2}', "\x00"]
)
def test_result_that_is_no_strict_json_object_is_not_read(run: RunPaths, text: str) -> None:
    path = run.attempt("g000-e00", 1).result
    assert read_table(path) is None
    path.write_text(text, encoding="utf-8")
    assert read_table(path) is None
    assert judge(observed(run, ended("COMPLETED", 0))).kind is VerdictKind.UNDETERMINED


def test_time_a_worker_lived_is_taken_from_its_own_clock(run: RunPaths) -> None:
    beat = {"started_at": "2026-08-01T10:00:00.000Z", "at": "2026-08-01T10:05:00.500Z"}
    assert elapsed_s(beat) == 300.5
    for damaged in (None, {}, {"started_at": 3, "at": 4}, {**beat, "at": "yesterday"}):
        assert elapsed_s(damaged) is None


def test_age_of_a_heartbeat_is_that_of_its_file(run: RunPaths) -> None:
    attempt = run.attempt("g000-e00", 1)
    assert heartbeat_age_s(attempt, 0.0) is None
    attempt.heartbeat.write_text("{}", encoding="utf-8")
    written = attempt.heartbeat.stat().st_mtime
    assert heartbeat_age_s(attempt, written + 12.5) == 12.5
