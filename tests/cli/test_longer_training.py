"""A training on record is gone on with: longer, after a kill, or refused with the reason."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine, QuickCommandLine

pytestmark = pytest.mark.torch

TINY = ["dim=16", "depth=1", "n_heads=2", "n_state=4", "lr=1e-2", "--preset", "tiny"]


def evaluated(elmanctl: CommandLine, *words: str) -> dict[str, Any]:
    done = elmanctl("eval", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def losses(folder: Path) -> list[float]:
    files = [*sorted(folder.glob("metrics-restart-*.jsonl")), folder / "metrics.jsonl"]
    by_step = {
        record["step"]: record["loss"]
        for file in files
        for record in map(json.loads, file.read_text().splitlines())
    }
    return [by_step[step] for step in sorted(by_step)]


@pytest.fixture
def longer(elmanctl: CommandLine, corpus: Path) -> CommandLine:
    """A folder with an evaluation of 6 steps, whose model and last state are kept."""
    words = ["e88", *TINY, "--train-steps", "6", "--data", str(corpus), "--set", "train.threads=1"]
    evaluated(elmanctl, *words, "--set", "train.val_every=4", "--out", "short")
    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert (elmanctl.folder / "short" / name).is_file()
    return elmanctl


def test_a_kept_state_is_gone_on_with_as_if_it_had_never_stopped(longer: CommandLine) -> None:
    before = {path: path.read_bytes() for path in (longer.folder / "short").iterdir()}
    found = evaluated(longer, "--from", "short", "--train-steps", "20", "--out", "long")
    assert found["continued_from"]["step"] == 6
    assert found["origin"]["source"] == str(longer.folder / "short")
    assert {path: path.read_bytes() for path in (longer.folder / "short").iterdir()} == before
    model = longer.folder / "short" / "model.safetensors"
    whole = evaluated(longer, "--from", str(model), "--train-steps", "20", "--out", "whole")
    assert whole.get("continued_from") is None
    same = ("loss", "val_loss", "val_loss_se", "mean_loss", "fingerprint", "steps", "tokens")
    assert {key: found[key] for key in same} == {key: whole[key] for key in same}
    assert [v["val_loss"] for v in found["validations"]] == [
        v["val_loss"] for v in whole["validations"]
    ]
    assert losses(longer.folder / "long") == losses(longer.folder / "whole")[6:]


def test_a_training_that_is_killed_goes_on_to_the_same_losses(longer: CommandLine) -> None:
    words = ["--train-steps", "120", "--set", "train.checkpoint_min=1e-9"]
    undisturbed = evaluated(longer, "--from", "short", *words, "--out", "undisturbed")
    folder = longer.folder / "killed"
    process = longer.start(["eval", "--from", "short", *words, "--out", str(folder)])
    while process.poll() is None and not (folder / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    time.sleep(0.2 * os.urandom(1)[0] / 255)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = json.loads(resumed(longer, folder).stdout)
    assert found["restart"] == 1
    same = ("loss", "val_loss", "mean_loss", "validations", "steps", "fingerprint")
    for result in (found, undisturbed):
        for each in result["validations"]:
            del each["elapsed_s"]
    assert {key: found[key] for key in same} == {key: undisturbed[key] for key in same}
    assert losses(folder) == losses(longer.folder / "undisturbed")


def resumed(elmanctl: CommandLine, folder: Path) -> subprocess.CompletedProcess[str]:
    done = elmanctl("eval", "--resume", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    return done


def test_an_interrupt_names_the_command_that_goes_on(longer: CommandLine) -> None:
    folder = longer.folder / "stopped"
    words = ["--train-steps", "100000000", "--set", "train.checkpoint_min=1e-9"]
    process = longer.start(["eval", "--from", "short", *words, "--out", "stopped"])
    while not (folder / "checkpoint.safetensors").exists():
        time.sleep(0.01)
    refused = longer("eval", "--resume", "stopped")
    assert refused.returncode == 2
    assert f"is still running: process {process.pid}" in refused.stderr
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "continue with `elmanctl eval --resume stopped`" in output
    assert not (folder / "result.json").exists()


def test_an_evaluation_of_a_search_is_trained_longer_as_it_was(
    elmanctl: CommandLine, corpus: Path
) -> None:
    search = ["search", "e88", "--local", "--preset", "tiny", "--generations", "1", "--yes"]
    search += ["--name", "run", "--data", str(corpus), "--train-steps", "8", "--workers", "1"]
    search += ["--set", "search.confirm_top=0", "--set", "train.threads=1"]
    done = elmanctl(*search, "--json")
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)["best"]
    again = evaluated(elmanctl, "--from", "run", "--out", "again")
    # The same budget is the same training, to the last bit.
    assert again["loss"] == best["loss"]
    runs = list(elmanctl.folder.glob(f"runs/run/evaluations/{best['evaluation']}/attempt-1"))
    assert len(runs) == 1
    recorded = json.loads((runs[0] / "result.json").read_text())
    assert recorded["fingerprint"] == again["fingerprint"]
    assert losses(runs[0]) == losses(elmanctl.folder / "again")
    named = evaluated(
        elmanctl, "--from", f"run/{best['evaluation']}", "--train-steps", "12", "--out", "longer"
    )
    assert named["steps"] == 12
    assert losses(elmanctl.folder / "longer")[:8] == losses(runs[0])


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        ([], 2, "there is nothing to train"),
        (["--from", "short"], 2, "was trained for 6 steps already, and the budget is 6"),
        (["--from", "short", "--train-steps", "3"], 2, "was trained for 6 steps already"),
        (["e88", "--from", "short"], 2, "the model `e88` and `--from` do not go together"),
        (["--from", "short", "--resume", "short"], 2, "do not go together"),
        (["--from", "nothing"], 3, "no run, evaluation or folder `nothing`"),
        (["--from", "gone.safetensors"], 3, "there is no file"),
        (["--from", "cut.safetensors", "--train-steps", "9"], 2, "were written"),
        (["--from", "short", "--protocol", "fair"], 2, "not `--protocol`"),
        (["--from", "short", "--set", "search.seed=3"], 2, "not `search.seed`"),
        (["--from", "short", "--train-steps", "9", "--data", "none"], 3, "no such corpus file"),
        (["--from", "short", "--train-steps", "9", "--out", "short"], 2, "exists"),
        (["--resume", "short"], 2, "has ended"),
        (["--resume", "nothing"], 3, "holds no evaluation"),
        (["--resume", "short", "--train-steps", "9"], 2, "cannot be changed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    kept_once: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    what: str,
) -> None:
    cut = (kept_once.folder / "short" / "model.safetensors").read_bytes()[:-9]
    (kept_once.folder / "cut.safetensors").write_bytes(cut)
    done = QuickCommandLine(kept_once, monkeypatch)("eval", *words)
    assert done.returncode == code, done.stderr
    first, *rest = done.stderr.strip().split("\n\n")
    assert first.startswith("error: ") and what in first and "\n" not in first
    if not what.startswith("there is no file") and "were written" not in what:
        assert rest and rest[0].startswith("hint: ")


@pytest.fixture(scope="module")
def kept_once(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], corpus: Path
) -> CommandLine:
    elmanctl = CommandLine(tmp_path_factory.mktemp("kept"), environment)
    words = ["e88", *TINY, "--train-steps", "6", "--data", str(corpus)]
    evaluated(elmanctl, *words, "--out", "short")
    return elmanctl


def test_another_corpus_under_the_same_name_is_refused(longer: CommandLine, corpus: Path) -> None:
    moved = longer.folder / "corpus.bytes"
    moved.write_bytes(corpus.read_bytes())
    words = ["e88", *TINY, "--train-steps", "6", "--data", str(moved)]
    evaluated(longer, *words, "--out", "of-moved")
    moved.write_bytes(corpus.read_bytes()[::-1])
    done = longer("eval", "--from", "of-moved", "--train-steps", "9")
    assert done.returncode == 4
    assert "is not the corpus of that evaluation any more" in done.stderr
    moved.unlink()
    done = longer("eval", "--from", "of-moved", "--train-steps", "9")
    assert done.returncode == 3 and "no such corpus file" in done.stderr
