"""A whole search on this machine, with workers that really train, and what one does after it."""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from elmanctl.ledger.disk import measure
from elmanctl.ledger.records import RunStatus, State
from elmanctl.run.corpus import describe
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.saved_file import read_header
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.split import find_split
from tests.command_line import CommandLine
from tests.integration.runs import load, trained_attempts

pytestmark = pytest.mark.slow


@pytest.mark.torch
def test_search_is_run_looked_at_cleaned_and_resumed(elmanctl: CommandLine, corpus: Path) -> None:
    searched = elmanctl(
        *("search", "e88", "--local", "--preset", "tiny", "--generations", "1"),
        *("--train-steps", "10", "--data", str(corpus), "--yes"),
        *("--set", "search.confirm_top=0", "--keep-models", "2"),
    )
    assert searched.returncode == 0, searched.stderr
    assert (
        searched.stdout.splitlines()[0] == "e88-tiny finished: 4 completed, 0 failed, 0 cancelled"
    )
    assert "elmanctl show e88-tiny best" in searched.stderr
    start = r"starts at n_heads=.* \(the middle of the space\); optimizer seed 1"
    assert re.fullmatch(rf"search       {start}", searched.stdout.splitlines()[1])
    # One line for each attempt and each generation.
    told = searched.stderr.splitlines()
    assert sum(bool(re.match(r"g000-e0\d completed: loss \d", line)) for line in told) == 4
    assert sum("4 evaluated, best " in line for line in told) == 1

    run = RunPaths(elmanctl.folder / "runs" / "e88-tiny")
    state = load(run.folder)
    assert state.status is RunStatus.FINISHED
    best = state.best()
    assert best is not None and best.loss is not None
    _look(elmanctl, best.id, best.loss)
    _use(elmanctl, run.attempt(best.id, 1))
    _load_models(elmanctl, run)

    before = measure(run.folder)
    cleaned = elmanctl("clean", "--keep-best", "1", "--keep-last", "0", "--yes")
    assert re.fullmatch(r"freed \d.* in \d+ files\n", cleaned.stdout), cleaned.stderr
    assert measure(run.folder) < before
    assert list(run.evaluations.glob("*/*/metrics.jsonl")) == [run.attempt(best.id, 1).metrics]
    assert len(trained_attempts(run.folder)) == 4

    # Nothing is left to do, and what was removed is not missed.
    resumed = elmanctl("resume", "--json")
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads(resumed.stdout)
    assert (found["status"], found["evaluations"]["completed"]) == ("finished", 4)
    assert (found["best"]["evaluation"], found["best"]["loss"]) == (best.id, best.loss)
    assert {e.state for e in load(run.folder).evaluations.values()} == {State.COMPLETED}
    _confirm(elmanctl, run)
    _remove_models(elmanctl, run)


def _load_models(elmanctl: CommandLine, run: RunPaths) -> None:
    """Load the models that the search has kept: those of the two best, each its own."""
    from elmanctl.jobs.saved_model import load_model

    models = {path.parts[-3]: path for path in run.evaluations.glob("*/*/model.safetensors")}
    ranked = load(run.folder).ranked()[:2]
    assert models.keys() == {evaluation.id for evaluation in ranked}
    for evaluation in ranked:
        model = load_model(models[evaluation.id])
        assert sum(weights.numel() for weights in model.parameters()) == evaluation.parameters
        card = read_header(models[evaluation.id]).card
        assert card.spec["evaluation"] == evaluation.id
        assert card.result["loss"] == evaluation.loss
        shown = elmanctl("show", evaluation.id).stdout
        assert f"  model       {models[evaluation.id]}\n" in shown


def _remove_models(elmanctl: CommandLine, run: RunPaths) -> None:
    """Remove the models, which no other rule of cleaning does."""
    assert len(list(run.evaluations.glob("*/*/model.safetensors"))) == 2
    planned = json.loads(elmanctl("clean", "--keep-models", "0", "--dry-run", "--json").stdout)
    assert sum(file["kind"] == "models" for file in planned["removable"]) == 2
    removed = elmanctl("clean", "--kind", "models", "--keep-models", "0", "--yes")
    assert re.fullmatch(r"freed \d.* in 2 files\n", removed.stdout), removed.stderr
    assert not list(run.evaluations.glob("*/*/model.safetensors"))
    assert "was removed: by `elmanctl clean`" in elmanctl("show", "best").stdout


def _confirm(elmanctl: CommandLine, run: RunPaths) -> None:
    """Confirm the two best of the finished run, with workers that really train."""
    assert "not confirmed" in elmanctl("show", "best").stdout
    confirmed = elmanctl("confirm", "--top", "2", "--seeds", "2", "--json")
    assert confirmed.returncode == 0, confirmed.stderr
    found = json.loads(confirmed.stdout)["confirmation"]
    assert found["is_confirmed"] and found["noise"]["degrees"] == 2
    first, second = found["configurations"]
    assert first == found["winner"] and first["mean"] <= second["mean"]
    for each in (first, second):
        assert each["n"] == 2 and each["seeds"] == [1_000_042, 1_000_043]
        # Another seed is another training.
        assert len({*each["losses"], each["search_loss"]}) == 3
        assert each["optimism"] == pytest.approx(each["mean"] - each["search_loss"])
    assert elmanctl("show", "best").stdout.startswith(f"{first['evaluation']} of e88-tiny")
    assert len(trained_attempts(run.folder)) == 8

    again = elmanctl("confirm", "--top", "2", "--seeds", "2")
    assert again.returncode == 0 and "nothing to confirm" in again.stderr
    assert f"best         {first['evaluation']}, confirmed\n" in again.stdout
    assert len(trained_attempts(run.folder)) == 8


def _use(elmanctl: CommandLine, paths: AttemptPaths) -> None:
    """Assert that the kept model computes what its worker did, in Python and by `sample`."""
    import torch

    import elmanctl as package
    from elmanctl.jobs.data import held_out_windows
    from elmanctl.jobs.micro_batch import MicroBatch
    from elmanctl.jobs.optimizer import make_optimizer
    from elmanctl.jobs.sampling import log_probabilities
    from elmanctl.jobs.validation import Validator

    spec, result = AttemptSpec.read(paths.spec), json.loads(paths.result.read_bytes())
    torch.set_num_threads(spec.training.threads or torch.get_num_threads())
    model = package.load(paths.model)
    corpus = describe(Path(spec.data.path))
    split = find_split(corpus, spec.training.holdout, RunPaths(paths.run_folder).split)
    count, seq_len = spec.training.val_windows, spec.training.seq_len
    validator = Validator(
        model,
        make_optimizer(model, spec.training, spec.betas),
        held_out_windows(corpus.path, split, count=count, seq_len=seq_len),
        device=torch.device("cpu"),
        micro_batch=MicroBatch(spec.training),
        autocast=nullcontext,
    )
    assert validator.validate() == (result["val_loss"], result["val_loss_se"])

    text = "def main():\n"
    done = elmanctl("sample", "e88-tiny", "--prompt", text, "--bytes", "0", "--json")
    told = json.loads(done.stdout)
    with torch.no_grad():
        logits = model.eval()(torch.tensor(list(b"\x1e" + text.encode()))[None])[0][0]
    assert told["prompt"]["log_probabilities"] == log_probabilities(logits[:-1], text.encode())


def _look(elmanctl: CommandLine, best: str, loss: float) -> None:
    """Look at the finished run with every command that does."""
    listed = elmanctl("status", "e88-tiny", "--json", "--exit-status")
    assert listed.returncode == 0
    assert {row["state"] for row in json.loads(listed.stdout)["evaluations"]} == {"completed"}

    shown = elmanctl("show", "best")
    assert shown.stdout.startswith(f"{best} of e88-tiny: completed\n")
    assert f"{loss:.4f} nats/byte" in shown.stdout
    assert "n_heads" in shown.stdout and "step" in shown.stdout
    assert re.search(r"^  backend +torch$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  micro-batch +\d+$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  validation +\d+\.\d s, outside", shown.stdout, re.MULTILINE)

    logged = elmanctl("logs", best)
    assert logged.returncode == 0
    assert f"completed: held-out loss {loss:.4f}" in logged.stdout
    followed = elmanctl("logs", "e88-tiny", "0.1", "--follow")
    assert followed.stdout == elmanctl("logs", "e88-tiny", "0.1").stdout
    tail = elmanctl("logs", best, "--tail", "2").stdout
    assert tail.splitlines() == logged.stdout.splitlines()[-2:]
