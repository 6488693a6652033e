"""What a saved file says about itself is shown without its run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from elmanctl.run.saved_file import CHECKPOINT, read_header
from elmanctl.run.spec import DataSpec
from tests.cli.test_bad_input import assert_refused
from tests.command_line import QuickCommandLine
from tests.jobs.attempts import Write, interrupted, run
from tests.jobs.conftest import documents, write

pytestmark = pytest.mark.torch

__all__ = ["documents", "write"]


@pytest.fixture
def kept(write: Write, documents: DataSpec, tmp_path: Path) -> Path:
    """A model that was trained and copied away from its run, which is gone."""
    paths = write(
        data=documents, objective="val", holdout=0.1, val_windows=20, steps=6, keep=("model",)
    )
    run(paths)
    folder = tmp_path / "kept"
    folder.mkdir()
    shutil.copy(paths.model, folder)
    shutil.rmtree(paths.run_folder)
    return folder / "model.safetensors"


def test_model_is_shown_with_all_that_a_reader_needs(kept: Path, quick: QuickCommandLine) -> None:
    by_file, by_folder = quick("show", str(kept)), quick("show", f"{kept.parent}/")
    assert by_file.returncode == 0, by_file.stderr
    assert by_folder.stdout == by_file.stdout
    head, *lines = by_file.stdout.splitlines()
    assert head == f"{kept}: model of g000-e00 of tiny, {kept.stat().st_size} bytes"
    shown = {line[2:14].strip(): line[14:] for line in lines}
    card = read_header(kept).card
    result = card.result
    assert shown["held-out"] == f"{result['val_loss']:.4f} ± {result['val_loss_se']:.4f}"
    assert shown["parameters"] == str(result["parameters"])
    assert shown["protocol"].endswith(f"fingerprint {result['fingerprint']}")
    assert shown["corpus"].endswith(f", sha256 {card.spec['data']['sha256'][:12]}")
    assert (shown["seed"], shown["attempt"], shown["model"]) == ("3", "1", "e88")
    assert (shown["budget"], shown["steps"]) == ("6 steps", "6")
    assert (shown["tokens"], shown["device"], shown["precision"]) == ("384", "cpu", "fp32")
    assert f"torch {result['versions']['torch']}" in shown["versions"]
    assert card.saved_at is not None and shown["saved"].startswith(card.saved_at[:10])
    assert "n_heads" in by_file.stdout.partition("config\n")[2]


def test_json_has_the_whole_card(kept: Path, quick: QuickCommandLine) -> None:
    data = json.loads(quick("show", str(kept), "--json").stdout)
    saved = read_header(kept)
    assert (data["spec"], data["result"]) == (saved.card.spec, saved.card.result)
    assert (data["kind"], data["run"], data["saved_at"]) == ("model", "tiny", saved.card.saved_at)
    assert data["tensors"].keys() == saved.tensors.keys()
    assert data["parameters"] == saved.parameters == data["result"]["parameters"]


def test_checkpoint_is_shown_with_its_step(write: Write, quick: QuickCommandLine) -> None:
    paths = write()
    interrupted(paths, before_step=4)
    done = quick("show", str(paths.checkpoint))
    assert done.returncode == 0, done.stderr
    assert "checkpoint of g000-e00 of tiny" in done.stdout and "  step        3\n" in done.stdout
    data = json.loads(quick("show", str(paths.checkpoint), "--json").stdout)
    assert (data["kind"], data["step"]) == (CHECKPOINT, 3)
    done = quick("show", str(paths.folder))
    assert_refused(done, 3, "holds no model", "has not ended")


def test_what_cannot_be_shown_is_refused(kept: Path, quick: QuickCommandLine) -> None:
    assert_refused(quick("show", "a.safetensors"), 3, "there is no file a.safetensors")
    other = kept.with_name("other.safetensors")
    other.write_bytes(kept.read_bytes()[:100])
    assert_refused(quick("show", str(other)), 2, "has no header of safetensors")


def test_control_characters_of_a_card_reach_no_terminal(
    kept: Path, quick: QuickCommandLine
) -> None:
    # Without torch this module is only collected.
    from elmanctl.jobs import tensor_file

    saved, tensors = tensor_file.read(kept)
    spec = {**saved.card.spec, "run": "\x1b[31mred\nerror: no"}
    tensor_file.write(kept, tensors, replace(saved.card, spec=spec))
    done = quick("show", str(kept))
    assert "\x1b" not in done.stdout and "\\x1b[31mred" in done.stdout


def test_number_of_gpus_is_shown_where_there_were_several(
    kept: Path, quick: QuickCommandLine
) -> None:
    assert "  gpus  " not in quick("show", str(kept)).stdout
    from elmanctl.jobs import tensor_file

    saved, tensors = tensor_file.read(kept)
    spec = {**saved.card.spec, "gpus": 2, "nodes": 2, "parallel": "fsdp"}
    tensor_file.write(kept, tensors, replace(saved.card, spec=spec))
    assert "  gpus        4, fsdp\n" in quick("show", str(kept)).stdout


def test_run_and_evaluation_may_be_one_word(quick_with_runs: QuickCommandLine) -> None:
    two = quick_with_runs("show", "finished", "g000-e00")
    for word in ("finished/g000-e00", "fin/0.0", "runs/finished/g000-e00"):
        one = quick_with_runs("show", word)
        assert one.returncode == 0 and one.stdout == two.stdout
    for word in ("finished/", "runs/finished"):
        done = quick_with_runs("show", word)
        assert_refused(done, 2, "`finished` is a run: name an evaluation", "show finished best")
    done = quick_with_runs("show", "nothing/g000-e00")
    assert_refused(done, 3, "no run, evaluation or folder `nothing/g000-e00`")
