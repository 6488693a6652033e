"""Recipe of an evaluation: what it takes to train its model elsewhere, without defaults.

Numbers have all their digits: a rounded learning rate is another one.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from elmanctl.config import resolve
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.models.registry import decode_config
from elmanctl.search.effective_settings import effective_settings
from elmanctl.settings import Settings

# Of `[train]`: what the recipe gives by itself, and what no loss depends on.
_LEFT_OUT = ("lr", "seed", "protocol", "heartbeat_s", "checkpoint_min", "threads", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The model with the fields that differ from its family's defaults, and its training.

    `train` holds the settings of `[train]` that differ from those of the protocol; `data` is None
    for the built-in corpus.
    """

    evaluation: str
    model: str
    fields: Mapping[str, Any]
    lr: float
    seed: int
    protocol: str | None
    train: Mapping[str, Any]
    data: str | None


def recipe_of(state: RunState, evaluation: Evaluation) -> Recipe:
    """Return the recipe of an evaluation of a run."""
    settings = effective_settings(state)
    return Recipe(
        evaluation=f"{state.run['name']}/{evaluation.id}",
        model=str(state.run["model"]),
        fields=_own_fields(str(state.run["model"]), evaluation.config),
        lr=evaluation.lr,
        seed=evaluation.seed,
        protocol=settings.train.protocol,
        train=_own_training(settings),
        data=settings.data.path,
    )


def _own_fields(model: str, config: Mapping[str, object]) -> dict[str, Any]:
    """Return the fields of a configuration that differ from the defaults of its family."""
    decoded = decode_config(model, config)
    values = decoded.encode()
    defaults = {each.name: each.default for each in fields(decoded) if each.default is not MISSING}
    return {
        key: value
        for key, value in values.items()
        if key != "level" and (key not in defaults or value != defaults[key])
    }


def _own_training(settings: Settings) -> dict[str, Any]:
    chosen = {"train.protocol": settings.train.protocol}
    # No file and no variable of whoever asks.
    plain = resolve(chosen, folder=Path("/nonexistent"), environment={}).settings
    before = plain.encode()["train"]
    return {
        key: value
        for key, value in settings.encode()["train"].items()
        if value is not None and value != before.get(key) and key not in _LEFT_OUT
    }


def as_command(recipe: Recipe) -> str:
    """Return the command that trains it again."""
    words = ["elmanctl", "eval", recipe.model]
    words += [f"{key}={_plain(value)}" for key, value in recipe.fields.items()]
    words += [f"lr={recipe.lr!r}", "--seed", str(recipe.seed)]
    words += [] if recipe.protocol is None else ["--protocol", recipe.protocol]
    words += [f"--set=train.{key}={_plain(value)}" for key, value in recipe.train.items()]
    words += [] if recipe.data is None else ["--data", recipe.data]
    return shlex.join(words)


def as_toml(recipe: Recipe) -> str:
    """Return an elman.toml that holds the model fixed in a search, or is read by `eval`."""
    tables = {
        "model": {**recipe.fields, "lr": recipe.lr},
        "train": {
            **({} if recipe.protocol is None else {"protocol": recipe.protocol}),
            "seed": recipe.seed,
            **recipe.train,
        },
        "data": {} if recipe.data is None else {"path": recipe.data},
    }
    lines = [f"# {recipe.model}: {recipe.evaluation}"]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines)


def as_python(recipe: Recipe) -> str:
    """Return Python that builds the model, untrained, with its learning rate."""
    values = "".join(f"        {key!r}: {value!r},\n" for key, value in recipe.fields.items())
    return (
        "from elmanctl.models.registry import build_model, decode_config\n\n"
        f"# {recipe.evaluation}\n"
        f"config = decode_config(\n    {recipe.model!r},\n    {{\n{values}    }},\n)\n"
        f"lr = {recipe.lr!r}\n"
        f"model = build_model(config, seed={recipe.seed})"
    )


def _plain(value: object) -> str:
    """Return a value as a word of the command line, where a text needs no quotes."""
    return value if isinstance(value, str) else _toml(value)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    # The quotes and escapes of JSON are TOML's, too.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
