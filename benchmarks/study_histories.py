"""Searches that the study of January 2026 recorded, as recordings on axes of elmanctl.

Each line of the file is a search: `model`, `path`, `space` with `lo`, `hi` and `type` of every
axis, and `evals` with `params`, `loss` and `status`.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl.replay.recording import Recorded, Recording
from elmanctl.space.axis import Axis

# A shorter search gives no surface.
LEAST_LOSSES = 40


def read_histories(path: Path) -> list[Recording]:
    """Return the complete searches with enough losses, in the order of the file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = [recording(json.loads(line)) for line in lines]
    return [each for each in found if each is not None and len(each.losses) >= LEAST_LOSSES]


def recording(history: Mapping[str, Any]) -> Recording | None:
    """Return a recording; None for a search that is not whole, or lacks its axes."""
    if not history["complete"] or not history["space"]:
        return None
    axes = tuple(axis(name, table) for name, table in history["space"].items())
    trained = [each for each in history["evals"] if each["params"]]
    evaluations = tuple(
        Recorded(
            point=tuple(position(each, evaluation["params"][each.name]) for each in axes),
            loss=evaluation["loss"] if evaluation["status"] == "loss" else None,
            is_invalid=evaluation["status"] == "skipped",
        )
        for evaluation in trained
    )
    folder = Path(history["path"]).parent.name.removeprefix("cmaes_")
    model = history["model"]
    name = folder if model in folder else f"{model}_{folder}"
    return Recording(name=name, axes=axes, evaluations=evaluations)


def axis(name: str, table: Mapping[str, Any]) -> Axis:
    """Return an axis of the study as one of elmanctl."""
    kind, low, high = table["type"], table["lo"], table["hi"]
    if kind == "binary":
        return Axis(name=name, kind="bool")
    if kind in ("float", "log"):
        return Axis(name=name, kind=kind, low=low, high=high)
    if kind == "int_pow2":
        return Axis(name=name, kind="pow2", low=int(low), high=int(high))
    if kind == "e88_n_state":
        return Axis(name=name, kind="choice", values=(16, 32, 48, 64))
    multiple = int(kind.removeprefix("int_mult")) if kind.startswith("int_mult") else 1
    return Axis(name=name, kind="int", low=int(low), high=int(high), multiple_of=multiple)


def position(axis: Axis, value: float) -> float:
    """Return the coordinate of a recorded value, the nearest one where rounding moved it off."""
    levels = axis.levels
    if levels is not None:
        numbers = [float(level) for level in levels]
        return float(min(range(len(numbers)), key=lambda i: abs(numbers[i] - value)))
    return axis.position(min(max(value, axis.low), axis.high))
