"""`status`: what a pipe gets, and what a script can ask."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from elmanctl.cli.output import Column, build_table
from elmanctl.cli.rows import describe_convergence, evaluation_row, with_progress
from elmanctl.cli.status import evaluation_columns
from elmanctl.ledger.records import State
from elmanctl.ledger.state import load_run
from elmanctl.ledger.summary import trimmed
from elmanctl.run.paths import RunPaths
from tests.cli.conftest import EVALUATIONS, Snapshot
from tests.command_line import CommandLine, QuickCommandLine


def table(text: str) -> list[dict[str, str]]:
    """Read a table of tab-separated fields."""
    header, *rows = (line.split("\t") for line in text.splitlines())
    assert {len(row) for row in rows} <= {len(header)}
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_piped_list_of_runs_is_tab_separated_with_whole_words(
    quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    before = snapshot()
    done = quick_with_runs("status")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["RUN"]: row for row in table(done.stdout)}
    assert set(rows) == {"finished", "interrupted-search"}
    finished, interrupted = rows["finished"], rows["interrupted-search"]
    assert (finished["STATUS"], finished["GEN"], finished["DONE"]) == ("finished", "2/2", "8")
    assert (interrupted["STATUS"], interrupted["RUNNING"]) == ("interrupted", "1")
    assert interrupted["FAILED"] == "1"
    assert interrupted["DISK"].isdigit()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", interrupted["UPDATED"])
    assert snapshot() == before


def test_piped_list_of_evaluations_holds_every_digit(quick_with_runs: QuickCommandLine) -> None:
    done = quick_with_runs("status", "finished", "--all")
    rows = table(done.stdout)
    assert [row["EVAL"] for row in rows] == EVALUATIONS
    assert {row["STEP"] for row in rows} != {""}
    # Of two generations all is the newest: read in brief it is the same.
    assert quick_with_runs("status", "finished").stdout == done.stdout
    for row in rows:
        assert row["STATE"] == "completed"
        assert row["PARAMS"].isdigit()
        assert len(row["LOSS"].partition(".")[2]) > 4
    # The summary is talk, and talk goes to stderr.
    assert done.stderr.startswith("finished: finished, generation 2 of 2, 8 of 8")


def test_what_is_normal_is_not_said_above_the_table(quick_with_runs: QuickCommandLine) -> None:
    told = quick_with_runs("status", "finished").stderr.splitlines()
    labels = [line.split()[0] for line in told[1:]]
    assert set(labels) <= {"cost", "waste", "winner", "search", "corpus"} and "search" in labels
    told = quick_with_runs("status", "interrupted").stderr.splitlines()
    assert told[0].startswith("interrupted-search: interrupted, generation 2 of 2, ")
    assert told[1] == "  next    continue with `elmanctl resume interrupted-search`"


def test_reason_of_a_failure_outlives_what_failed_on_a_narrow_terminal() -> None:
    columns = [
        Column(name="EVAL"),
        Column(name="LR", dispensable=2),
        Column(name="REASON", dispensable=1, wraps=True, may_be_empty=True),
    ]
    failed = build_table(columns, [["g000-e00", "0.00123456", "oom (attempt 1)"]], 32)
    assert [column.header for column in failed.columns] == ["EVAL", "REASON"]
    fine = build_table(columns, [["g000-e00", "0.00123456", None]], 32)
    assert [column.header for column in fine.columns] == ["EVAL", "LR"]


# Groups of digits, units and shares; what looks so in names, such as e88 or 3d, does not.
DECORATED = re.compile(r"\d,\d{3}|\d\s?(?:[kKMGT]i?B?|B|GB|min|h|s|ms|%)(?![\w-])")


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "finished", "--all"),
        ("status", "interrupted"),
        ("disk",),
        ("disk", "finished"),
        ("clean", "finished", "--dry-run", "--keep-best", "0", "--keep-last", "0"),
        ("clean", "finished", "--yes", "--keep-best", "0", "--keep-last", "0"),
        ("requeue", "interrupted-search", "--failed", "--timeout-min", "30", "--dry-run"),
        ("cancel", "--run", "interrupted-search", "g001-e00", "--dry-run"),
        ("show", "finished", "best", "--tail", "0"),
        ("params", "e88", "dim=1920", "depth=17", "n_heads=83", "n_state=32"),
        ("calc-dim", "e88", "--params", "475M", "depth=17", "n_heads=80", "n_state=32"),
        ("models", "e88"),
        ("config",),
        ("doctor",),
        ("ledger", "verify", "finished"),
    ],
    ids=" ".join,
)
def test_piped_numbers_are_plain_everywhere(
    words: tuple[str, ...], quick_with_runs: QuickCommandLine
) -> None:
    beat(quick_with_runs.folder)
    done = quick_with_runs(*words)
    assert done.returncode == 0 and done.stdout, done.stderr
    # The folder's name is random: one such as tmp.x8h/ looks like a number with a unit.
    printed = done.stdout.replace(str(quick_with_runs.folder), "FOLDER")
    assert not DECORATED.findall(printed), printed


def test_missing_values_are_empty_fields(quick_with_runs: QuickCommandLine) -> None:
    rows = {row["EVAL"]: row for row in table(quick_with_runs("status", "interrupted").stdout)}
    assert (rows["g001-e00"]["STATE"], rows["g001-e00"]["LOSS"]) == ("running", "")
    assert (rows["g000-e02"]["STATE"], rows["g000-e02"]["LOSS"]) == ("failed", "")
    assert rows["g000-e02"]["REASON"] == "python_error (attempt 1)"


def test_worker_that_slurm_was_not_asked_about_yet_shows_what_it_does(
    quick_with_runs: QuickCommandLine,
) -> None:
    """A controller that was resumed leaves Slurm alone for the rest of an interval."""
    beat(quick_with_runs.folder)
    paths = RunPaths(quick_with_runs.folder / "runs" / "interrupted-search")
    evaluation = load_run(paths.folder).state.evaluations["g001-e00"]
    attempt = replace(evaluation.attempts[-1], state=State.SUBMITTED)
    waiting = replace(evaluation, state=State.SUBMITTED, attempts=(attempt,))
    row = with_progress(evaluation_row(waiting), paths, waiting)
    assert (row["state"], row["step"], row["elapsed_s"]) == ("submitted", 1234, 3725.0)


@pytest.mark.parametrize(
    ("improvement", "is_converged", "shown", "described"),
    [
        (0.25, False, "not converged", "no, 0.2500 ± 0.0100 nats a window"),
        (None, False, "not converged", "no, too few steps to judge"),
        (0.001, True, None, "at step 900, 0.0010 ± 0.0100 nats a window"),
    ],
)
def test_loss_that_did_not_converge_says_so(
    quick_with_runs: QuickCommandLine,
    improvement: float | None,
    is_converged: bool,
    shown: str | None,
    described: str,
) -> None:
    paths = RunPaths(quick_with_runs.folder / "runs" / "interrupted-search")
    evaluation = load_run(paths.folder).state.evaluations["g000-e00"]
    found = {"is_converged": is_converged, "step": 900, "improvement": improvement}
    convergence = {**found, "improvement_se": None if improvement is None else 0.01}
    assert describe_convergence(convergence) == described
    last = evaluation.attempts[-1]
    result = {**(last.result or {}), "convergence": convergence}
    ended = replace(evaluation, attempts=(replace(last, result=result),))
    assert evaluation_row(evaluation)["reason"] is None
    for each in (ended, trimmed(ended)):
        assert evaluation_row(each)["reason"] == shown
    confirming = replace(ended, confirms="g000-e01")
    expected = "confirms g000-e01" + (f": {shown}" if shown else "")
    assert evaluation_row(confirming)["reason"] == expected


def beat(folder: Path, **values: Any) -> Path:
    """Leave a heartbeat of the evaluation that is at work, as its worker does."""
    paths = RunPaths(folder / "runs" / "interrupted-search").attempt("g001-e00", 1)
    paths.folder.mkdir(parents=True, exist_ok=True)
    known = {"phase": "training", "step": 1234, "loss": 2.5, "tokens": 9, "elapsed_s": 3725.0}
    paths.heartbeat.write_text(json.dumps({**known, **values}), encoding="utf-8")
    return paths.heartbeat


def test_running_evaluation_shows_step_loss_and_time_of_its_heartbeat(
    quick_with_runs: QuickCommandLine,
) -> None:
    beat(quick_with_runs.folder)
    row = {r["EVAL"]: r for r in table(quick_with_runs("status", "interrupted").stdout)}["g001-e00"]
    assert (row["STATE"], row["STEP"]) == ("running", "1234")
    assert (row["LOSS"], row["ELAPSED"]) == ("2.5", "01:02:05")
    found = json.loads(quick_with_runs("status", "interrupted", "--json").stdout)
    rows = {one["evaluation"]: one for one in found["evaluations"]}
    # Only what is completed has a loss of its own.
    assert (rows["g001-e00"]["loss"], rows["g001-e00"]["step"]) == (None, 1234)
    told = rows["g001-e00"]["progress"]
    assert (told["loss"], told["step"], told["elapsed_s"]) == (2.5, 1234, 3725.0)
    assert told["phase"] == "training" and 0 <= told["age_s"] < 600
    assert rows["g001-e01"]["progress"] is None
    line = quick_with_runs("show", "interrupted", "g001-e00").stdout.splitlines()[1]
    assert line.startswith("  progress    training, step 1234, loss 2.5000, 01:02:05 (")


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ('{"step": 12, "lo', None),
        ("", None),
        ("[1]", None),
        ('{"step": -1, "loss": NaN, "elapsed_s": "long", "phase": 3}', None),
        ('{"step": true, "loss": Infinity, "elapsed_s": -1}', None),
        ('{"step": 12, "loss": null}', 12),
        ('{"step": 1e400, "loss": ' + "9" * 400 + "}", None),
    ],
)
def test_heartbeat_that_is_torn_or_odd_is_no_fault(
    text: str, step: int | None, quick_with_runs: QuickCommandLine
) -> None:
    beat(quick_with_runs.folder).write_text(text, encoding="utf-8")
    done = quick_with_runs("status", "interrupted", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {one["evaluation"]: one for one in json.loads(done.stdout)["evaluations"]}
    found = rows["g001-e00"]
    assert (found["step"], found["loss"], found["elapsed_s"]) == (step, None, None)


def test_heartbeats_of_what_does_not_run_are_not_read(quick_with_runs: QuickCommandLine) -> None:
    """One that runs is read; a pipe in the place of any other would keep who opens it."""
    path = beat(quick_with_runs.folder)
    for other in EVALUATIONS[:4]:
        paths = RunPaths(path.parents[2]).attempt(other, 1)
        paths.folder.mkdir(parents=True, exist_ok=True)
        paths.heartbeat.unlink(missing_ok=True)
        paths.heartbeat.write_text(json.dumps({"step": 77}), encoding="utf-8")
    rows = table(quick_with_runs("status", "interrupted", "--all").stdout)
    assert [row["EVAL"] for row in rows if row["STEP"] == "1234"] == ["g001-e00"]
    assert "77" not in [row["STEP"] for row in rows]


AXES = ["DIM", "N_HEADS", "N_STATE", "DEPTH", "LR"]
AT_WORK: list[list[str | None]] = [
    ["g000-e00", "running", "812345_0", "2.8432", "1361", *("128",) * 5, "102.5K", "00:01:31"],
    ["g000-e01", "submitted", "812345_1", None, None, *("128",) * 5, "98.7K", None],
]
WAITS = [(*AT_WORK[0], "gpu-07", None), (*AT_WORK[1], None, "QOSMaxSubmitJobPerUserLimit")]
DONE = [(*row[:1], "failed", *row[2:-1], "oom (attempt 2)") for row in WAITS]


@pytest.mark.parametrize(
    ("rows", "is_live", "columns", "kept"),
    [
        (WAITS, True, 200, ["JOB", "LOSS", "STEP", *AXES, "PARAMS", "ELAPSED", "NODE", "REASON"]),
        (WAITS, True, 100, ["JOB", "LOSS", "STEP", "DIM", "N_HEADS", "ELAPSED", "REASON"]),
        (WAITS, True, 80, ["LOSS", "STEP", "ELAPSED", "REASON"]),
        (WAITS, True, 60, ["LOSS", "REASON"]),
        (DONE, False, 80, ["LOSS", *AXES, "REASON"]),
        (DONE, False, 60, ["LOSS", "DIM", "N_HEADS", "REASON"]),
    ],
)
def test_narrow_terminal_drops_last_why_something_waits(
    rows: list[tuple[str | None, ...]], is_live: bool, columns: int, kept: list[str]
) -> None:
    names = [name.lower() for name in AXES]
    drawn = build_table(evaluation_columns(names, is_live=is_live), rows, columns)
    assert [column.header for column in drawn.columns] == ["EVAL", "STATE", *kept]
    with io.StringIO() as file:
        Console(file=file, width=columns).print(drawn)
        text = file.getvalue()
    # Wrapped between words alone.
    assert not is_live or "QOSMaxSubmitJobPerUserLimit" in text


def ids(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [row["EVAL"] for row in table(done.stdout)]


def test_evaluations_are_chosen_by_state_by_generation_and_by_both(
    quick_with_runs: QuickCommandLine,
) -> None:
    def listed(*options: str) -> list[str]:
        return ids(quick_with_runs("status", "interrupted", *options))

    assert listed("--state", "running") == ["g001-e00"]
    assert listed("--state", "failed") == ["g000-e02"]
    assert listed("--generation", "1") == EVALUATIONS[4:]
    assert listed("-g", "1", "-s", "completed") == EVALUATIONS[5:]
    assert listed("-g", "0", "-s", "running") == []


def test_attempts_that_were_made_again_show_in_the_newest(
    quick_with_runs: QuickCommandLine,
) -> None:
    document = json.loads(quick_with_runs("status", "finished", "--all", "--json").stdout)
    rows = {row["evaluation"]: row for row in document["evaluations"]}
    assert rows["g000-e01"]["attempt"] == 2
    assert rows["g000-e00"]["attempt"] == 1


@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "finished"], ["status", "finished", "-a"]]
)
def test_json_is_one_document_of_version_one_and_nothing_else(
    arguments: list[str], quick_with_runs: QuickCommandLine
) -> None:
    done = quick_with_runs(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["version"] == 1
    if len(arguments) == 1:
        assert [run["run"] for run in document["runs"]] == ["interrupted-search", "finished"]
        return
    assert document["run"]["status"] == "finished"
    assert len(document["evaluations"]) == 8
    for row in document["evaluations"]:
        assert type(row["loss"]) is float and type(row["parameters"]) is int
        assert row["config"]["dim"] == 32


def test_no_runs_at_all_is_an_empty_document_and_a_word_on_stderr(quick: QuickCommandLine) -> None:
    assert json.loads(quick("status", "--json").stdout) == {"version": 1, "runs": []}
    done = quick("status")
    assert (done.returncode, done.stdout) == (0, "")
    where = f"no runs in {quick.folder}/runs"
    assert done.stderr == f"{where}: there is no such folder\n"
    (quick.folder / "runs").mkdir()
    for words in (["status"], ["disk"], ["show", "best"], ["resume"]):
        assert f"{where}\n" in quick(*words).stderr


@pytest.mark.parametrize(("run", "code"), [("finished", 0), ("interrupted", 1)])
def test_exit_status_tells_of_failures_when_asked(
    run: str, code: int, quick_with_runs: QuickCommandLine
) -> None:
    assert quick_with_runs("status", run).returncode == 0
    assert quick_with_runs("status", run, "--exit-status").returncode == code


def test_exit_status_of_a_run_that_is_not_done_yet_is_eight(
    quick_with_runs: QuickCommandLine,
) -> None:
    """The interrupted run before anything failed in it: its first events alone."""
    ledger = quick_with_runs.folder / "runs" / "finished" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:12]))
    done = quick_with_runs("status", "finished", "--exit-status")
    assert done.returncode == 8
    assert "stopped" in done.stderr


@pytest.mark.parametrize(
    "options", [["--exit-status"], ["--generation", "0"], ["--state", "failed"]]
)
def test_option_of_one_run_is_not_ignored_without_one(
    options: list[str], quick_with_runs: QuickCommandLine
) -> None:
    done = quick_with_runs("status", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr and "a run's name" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["status"], ["logs", "finished", "g000-e00"], ["--help"]])
def test_reader_that_goes_away_is_no_error(
    command: list[str], unbuffered: str, with_runs: CommandLine
) -> None:
    """As in `elmanctl status | head -1`, at its most impatient."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "elmanctl", *command],
            cwd=with_runs.folder,
            env={**with_runs.environment, "PYTHONUNBUFFERED": unbuffered},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_reader_that_goes_away_hides_no_failure(with_runs: CommandLine) -> None:
    command = f"{sys.executable} -m elmanctl show nothing | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=with_runs.folder,
        env=with_runs.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 3
