"""A training on record is gone on with: longer, after a kill, or refused with the reason."""

import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli.evaluation_view import TrainingLine
from elmanctl.jobs.claim import this_worker
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.saved_file import read_header
from elmanctl.run.spec import AttemptSpec
from tests.command_line import CommandLine, QuickCommandLine
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.torch

MODEL = ["dim=16", "depth=1", "n_heads=2", "n_state=4", "lr=1e-2"]
SETTINGS = ["--preset", "tiny", "--set", "train.device=cpu", "--set", "train.threads=1"]
OFTEN = ["--set", "train.checkpoint_min=1e-9"]

# What a result may not owe to where its training began.
SAME = (
    *("objective", "loss", "last_loss", "last100_loss", "mean_loss", "val_loss", "val_loss_se"),
    *("bits_per_byte", "steps", "tokens", "flops", "fingerprint"),
)


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """Return all of a result that follows from its training alone."""
    validations = [
        {key: value for key, value in each.items() if key != "elapsed_s"}
        for each in result["validations"]
    ]
    return {key: result[key] for key in SAME} | {"validations": validations}


def evaluated(elmanctl: CommandLine, *words: str) -> dict[str, Any]:
    done = elmanctl("eval", *words, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def losses(folder: Path) -> list[float]:
    """Return the loss of every step, of the last start that made it."""
    files = [*sorted(folder.glob("metrics-restart-*.jsonl")), folder / "metrics.jsonl"]
    by_step = {
        record["step"]: record["loss"]
        for file in files
        for record in map(json.loads, file.read_text().splitlines())
    }
    return [by_step[step] for step in sorted(by_step)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(path: Path) -> None:
    end = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


@pytest.fixture(scope="module")
def kept(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], corpus: Path
) -> CommandLine:
    """A folder with an evaluation of 6 steps, whose model and last state are kept."""
    elmanctl = CommandLine(tmp_path_factory.mktemp("kept"), environment)
    shutil.copy(corpus, elmanctl.folder / "corpus.bytes")
    data = ["--data", str(elmanctl.folder / "corpus.bytes"), "--set", "train.val_every=4"]
    evaluated(elmanctl, "e88", *MODEL, *SETTINGS, *data, "--train-steps", "6", "--out", "short")
    assert {"model.safetensors", "checkpoint.safetensors"} <= contents(
        elmanctl.folder / "short"
    ).keys()
    return elmanctl


def test_kept_state_goes_on_to_the_losses_of_a_training_that_was_never_shorter(
    kept: CommandLine,
) -> None:
    short = kept.folder / "short"
    before = contents(short)
    done = kept("eval", "--from", "short", "--train-steps", "20", "--out", "long", "--json")
    assert "goes on from step 6 of short/checkpoint.safetensors" in done.stderr
    longer = json.loads(done.stdout)
    # A file of kind model has no state.
    model = ["--from", "short/model.safetensors"]
    done = kept("eval", *model, "--train-steps", "20", "--out", "whole", "--json")
    assert (
        "short/model.safetensors has kept no state, so the training begins at step 1" in done.stderr
    )
    whole = json.loads(done.stdout)
    assert measured(longer) == measured(whole)
    assert losses(kept.folder / "long") == losses(kept.folder / "whole")[6:]
    assert contents(short) == before

    origin = {"source": str(short), "step": 6}
    card = read_header(kept.folder / "long" / "model.safetensors").card
    assert longer["origin"] == card.result["origin"] == card.spec["origin"] == origin
    assert longer["continued_from"] == origin
    shown = kept("show", "long/model.safetensors").stdout
    assert f"origin      from step 6 of {short}\n" in shown
    compared = kept("compare", "long", "whole")
    assert compared.returncode == 0, compared.stderr


def test_training_that_is_killed_goes_on_to_the_same_losses(kept: CommandLine) -> None:
    words = ["--from", "short", "--train-steps", "100", *OFTEN]
    undisturbed = evaluated(kept, *words, "--out", "undisturbed")
    folder = kept.folder / "killed"
    process = kept.start(["eval", *words, "--out", "killed"])
    wait_for(folder / "checkpoint.safetensors")
    time.sleep(random.uniform(0, 0.3))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (folder / "result.json").exists()

    refused = kept("eval", "--from", "killed")
    assert refused.returncode == 2
    assert "`elmanctl eval --resume killed` goes on" in refused.stderr
    found = evaluated(kept, "--resume", "killed")
    assert found["restart"] == 1 and found["continued_from"]["step"] > 6
    assert found["origin"]["step"] == 6
    assert measured(found) == measured(undisturbed)
    assert losses(folder) == losses(kept.folder / "undisturbed")


def test_training_that_is_killed_before_its_first_checkpoint_goes_on_from_where_it_began(
    kept: CommandLine,
) -> None:
    shutil.copytree(kept.folder / "short", kept.folder / "begun-in")
    done = evaluated(kept, "--from", "begun-in", "--train-steps", "9", "--out", "early")
    early = kept.folder / "early"
    for name in ("result.json", "checkpoint.safetensors", "model.safetensors"):
        (early / name).unlink()
    found = evaluated(kept, "--resume", "early")
    assert found["continued_from"]["step"] == 6 and measured(found) == measured(done)


def test_interrupt_names_the_command_that_goes_on(kept: CommandLine) -> None:
    folder = kept.folder / "stopped"
    words = ["--from", "short", "--train-steps", "100000000", *OFTEN, "--out", "stopped"]
    process = kept.start(["eval", *words])
    wait_for(folder / "checkpoint.safetensors")
    refused = kept("eval", "--resume", "stopped")
    assert refused.returncode == 2
    assert f"is still running: process {process.pid} on " in refused.stderr
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130
    assert "continue with `elmanctl eval --resume stopped`" in output
    assert not (folder / "result.json").exists()

    # On another node only the heartbeat says whether the process is alive.
    claim = json.loads((folder / "claim.json").read_text())
    assert claim["host"] == this_worker().host
    (folder / "claim.json").write_text(json.dumps(claim | {"host": "another"}))
    (folder / "heartbeat.json").touch()
    refused = kept("eval", "--resume", "stopped")
    assert refused.returncode == 2 and "on another" in refused.stderr
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps(spec | {"budget": {"steps": 7}}))
    os.utime(folder / "heartbeat.json", (0, 0))
    assert evaluated(kept, "--resume", "stopped")["restart"] == 1


def test_evaluation_of_a_search_is_trained_as_it_was(elmanctl: CommandLine, corpus: Path) -> None:
    search = ["search", "e88", "--local", *SETTINGS, "--generations", "1", "--yes", "--json"]
    search += ["--name", "run", "--data", str(corpus), "--train-steps", "8", "--workers", "1"]
    search += ["--set", "search.population=4", "--set", "search.confirm_top=0"]
    done = elmanctl(*search)
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout)["best"]["evaluation"]
    folder = elmanctl.folder / f"runs/run/evaluations/{best}/attempt-1"
    recorded, before = json.loads((folder / "result.json").read_text()), contents(folder)

    done = elmanctl("eval", "--from", "run", "--out", "again", "--json")
    assert f"run/{best} has kept no state, so the training begins at step 1" in done.stderr
    again = json.loads(done.stdout)
    assert measured(again) == measured(recorded)
    assert losses(folder) == losses(elmanctl.folder / "again")
    longer = evaluated(elmanctl, "--from", f"run/{best}", "--train-steps", "12", "--out", "longer")
    assert longer["steps"] == 12
    assert losses(elmanctl.folder / "longer")[:8] == losses(folder)
    assert contents(folder) == before

    # What it stems from is known over any number of longer trainings.
    longest = evaluated(elmanctl, "--from", "longer", "--train-steps", "14", "--out", "longest")
    named = {key: longest["origin"][key] for key in ("run", "evaluation", "step")}
    assert named == {"run": "run", "evaluation": best, "step": 12}


def test_line_of_a_training_has_its_numbers(kept: CommandLine) -> None:
    paths = AttemptPaths(kept.folder / "short")
    spec = AttemptSpec.read(paths.spec)
    losses, rate = r"loss \d\.\d{4}  held out \d\.\d{4}", r"[\d,]+ bytes/s"
    left, saved = r"about 00:00:00 left", "checkpoint at step 6"
    line = str(TrainingLine(paths, spec))
    assert re.fullmatch(rf"done  step 6 of 6  {losses}  {left}  {rate}  {saved}", line)
    by_time = replace(spec.training, steps=None, minutes=600.0)
    line = str(TrainingLine(paths, replace(spec, training=by_time)))
    left = r"about (09:59:\d\d|10:00:00) left"
    assert re.fullmatch(rf"done  0\.\d of 600 min, step 6  {losses}  {left}  {rate}  {saved}", line)


@pytest.fixture
def quick_kept(kept: CommandLine, monkeypatch: pytest.MonkeyPatch) -> QuickCommandLine:
    """The command line of `kept`, in this process."""
    return QuickCommandLine(kept, monkeypatch)


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        ([], 2, "there is nothing to train"),
        (["--from", "short"], 2, "short was trained for 6 steps already, and the budget is 6"),
        (["--from", "short", "--train-tokens", "9"], 2, "tokens already, and the budget is 9"),
        (["--from", "short", "--train-flops", "9"], 2, "flops already, and the budget is 9"),
        (["e88", "--from", "short"], 2, "the model `e88` and `--from` do not go together"),
        (["--from", "short", "--resume", "short"], 2, "do not go together"),
        (["--from", "nothing"], 3, "no run, evaluation or folder `nothing`"),
        (["--from", "short/gone.safetensors"], 3, "short/gone.safetensors"),
        (["--from", "short/spec.json"], 2, "is no saved model"),
        (["--from", "short", "--protocol", "fair"], 2, "`--protocol`"),
        (["--from", "short", "--set", "search.seed=3"], 2, "`search.seed`"),
        (["--from", "short", "--train-steps", "9", "--data", "none"], 3, "no such corpus file"),
        (["--from", "short", "--train-steps", "9", "--out", "short"], 2, "short exists"),
        (["--from", "short", "--set", "train.lr=11"], 2, "`train.lr` must be"),
        (["--resume", "short"], 2, "has ended"),
        (["--resume", "nothing"], 3, "holds no evaluation"),
        (["--resume", "short", "--train-steps", "9"], 2, "cannot be changed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    quick_kept: QuickCommandLine, words: list[str], code: int, what: str
) -> None:
    before = sorted(quick_kept.folder.iterdir())
    done = quick_kept("eval", *words)
    assert done.returncode == code, done.stderr
    first, *_ = done.stderr.split("\n\n")
    assert first.startswith("error: ") and what in first and "\n" not in first.strip()
    assert sorted(quick_kept.folder.iterdir()) == before


def test_damaged_state_is_refused_and_not_trained_over(quick_kept: QuickCommandLine) -> None:
    folder = quick_kept.folder / "damaged"
    shutil.copytree(quick_kept.folder / "short", folder)
    whole = (folder / "checkpoint.safetensors").read_bytes()
    words = ["--from", "damaged", "--train-steps", "9"]
    (folder / "checkpoint.safetensors").write_bytes(whole[:-9])
    done = quick_kept("eval", *words)
    assert done.returncode == 2 and "bytes, " in done.stderr and "it was cut" in done.stderr
    # The head is whole, and the tensors are read only where they are trained on.
    (folder / "checkpoint.safetensors").write_bytes(
        whole[:-9] + bytes(255 - byte for byte in whole[-9:])
    )
    done = quick_kept("eval", *words, "--out", "of-damaged")
    assert done.returncode == 2
    assert re.search(r"error: cannot go on from .* is damaged: the checksum of .*\n", done.stderr)
    assert not (quick_kept.folder / "of-damaged" / "metrics.jsonl").read_bytes()
    # Begun anew by its settings alone, it needs no state.
    model = ["--from", "damaged/model.safetensors", "--train-steps", "1"]
    assert quick_kept("eval", *model, "--out", "anew").returncode == 0


def test_state_of_another_seed_is_not_gone_on_from(quick_kept: QuickCommandLine) -> None:
    done = quick_kept("eval", "--from", "short", "--seed", "8", "--out", "seed-8", "--json")
    assert done.returncode == 0, done.stderr
    assert "is of another configuration, seed, learning rate" in done.stderr
    found = json.loads(done.stdout)
    assert (found["seed"], found["steps"], found["continued_from"]) == (8, 6, None)


def test_options_take_the_place_of_the_record(quick_kept: QuickCommandLine) -> None:
    words = ["--train-tokens", "2048", "--set", "train.batch=4", "--no-keep-state"]
    done = quick_kept("eval", "--from", "short", *words, "--out", "changed", "--json")
    assert done.returncode == 0, done.stderr
    found, folder = json.loads(done.stdout), quick_kept.folder / "changed"
    spec, earlier = (
        json.loads((path / "spec.json").read_text()) for path in (folder, folder.parent / "short")
    )
    differ = {key for key in spec.keys() | earlier.keys() if spec.get(key) != earlier.get(key)}
    assert differ == {"budget", "batch", "keep", "origin"}
    assert found["tokens"] == 2048 and found["steps"] == 2048 // (4 * spec["seq_len"])
    assert not (folder / "checkpoint.safetensors").exists()
    assert (folder / "model.safetensors").exists()


def test_corpus_that_changed_or_is_gone_is_refused(
    quick_kept: QuickCommandLine, tmp_path: Path
) -> None:
    corpus = quick_kept.folder / "corpus.bytes"
    whole = corpus.read_bytes()
    words = ["--from", "short", "--train-steps", "9"]
    try:
        corpus.write_bytes(whole[::-1])
        changed = quick_kept("eval", *words)
        corpus.unlink()
        gone = quick_kept("eval", *words)
        (tmp_path / "copy.bytes").write_bytes(whole)
        copied = quick_kept("eval", *words, "--data", str(tmp_path / "copy.bytes"), "--json")
    finally:
        corpus.write_bytes(whole)
    assert (
        changed.returncode == 4
        and "is not the corpus of that evaluation any more" in changed.stderr
    )
    assert gone.returncode == 3 and "the corpus of that evaluation is gone" in gone.stderr
    # The same text elsewhere is the same corpus.
    assert json.loads(copied.stdout)["continued_from"]["step"] == 6


def test_evaluation_that_failed_is_not_trained_longer(quick_kept: QuickCommandLine) -> None:
    folder = quick_kept.folder / "failed"
    shutil.copytree(quick_kept.folder / "short", folder)
    result = json.loads((folder / "result.json").read_text())
    result["verdict"]["kind"] = "divergence"
    (folder / "result.json").write_text(json.dumps(result))
    done = quick_kept("eval", "--from", "failed", "--train-steps", "9")
    assert done.returncode == 2
    assert "is divergence, so there is nothing to train on" in done.stderr
