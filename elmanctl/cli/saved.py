"""Saved file, shown: all that a kept model or a checkpoint says about itself, without torch."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.cli.output import print_json, print_line, shown_count, spelled_bytes
from elmanctl.run.corpus import corpus_name
from elmanctl.run.saved_file import Card, SavedFile, read_header
from elmanctl.run.spec import spec_of

# The losses of a result with the key of their standard error, in the order of a page.
_LOSSES = {
    "val_loss": ("held-out", "val_loss_se"),
    "bits_per_byte": ("bits/byte", None),
    "last100_loss": ("last 100", None),
    "mean_loss": ("mean", None),
}
_OF_RESULT = ("steps", "tokens", "backend", "device", "precision")


def identity(path: Path, card: Card) -> dict[str, Any]:
    """Return what tells a saved file from every other, as plain data."""
    spec, result = card.spec, card.result
    return {
        "file": str(path),
        "kind": card.kind,
        "run": spec.get("run"),
        "evaluation": spec.get("evaluation"),
        "attempt": spec.get("attempt"),
        "seed": spec.get("seed"),
        "level": spec.get("level"),
        "fingerprint": result.get("fingerprint"),
        "corpus_sha256": spec.get("data", {}).get("sha256"),
        "saved_at": card.saved_at,
    }


def show_saved(path: Path, *, as_json: bool) -> None:
    """Print a saved file; raises NotFound and InvalidModel."""
    saved = read_header(path)
    if as_json:
        print_json(_data(saved))
        return
    for line in _lines(saved):
        print_line(line)


def _data(saved: SavedFile) -> dict[str, Any]:
    card = saved.card
    return {
        **identity(saved.path, card),
        "size_bytes": saved.size_bytes,
        "parameters": _parameters(saved),
        "step": _step(card),
        "shards": list(card.shards),
        "spec": card.spec,
        "result": card.result,
        "tensors": {
            name: {"dtype": dtype, "shape": list(shape)}
            for name, (dtype, shape) in saved.tensors.items()
        },
    }


def _lines(saved: SavedFile) -> Iterator[str]:
    card = saved.card
    spec = spec_of(saved)
    size = spelled_bytes(saved.size_bytes)
    yield f"{saved.path}: {card.kind} of {spec.evaluation} of {spec.run}, {size}"
    training, saved_at = spec.training, card.saved_at
    budget = training.budget
    versions = card.result.get("versions", {}).items()
    rows = {
        "saved": saved_at and f"{clock.from_text(saved_at):%Y-%m-%d %H:%M:%S} UTC",
        "attempt": spec.attempt,
        "origin": _origin(spec.origin),
        "seed": training.seed,
        "model": spec.level,
        "parameters": shown_count(_parameters(saved)),
        "tensors": len(saved.tensors),
        "shards": ", ".join(card.shards),
        "step": _step(card),
        "budget": f"{budget.amount:.10g} {budget.kind}",
        "batch": f"{training.batch} sequences of {training.seq_len} bytes",
        "gpus": f"{training.ranks}, {training.parallel}" if training.ranks > 1 else None,
        "lr": f"{training.lr:g}",
        "corpus": f"{corpus_name(Path(spec.data.path))}, sha256 {spec.data.sha256[:12]}",
        "protocol": _protocol(card.result, training.protocol),
        **_losses(card.result),
        **{key: card.result.get(key) for key in _OF_RESULT},
        "versions": ", ".join(f"{name} {version}" for name, version in versions if version),
    }
    for label, value in rows.items():
        if value not in (None, ""):
            yield f"  {label:<11} {value}"
    yield "config"
    config = dict(spec.config)
    width = max(map(len, config), default=0)
    for key, value in config.items():
        yield f"  {key:<{width}} {json.dumps(value)}"


def _parameters(saved: SavedFile) -> int:
    """Return the number of parameters; a checkpoint has them beside the optimizer's state."""
    return int(saved.card.result.get("parameters") or saved.card.spec["parameters_expected"])


def _step(card: Card) -> int | None:
    """Return the step after which a checkpoint was written."""
    position = card.state.get("position", {})
    step = position.get("steps") if isinstance(position, Mapping) else None
    return step if isinstance(step, int) else None


def _origin(origin: Mapping[str, Any]) -> str | None:
    """Return what a model was before it was trained longer."""
    if not origin:
        return None
    of = f"{origin['run']}/{origin['evaluation']}" if "run" in origin else origin["source"]
    return f"from step {origin['step']} of {of}"


def _protocol(result: Mapping[str, Any], name: str | None) -> str:
    fingerprint = result.get("fingerprint")
    return ", fingerprint ".join(part for part in (name, fingerprint) if part)


def _losses(result: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for key, (label, error_key) in _LOSSES.items():
        value, error = result.get(key), result.get(error_key or "")
        if value is not None:
            shown[label] = f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return shown
