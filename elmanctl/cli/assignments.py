"""`key=value` assignments on the command line: the fields of a model's configuration."""

import tomllib
from typing import Any

from elmanctl.errors import Faults, UsageError


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


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
