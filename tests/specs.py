"""Specs of attempts from flat values, as spec.json has them."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from elmanctl.run.spec import AttemptSpec
from elmanctl.run.training import BUDGET_KINDS, Training

TRAINING = {item.name for item in fields(Training)}

# The training as it was before the settings that files may lack.
BEFORE = {i.name: i.metadata["absent"] for i in fields(Training) if "absent" in i.metadata}


def spec_of(**values: Any) -> AttemptSpec:
    """Return the spec with these values; a field of the training is named as any other."""
    training = {name: values.pop(name) for name in TRAINING & values.keys()}
    return AttemptSpec(training=Training(**training), **values)


def changed(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with some changed; a budget takes the place of the one that was there."""
    replaced = BUDGET_KINDS if set(BUDGET_KINDS) & changes.keys() else ()
    return {**{name: value for name, value in values.items() if name not in replaced}, **changes}
