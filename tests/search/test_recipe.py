"""Recipes of evaluations: what is pasted gives the same model and the same training."""

import shlex
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from elmanctl.cli.assignments import model_fields
from elmanctl.config import parse_assignments, resolve
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.models.registry import decode_config
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.recipe import as_command, as_python, as_toml, recipe_of
from elmanctl.settings import Settings
from tests.search.scripted import MODEL, Runs

pytestmark = pytest.mark.usefixtures("no_power_failures")

# What no loss depends on.
RUNTIME = ("heartbeat_s", "checkpoint_min", "threads", "device")

TRAININGS: tuple[Mapping[str, Any], ...] = (
    {"steps": 15},
    {"protocol": "fair", "minutes": 7.5, "batch": 16, "weight_decay": 0.05},
    {"protocol": "study-2026-01"},
    {"protocol": "convergence", "seq_len": 256},
)


@pytest.fixture(params=TRAININGS, ids=lambda train: str(train.get("protocol")))
def searched(request: pytest.FixtureRequest, runs: Runs) -> tuple[RunState, Evaluation]:
    """A finished search and its best, whose learning rate has many digits."""
    chosen = {f"train.{key}": value for key, value in request.param.items()}
    resolved = resolve(chosen, folder=Path("/nonexistent"), environment={}).settings
    run = runs.new(train=resolved.encode()["train"], model={**MODEL, "use_gate": False})
    run.world.told = {"objective": resolved.train.objective}
    state = run.drive()
    best = state.best()
    assert best is not None
    assert len(repr(best.lr)) > 15
    return state, best


def assert_same(
    state: RunState, best: Evaluation, fields: Mapping[str, Any], settings: Settings
) -> None:
    """Assert that these fields and settings are those of an evaluation."""
    values = {**settings.model, **fields}
    lr = values.pop("lr")
    model = state.run["model"]
    assert decode_config(model, values) == decode_config(model, best.config)
    wanted, found = (
        {k: v for k, v in each.encode()["train"].items() if k not in (*RUNTIME, "lr", "seed")}
        for each in (effective_settings(state), settings)
    )
    assert found == wanted
    assert (lr, settings.train.seed) == (best.lr, best.seed)


def test_command_trains_the_same(searched: tuple[RunState, Evaluation], tmp_path: Path) -> None:
    state, best = searched
    words = shlex.split(as_command(recipe_of(state, best)))
    assert words[:3] == ["elmanctl", "eval", state.run["model"]]
    plain = [word for word in words[3:] if "=" in word and not word.startswith("--")]
    options = words[3 + len(plain) :]
    named = dict(pairwise(options))
    flags = {
        "train.seed": int(named["--seed"]),
        "train.protocol": named.get("--protocol"),
        "data.path": named.get("--data"),
        **parse_assignments(w.removeprefix("--set=") for w in options if w.startswith("--set=")),
    }
    settings = resolve(flags, folder=tmp_path, environment={}).settings
    assert_same(state, best, model_fields(plain, with_lr=True), settings)


def test_file_trains_the_same(searched: tuple[RunState, Evaluation], tmp_path: Path) -> None:
    state, best = searched
    text = as_toml(recipe_of(state, best))
    (tmp_path / "elman.toml").write_text(text, encoding="utf-8")
    assert_same(state, best, {}, resolve({}, folder=tmp_path, environment={}).settings)
    # Defaults are left out.
    assert tomllib.loads(text)["model"].keys() == {
        *("dim", "depth", "n_heads", "n_state", "use_gate", "lr"),
    }


def test_program_builds_the_same_model(searched: tuple[RunState, Evaluation]) -> None:
    state, best = searched
    program, _, last = as_python(recipe_of(state, best)).rpartition("\n")
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["config"] == decode_config(state.run["model"], best.config)
    assert names["lr"] == best.lr
    assert last == f"model = build_model(config, seed={best.seed})"
