"""A model that is kept computes what the worker that trained it computed."""

import base64
import json
import resource
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import elmanctl
from elmanctl import clock
from elmanctl.errors import InvalidModel
from elmanctl.jobs import attempt_training, tensor_file
from elmanctl.jobs.saved_model import load_model
from elmanctl.models.registry import FAMILIES, build_model
from elmanctl.run.corpus_packing import SEPARATOR
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.saved_file import MODEL, Card, read_header
from elmanctl.run.spec import DataSpec
from tests.command_line import QuickCommandLine
from tests.jobs.attempts import Write, interrupted, metrics, run
from tests.models.samples import small_config
from tests.specs import spec_of

TOKENS = torch.arange(60).reshape(2, 30) * 7 % 256
TEXT = b"def main() -> None:\n    \xff\x00 pass"


@pytest.fixture
def of_worker(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The logits of workers in this process, with the weights that they keep: of `TOKENS`, and of
    a document that begins with `TEXT`.
    """
    seen: list[torch.Tensor] = []
    keep = attempt_training.AttemptTraining._keep_model

    def look(self: Any, outcome: Any, model: Any) -> None:
        with torch.no_grad():
            document = torch.tensor(list(SEPARATOR + TEXT))[None]
            seen.extend((model(TOKENS)[0], model(document)[0][0]))
        keep(self, outcome, model)

    monkeypatch.setattr(attempt_training.AttemptTraining, "_keep_model", look)
    return seen


@pytest.mark.parametrize("level", FAMILIES)
def test_a_kept_model_gives_the_logits_of_its_worker_to_the_bit(
    write: Write, level: str, of_worker: list[torch.Tensor], quick: QuickCommandLine
) -> None:
    paths = write(level=level, config=small_config(level).encode(), keep=("model",), steps=3)
    result = run(paths)
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(elmanctl.load(paths.folder)(TOKENS)[0], of_worker[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert result["model_size_bytes"] == paths.model.stat().st_size
    _sample(quick, paths, of_worker[1])


def _sample(quick: QuickCommandLine, paths: AttemptPaths, logits: torch.Tensor) -> None:
    """Assert that `sample` computes the same: the text it is given, and its own first byte."""
    (quick.folder / "prompt").write_bytes(TEXT)
    words = ("--prompt-file", "prompt", "--bytes", "1", "--temperature", "0", "--json")
    done = quick("sample", str(paths.model), *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    expected = logits.log_softmax(-1)
    assert told["prompt"]["log_probabilities"] == [
        expected[place, byte].item() for place, byte in enumerate(TEXT)
    ]
    (sample,) = told["samples"]
    assert list(base64.b64decode(sample["base64"])) == [int(logits[-1].argmax())]
    assert sample["log_probabilities"] == [expected[-1].max().item()]


def test_a_kept_model_says_all_about_itself(write: Write, documents: DataSpec) -> None:
    paths = write(
        data=documents, objective="val", holdout=0.1, val_windows=20, steps=6, keep=("model",)
    )
    result = run(paths)
    card = read_header(paths.model).card
    assert elmanctl.load(paths.model).card == card
    assert card.saved_at is not None
    assert abs((clock.now() - clock.from_text(card.saved_at)).total_seconds()) < 3600
    assert (card.spec["run"], card.spec["evaluation"], card.spec["seed"]) == ("tiny", "g000-e00", 3)
    for key in ("val_loss", "val_loss_se", "fingerprint", "protocol", "steps", "versions"):
        assert card.result[key] == result[key]
    assert card.spec["data"]["sha256"] == documents.sha256
    assert read_header(paths.model).parameters == result["parameters"]


def test_a_model_that_others_beat_is_not_written(write: Write) -> None:
    worse = write(keep=("model",), keep_below=1.0)
    result = run(worse)
    assert not worse.model.exists() and "model_size_bytes" not in result
    better = write(evaluation="g000-e01", keep=("model",), keep_below=result["loss"] + 0.1)
    run(better)
    assert better.model.exists()


def test_without_room_for_the_model_the_evaluation_counts(write: Write) -> None:
    paths = write(keep=("model",), checkpoint_min=0.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        result = run(paths)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result["verdict"]["kind"], result["model_not_kept"]) == ("completed", "File too large")
    assert not list(paths.folder.glob("model*"))


def test_keeping_a_model_changes_nothing_else(write: Write) -> None:
    plain, kept = run(write()), run(write(evaluation="g000-e01", keep=("model",)))
    assert (plain["loss"], plain["mean_loss"]) == (kept["loss"], kept["mean_loss"])


@pytest.mark.parametrize("more", [{"steps": 20}, {"tokens": 20 * 64}, {"flops": 3e7}])
def test_a_longer_training_goes_on_from_the_last_checkpoint_as_if_never_stopped(
    write: Write, documents: DataSpec, more: dict[str, Any]
) -> None:
    held = {"data": documents, "objective": "val", "holdout": 0.1, "val_windows": 9, "val_every": 6}
    first = write(**held, checkpoint_min=0.0, keep=("checkpoint",), steps=12)
    run(first)
    assert first.checkpoint.exists()
    second = write(2, **held, **more)
    longer = run(second)
    assert longer["continued_from"] == {"attempt": 1, "step": 12}
    straight = write(evaluation="g000-e01", **held, **more, checkpoint_min=0.0)
    undisturbed = run(straight)
    same = ("loss", "val_loss", "mean_loss", "steps", "tokens")
    assert [longer[key] for key in same] == [undisturbed[key] for key in same]
    losses = [[v["step"], v["val_loss"]] for v in longer["validations"]]
    assert losses == [[v["step"], v["val_loss"]] for v in undisturbed["validations"]]
    assert [m["loss"] for m in metrics(second)] == [m["loss"] for m in metrics(straight)][12:]


def test_a_checkpoint_is_no_model(write: Write) -> None:
    paths = write()
    interrupted(paths, before_step=3)
    with pytest.raises(InvalidModel, match="is a checkpoint, not a model"):
        load_model(paths.checkpoint)


@pytest.mark.parametrize("dim", [8, 24, 65_536])
def test_weights_of_another_configuration_are_refused(
    write: Write, tmp_path: Path, dim: int
) -> None:
    paths = write(keep=("model",))
    run(paths)
    saved, tensors = tensor_file.read(paths.model)
    spec = {**saved.card.spec, "config": {**saved.card.spec["config"], "dim": dim}}
    other = tmp_path / "other.safetensors"
    tensor_file.write(other, tensors, replace(saved.card, spec=spec))
    with pytest.raises(InvalidModel, match="has other weights than its configuration"):
        load_model(other)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rotation": 1}, "`spec.rotation`|no setting|rotation"),
        ({"level": "e99"}, "there is no model `e99`|e99"),
    ],
)
def test_training_of_a_newer_elmanctl_is_named_with_the_way_out(
    write: Write, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    paths = write(keep=("model",), steps=2)
    run(paths)
    saved, tensors = tensor_file.read(paths.model)
    result = {**saved.card.result, "versions": {"elmanctl": "7.1"}}
    card = replace(saved.card, spec={**saved.card.spec, **change}, result=result)
    tensor_file.write(paths.model, tensors, card)
    with pytest.raises(InvalidModel, match=words) as refused:
        load_model(paths.model)
    assert "of a training that this elmanctl does not know" in refused.value.message
    assert refused.value.hint == "elmanctl 7.1 wrote it; use that one, or a newer one"


@given(data=st.data())
@settings(max_examples=150)
def test_damage_anywhere_is_refused_or_changes_nothing(
    whole: tuple[bytes, torch.Tensor], data: st.DataObject
) -> None:
    content, logits = whole
    # Half of the places in the header, which is the smaller part.
    end = data.draw(st.sampled_from([8 + int.from_bytes(content[:8], "little"), len(content)]))
    place = data.draw(st.integers(0, end - 1))
    damaged = bytearray(content)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(damaged)
        try:
            model = load_model(path)
        except InvalidModel as exc:
            assert "\n" not in exc.message
            return
    with torch.no_grad():
        assert torch.equal(model(TOKENS)[0], logits)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, torch.Tensor]:
    """The bytes of a model, and its logits of `TOKENS`."""
    config = small_config("e88")
    values = {"level": "e88", "config": config.encode(), "parameters_expected": 1}
    data = DataSpec(path="corpus", sha256="0" * 64, size_bytes=1)
    spec = spec_of(
        **values, run="tiny", evaluation="g000-e00", attempt=1, steps=4, data=data, timeout_min=5.0
    )
    model = build_model(config, seed=1).eval()
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    tensor_file.write(path, model.state_dict(), Card(kind=MODEL, spec=spec.encode()))
    with torch.no_grad():
        return path.read_bytes(), model(TOKENS)[0]
