"""What the other commands print and change."""

import json
import os
import re
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli.interrupts import interruptible
from elmanctl.cli.output import configure
from elmanctl.cli.search_summary import print_summary
from elmanctl.ledger.events import decode_line, encode_event
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import FAMILIES
from elmanctl.search.requeue import TOO_LATE
from elmanctl.search.session import Session
from elmanctl.verdicts.policy import RULES
from tests.cli.conftest import Snapshot
from tests.command_line import QuickCommandLine


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the one JSON document on stdout."""
    found: dict[str, Any] = json.loads(succeeded(done))
    assert found["version"] == 1
    return found


def state_of(user: QuickCommandLine, run: str) -> RunState:
    return load_run(user.folder / "runs" / run).state


def test_models_are_listed_with_their_spaces(quick: QuickCommandLine) -> None:
    lines = succeeded(quick("models")).splitlines()
    assert lines[0] == "MODEL\tSUMMARY\tBACKENDS"
    assert [line.split("\t")[0] for line in lines[1:]] == list(FAMILIES)
    rows = [line.split("\t") for line in succeeded(quick("models", "E88")).splitlines()]
    assert ["6d", "lr", "log", "1e-05 to 0.001, logarithmic", "0.00048", "training"] in rows
    assert ["3d", "n_heads", "int", "32 to 160", "98", "parameters"] in rows


def test_parameters_are_counted_part_by_part(quick: QuickCommandLine) -> None:
    fields = {"dim": 64, "depth": 1, "n_heads": 2, "n_state": 32}
    words = [f"{key}={value}" for key, value in fields.items()]
    found = document(quick("params", "e88", *words, "--json"))
    assert found["parameters"] == sum(found["parts"].values()) == count_parameters("e88", fields)
    assert f"parameters\t{found['parameters']}\n" in succeeded(quick("params", "e88", *words))


def test_dim_that_meets_a_budget_is_found_with_its_error(quick: QuickCommandLine) -> None:
    words = ("calc-dim", "e88", "--params", "480M", "--multiple-of", "64")
    found = document(quick(*words, "depth=17", "n_heads=83", "n_state=32", "--json"))
    assert found["dim"] % 64 == 0
    assert abs(found["parameters"] - 480_000_000) <= 0.02 * 480_000_000
    text = succeeded(quick(*words, "depth=17", "n_heads=83", "n_state=32"))
    assert text.startswith(f"dim={found['dim']} parameters={found['parameters']} error=")


@pytest.mark.parametrize("words", [["dim"], ["=3"], ["dim=1", "dim=2"], ["lr=1"]])
def test_words_that_assign_nothing_are_refused(words: list[str], quick: QuickCommandLine) -> None:
    assert quick("params", "e88", *words).returncode == 2


def test_init_writes_a_file_that_every_command_accepts(quick: QuickCommandLine) -> None:
    assert succeeded(quick("init", "study")) == "study/elman.toml\n"
    tomllib.loads((quick.folder / "study" / "elman.toml").read_text(encoding="utf-8"))
    assert succeeded(quick("-C", str(quick.folder / "study"), "models"))
    refused = quick("init", str(quick.folder / "study"))
    assert (refused.returncode, "exists" in refused.stderr) == (2, True)
    assert quick("init", str(quick.folder / "study"), "--force").returncode == 0


def test_config_tells_where_each_value_was_set(
    quick: QuickCommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (quick.folder / "elman.toml").write_text("[search]\npopulation = 6\n", encoding="utf-8")
    monkeypatch.setenv("ELMAN_SEARCH_SIGMA", "0.4")
    text = succeeded(quick("config", "--show-origin", "--preset", "tiny"))
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in text.splitlines()}
    assert rows["search.sigma"] == ["0.4", "the environment"]
    assert rows["search.population"] == ["4", "preset tiny"]
    assert rows["search.seed"] == ["1", "default"]
    assert rows["train.minutes"] == ["", "default"]
    assert rows["oom"] == ["neighbour", "nothing", "3", "another node", "infrastructure"]
    found = document(quick("config", "--json"))
    assert len(found["policy"]) == len(RULES)
    values = {row["key"]: (row["value"], row["from"]) for row in found["settings"]}
    assert values["search.population"] == (6, "elman.toml")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_program(shell: str, quick: QuickCommandLine) -> None:
    text = succeeded(quick("completion", shell))
    assert "elmanctl" in text and "_ELMANCTL_COMPLETE" in text
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.torch
def test_dry_run_prints_the_script_of_the_first_generation_and_writes_nothing(
    quick: QuickCommandLine, snapshot: Snapshot, corpus: Path
) -> None:
    done = quick(
        *("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run"),
        *("--partition", "gpu", "--template", "h100", "--population", "6"),
    )
    lines = succeeded(done).splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=0-5%6" in lines
    assert "#SBATCH --partition=gpu" in lines
    # The preset stands above no template: what it says of Slurm is under the flag's template.
    assert "#SBATCH --gres=gpu:h100:1" in lines
    assert "6 e88 models" in done.stderr
    # All of the first points can be trained, and nothing is said of that.
    assert "first points" not in done.stderr
    local = quick(
        *("search", "e88", "--local", "--preset", "tiny"), "--data", str(corpus), "--dry-run"
    )
    assert "would run 2 evaluations at a time" in succeeded(local)
    assert "asynchronous" not in local.stderr + done.stderr
    assert snapshot() == {}


@pytest.mark.torch
def test_dry_run_of_an_asynchronous_search_has_as_many_jobs_as_are_in_flight(
    quick: QuickCommandLine, corpus: Path
) -> None:
    words = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run")
    mode = ("--asynchronous", "--population", "5")
    done = quick(*words, *mode)
    assert "#SBATCH --array=0-4%5" in succeeded(done).splitlines()
    assert "asynchronous: asks a point for each evaluation that ends" in done.stderr
    wide = quick(*words, *mode, "--set", "search.max_jobs=9")
    assert "#SBATCH --array=0-8%9" in succeeded(wide).splitlines()
    local = quick(*words, *mode, "--local", "--workers", "7")
    assert "would run 7 evaluations at a time" in succeeded(local)


@pytest.mark.torch
def test_dry_run_as_json_is_the_plan_in_one_document(
    quick: QuickCommandLine, snapshot: Snapshot, corpus: Path
) -> None:
    words = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run", "--seed", "7")
    done = quick(*words, "--partition", "gpu", "--json")
    found = document(done)
    assert done.stderr == ""
    assert found["script"] == succeeded(quick(*words, "--partition", "gpu")).removesuffix("\n")
    assert (found["run"], found["model"], found["executor"]) == ("e88-tiny", "e88", "slurm")
    assert found["evaluations"] == found["generations"] * found["population"] > 0
    assert found["resources"]["partition"] == "gpu" and found["optimizer_seed"] == 7
    assert set(found["start"]["values"]) == set(found["space"]["axes"]) == set(found["audit"])
    assert found["start"]["source"] == "the middle of the space"
    assert 0 <= found["refused_share"] < 1
    assert {"budget", "params", "tolerance", "multiple_of"} <= set(found)
    local = document(quick(*words, "--local", "--json"))
    assert (local["script"], local["at_once"], local["executor"]) == (None, 2, "local")
    assert snapshot() == {}


@pytest.mark.torch
def test_dry_run_says_what_the_cluster_says_and_makes_do_without_one(
    quick: QuickCommandLine, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--dry-run")
    monkeypatch.setenv("PATH", os.devnull)
    done = quick(*words)
    assert succeeded(done).startswith("#!/bin/bash\n")
    silence = "cluster: not queried, so nothing was checked against it: no `sbatch` on this machine"
    assert silence in done.stderr
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    for name, body in {
        "scontrol": "echo 'MaxArraySize = 9'",
        "sbatch": "echo 'sbatch: error: Batch job submission failed: Invalid qos specification' "
        ">&2; exit 1",
        "sinfo": "echo 'big|big*|up|0:05:00|3|gpu:8|64|9000|NO'",
        "sacctmgr": "exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    done = quick(*words)
    assert succeeded(done).startswith("#!/bin/bash\n")
    told = done.stderr
    refusal = "Invalid qos specification (`slurm.extra`)\n"
    assert f"cluster: sbatch would refuse these jobs: {refusal}" in told
    assert "partition big: 3 nodes of up to 8 GPUs, 64 CPUs and 9000 MB, at most 5 min a j" in told
    assert "limits: arrays of 9 jobs\n" in told
    assert "warning: jobs ask for 10 min, and partition big allows 5" in told
    found = document(quick(*words, "--json"))["cluster"]
    assert (found["outcome"], found["array_limit"], found["silence"]) == ("never", 9, None)
    assert found["partitions"][0]["limit_min"] == 5
    assert document(quick(*words, "--local", "--json"))["cluster"] is None


START = r"^starts at n_heads=\d+ n_state=\d+ depth=\d+ lr=[\d.]+ \(the middle of the space\); "


@pytest.mark.torch
def test_search_says_where_it_starts_and_warns_of_a_start_it_would_refuse(
    quick: QuickCommandLine, corpus: Path
) -> None:
    words = ("search", "e88", "--local", "--preset", "tiny", "--data", str(corpus), "--dry-run")
    done = quick(*words, "--seed", "7")
    line = re.search(rf"{START}optimizer seed 7$", done.stderr, re.MULTILINE)
    assert line is not None, done.stderr
    values = document(quick(*words, "--json"))["start"]["values"]
    assert line[0].startswith("starts at " + " ".join(f"{k}={v:.3g}" for k, v in values.items()))
    assert "warning" not in done.stderr
    # So close to the budget no dim brings the middle of the space.
    done = quick(*words, "--tolerance", "0.01")
    fault = document(quick(*words, "--tolerance", "0.01", "--json"))["start"]["fault"]
    assert fault is not None
    assert f"warning: the start point is infeasible: {fault}; it is not trained" in done.stderr


def test_every_report_of_a_run_says_where_it_started(quick_with_runs: QuickCommandLine) -> None:
    line = "starts at n_heads=8 lr=0.00316 (the middle of the space); optimizer seed 3"
    assert f"  search  {line}" in quick_with_runs("status", "finished").stderr.splitlines()
    assert f"  search      {line}" in succeeded(quick_with_runs("show", "finished", "best"))
    for words in (("show", "finished", "best"), ("status", "finished"), ("resume", "finished")):
        found = document(quick_with_runs(*words, "--json"))
        row = found["run"] if words[0] == "status" else found
        assert row["start"]["values"]["n_heads"] == 8 and row["optimizer_seed"] == 3
    assert f"search       {line}" in succeeded(quick_with_runs("resume", "finished"))


def test_run_whose_ledger_tells_no_values_is_shown_by_its_source(
    quick_with_runs: QuickCommandLine,
) -> None:
    """As version 0.1 wrote it."""
    ledger = quick_with_runs.folder / "runs" / "finished" / "ledger.jsonl"
    first, *rest = ledger.read_bytes().splitlines(keepends=True)
    event = decode_line(first.rstrip(b"\n"))
    del event.data["run"]["start"]["values"]
    ledger.write_bytes(b"".join([encode_event(event), *rest]))
    done = quick_with_runs("status", "finished")
    assert done.returncode == 0
    start = "starts at the middle of the space; optimizer seed 3"
    assert f"  search  {start}" in done.stderr.splitlines()


@pytest.mark.torch
def test_name_of_a_new_run_is_free_and_fit_for_a_folder(
    quick_with_runs: QuickCommandLine, corpus: Path
) -> None:
    (quick_with_runs.folder / "runs" / "finished").rename(
        quick_with_runs.folder / "runs" / "e88-100k"
    )
    words = ("search", "e88", "--local", "--train-steps", "5", "--data", str(corpus), "--dry-run")
    tiny = ("--space", "tiny", "--tolerance", "0.1")
    (quick_with_runs.folder / "elman.toml").write_text("[search]\nmultiple_of = 8\n")
    assert "e88-100k-2: " in quick_with_runs(*words, *tiny, "--params", "100K").stderr
    assert "e88-100000: " in quick_with_runs(*words, *tiny, "--params", "100,000").stderr


def test_show_tells_of_every_attempt_with_its_evidence(quick_with_runs: QuickCommandLine) -> None:
    text = succeeded(quick_with_runs("show", "finished", "0.1", "--tail", "3"))
    assert text.startswith("g000-e01 of finished: completed\n")
    assert re.search(r"^attempt 1: failed", text, re.MULTILINE)
    assert "verdict     node_failure" in text
    assert "scheduler: state NODE_FAIL, on n1" in text
    assert re.search(r"^attempt 2: completed", text, re.MULTILINE)
    assert "tokens/s" not in text
    assert text.splitlines()[-3:] == ["  step 4997", "  step 4998", "  step 4999"]
    found = document(quick_with_runs("show", "finished", "0.1", "--json"))
    assert [attempt["verdict"]["kind"] for attempt in found["attempts"]] == [
        "node_failure",
        "completed",
    ]


def test_log_is_printed_as_it_is_whole_or_from_its_end(quick_with_runs: QuickCommandLine) -> None:
    whole = succeeded(quick_with_runs("logs", "finished", "g001-e00"))
    assert whole == "".join(f"step {i}\n" for i in range(5000))
    assert (
        succeeded(quick_with_runs("logs", "finished", "1.0", "-n", "2")) == "step 4998\nstep 4999\n"
    )
    assert succeeded(quick_with_runs("logs", "finished", "1.0", "--follow")) == whole
    assert succeeded(quick_with_runs("logs", "finished", "g000-e01", "--attempt", "1"))
    assert quick_with_runs("logs", "finished", "g000-e01", "--attempt", "0").returncode == 2


def test_what_would_be_queued_or_cancelled_is_listed_and_nothing_is_done(
    quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    before = snapshot()
    run = ("--run", "interrupted-search", "--dry-run")
    failed = succeeded(quick_with_runs("requeue", "--failed", *run))
    assert failed.splitlines() == [
        "EVAL\tWAS\tATTEMPT\tSTATE\tCHANGES\tNOTE",
        f"g000-e02\tpython_error\t2\tfailed\t\t{TOO_LATE}",
    ]
    words = ("requeue", "interrupted-search", "g000-e02", "--timeout-min", "90", "--dry-run")
    (row,) = document(quick_with_runs(*words, "--json"))["evaluations"]
    assert (row["changes"], row["attempt"]) == ({"timeout_min": 90}, 2)
    refused = quick_with_runs("requeue", "interrupted-search", "--dry-run")
    assert (refused.returncode, "name the evaluations" in refused.stderr) == (2, True)
    running = document(quick_with_runs("cancel", "--all", *run, "--json"))
    assert [row["evaluation"] for row in running["evaluations"]] == ["g001-e00"]
    assert succeeded(quick_with_runs("requeue", "--failed", "--kind", "oom", *run)).count("\n") == 1
    assert snapshot() == before


def test_clean_removes_exactly_what_its_dry_run_listed(
    quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    before = snapshot()
    keep = ("--keep-best", "6", "--keep-last", "0")
    words = ("clean", "finished", *keep, "--kind", "metrics,logs")
    listed = document(quick_with_runs(*words, "--dry-run", "--json"))
    assert snapshot() == before
    planned = {f"runs/finished/{row['path']}" for row in listed["removable"]}
    others = state_of(quick_with_runs, "finished").ranked()[6:]
    attempts = [attempt for evaluation in others for attempt in evaluation.attempts]
    # The logs of failures stay.
    logs = [attempt for attempt in attempts if attempt.state is not State.FAILED]
    assert len(planned) == len(attempts) + len(logs) > 0
    done = document(quick_with_runs(*words, "--yes", "--json"))
    after = snapshot()
    assert set(before) - set(after) == planned
    assert done["freed_bytes"] == listed["freed_bytes"]
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {"runs/finished/ledger.jsonl"}
    assert succeeded(quick_with_runs(*words, "--yes")) == "freed 0 bytes in 0 files\n"


def test_cancelled_run_is_closed_for_good(
    quick_with_runs: QuickCommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    part = quick_with_runs("cancel", "interrupted-search", "g001-e00", "--dry-run", "--json")
    assert [row["evaluation"] for row in document(part)["evaluations"]] == ["g001-e00"]
    done = quick_with_runs("cancel", "interrupted-search", "--all", "--yes", "--json")
    found = document(done)
    assert [row["evaluation"] for row in found["cancelled"]] == ["g001-e00"]
    state = state_of(quick_with_runs, "interrupted-search")
    assert state.status.value == "cancelled"
    assert state.evaluations["g001-e00"].state is State.CANCELLED
    for words in (("resume", "interrupted"), ("requeue", "g000-e02", "--run", "interrupted")):
        refused = quick_with_runs(*words)
        assert refused.returncode == 2
        assert "was cancelled" in refused.stderr
    with Session.open(quick_with_runs.folder / "runs" / "interrupted-search") as session:
        print_summary(session.paths, session.state)
    hint = capsys.readouterr().err
    assert "elmanctl show interrupted-search best" in hint and "resume" not in hint


def test_quiet_command_keeps_its_talk_to_itself(quick_with_runs: QuickCommandLine) -> None:
    done = quick_with_runs("-q", "status", "finished")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("EVAL\t")
    # Errors are no talk.
    assert quick_with_runs("-q", "status", "nothing").stderr.startswith("error: ")


def test_first_signal_asks_a_search_to_stop_and_the_second_ends_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(color="auto", quiet=False)
    before = signal.getsignal(signal.SIGTERM)
    with interruptible("e88-tiny") as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "continue with `elmanctl resume e88-tiny`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "next_words"),
    [
        (("show", "finished"), "elmanctl show finished best"),
        (("logs", "finished"), "elmanctl logs finished best"),
        (("cancel", "--run", "finished", "zzz"), "elmanctl status finished --all"),
        (("cancel", "interrupted-search"), "elmanctl cancel interrupted-search --all"),
        (("cancel", "interrupt", "--all", "--yes"), "elmanctl status"),
        (("requeue", "nosuchrun", "--failed"), "elmanctl status"),
        (("requeue", "interrupted-search"), "elmanctl requeue --failed --dry-run"),
    ],
)
def test_hint_after_a_mistake_can_be_typed_as_it_stands(
    quick_with_runs: QuickCommandLine, words: tuple[str, ...], next_words: str
) -> None:
    done = quick_with_runs(*words)
    assert done.returncode in (2, 3)
    assert f"`{next_words}`" in done.stderr.partition("hint:")[2]


def test_requeue_of_nothing_says_so(quick_with_runs: QuickCommandLine) -> None:
    done = quick_with_runs("requeue", "finished", "--failed", "--dry-run")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stderr == "no evaluation of finished failed: nothing to do\n"


def test_signal_that_is_ignored_stays_ignored() -> None:
    """As SIGHUP is under nohup, so that a search outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible("e88-tiny") as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
