"""`key=value` assignments on the command line: the fields of the configurations of models."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from elmanctl.errors import Faults, UsageError
from elmanctl.models.registry import find_family


def model_fields(assignments: list[str] | None, *, with_lr: bool = False) -> dict[str, Any]:
    """Parse `key=value` words, values as TOML or else as text; UsageError for malformed ones."""
    values: dict[str, Any] = {}
    faults = Faults()
    for word in assignments or []:
        key, equals, text = word.partition("=")
        with faults:
            if not equals or not key:
                raise UsageError(f"`{word}` is not of the form key=value", hint="e.g. `dim=512`")
            if key in values:
                raise UsageError(f"`{key}` is given twice")
            if key == "lr" and not with_lr:
                raise UsageError(
                    "`lr` does not change the number of parameters", hint="leave it out"
                )
            values[key] = _value(text)
    faults.raise_any()
    return values


def swept_values(words: Sequence[str]) -> dict[str, list[Any]]:
    """Parse `key=value,value` words of a sweep; `key` alone means the values of its space.

    Raises UsageError for a malformed word, and for a key that is given twice.
    """
    values: dict[str, list[Any]] = {}
    faults = Faults()
    for word in words:
        key, equals, text = word.partition("=")
        with faults:
            if not key or (equals and not all(part.strip() for part in text.split(","))):
                raise UsageError(
                    f"`{word}` is not of the form key=value,value",
                    hint="e.g. `--sweep n_state=16,32`",
                )
            if key in values:
                raise UsageError(f"`--sweep {key}` is given twice", hint="name all its values once")
            values[key] = [_value(part.strip()) for part in text.split(",")] if equals else []
    faults.raise_any()
    return values


def models_and_fields(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the fields of each model among words, which are models and `key=value`.

    `model.key=value` is for that model alone, and `key=value` for all of them.  Raises UsageError
    without a model, for one that is named twice, and for a key that only some of them have.
    """
    models = [word for word in words if "=" not in word]
    if not models:
        raise UsageError("no model is named", hint="`elmanctl models` lists them")
    folded = {model.casefold(): model for model in models}
    if len(folded) < len(models):
        twice = next(m for m in models if folded[m.casefold()] != m or models.count(m) > 1)
        raise UsageError(
            f"the model `{twice}` is named twice",
            hint="search it once more with another `--seed`, as a run of its own",
        )
    own: dict[str, list[str]] = {model: [] for model in models}
    shared = []
    for word in words:
        model, dot, field = word.partition(".")
        is_own = "=" in word and bool(dot) and "=" not in model
        if is_own and model.casefold() not in folded:
            raise UsageError(
                f"`{word}` is of a model that is not searched",
                hint=f"the models here: {', '.join(models)}",
            )
        if is_own:
            own[folded[model.casefold()]].append(field)
        elif "=" in word:
            shared.append(word)
    common = model_fields(shared, with_lr=True)
    if len(models) > 1:
        _refuse_partly_known(models, common)
    return {model: {**common, **model_fields(own[model], with_lr=True)} for model in models}


def _refuse_partly_known(models: Sequence[str], common: Mapping[str, Any]) -> None:
    """Raise UsageError for a key that some of the models have and others lack."""
    if "variant" in common:
        # The study's names are not those of the configurations.
        return
    known = {
        model: {"lr", *(item.name for item in fields(find_family(model).load_config()))}
        for model in models
    }
    faults = Faults()
    for key in common:
        having = [model for model in models if key in known[model]]
        if having and len(having) < len(models):
            lacking = [model for model in models if model not in having]
            faults.add(
                UsageError(
                    f"`{key}` is no field of {', '.join(lacking)}",
                    hint=f"`{having[0]}.{key}=VALUE` sets it for one model",
                )
            )
    faults.raise_any()


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
