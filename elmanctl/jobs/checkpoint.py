"""Checkpoint: the whole state of a training run between two steps, in memory and as a file.

A run resumed from it makes the same steps as one that was never interrupted, since the bytes of a
step depend on its number alone.  The file holds no code, and is used only if everything in it fits.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elmanctl import clock
from elmanctl.errors import InvalidModel, NotFound
from elmanctl.jobs import tensor_file
from elmanctl.jobs.generators import Generators
from elmanctl.jobs.validation import Validation
from elmanctl.run.saved_file import CHECKPOINT, Card
from elmanctl.run.spec import AttemptSpec

# The parts of a checkpoint; a tensor's name begins with that of its part.
_MODEL, _OPTIMIZER, _GENERATORS = "model.", "optimizer.", "generators."

# What may differ between an attempt and the one that resumes it: a step is the same whatever part
# of it is held in memory at once, wherever it is computed, and however many follow it.
_MAY_DIFFER = (
    *("run", "evaluation", "attempt", "micro_batch", "timeout_min", "heartbeat_s", "device"),
    *("checkpoint_min", "continues_from", "protocol", "budget", "keep", "keep_below"),
    *("micro_batches", "activation_checkpointing", "metrics"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Position of a run between two steps.

    `losses` are those of the last steps, in nats, `loss_sum` is that of all `loss_count` finite
    ones; `counted_s` the seconds since the end of the warm-up, None before it, and `warm_tokens`
    the tokens until then.  `skipped` updates were not finite, `skipped_in_a_row` at the end.
    """

    steps: int
    tokens: int
    losses: tuple[float, ...]
    elapsed_s: float
    counted_s: float | None
    warm_tokens: int
    loss_sum: float
    loss_count: int
    skipped: int
    skipped_in_a_row: int
    update_norm: float | None
    validations: tuple[Validation, ...]
    validation_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Everything that has a state besides the position: model, optimizer and device."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    fingerprint: str


def spec_fingerprint(spec: AttemptSpec, precision: str) -> str:
    """Return a digest of what two attempts must share for one to resume the other.

    `precision` is the one that is used, fp32 or bf16.
    """
    data = {key: value for key, value in spec.encode().items() if key not in _MAY_DIFFER}
    corpus = {key: data["data"][key] for key in ("sha256", "size_bytes")}
    text = json.dumps(data | {"data": corpus, "precision": precision}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A state as named tensors, and as the plain data that belongs to them."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors of one part, by their names within it."""
        begin = len(prefix)
        return {k[begin:]: v for k, v in self.tensors.items() if k.startswith(prefix)}


def capture(trained: Trained, position: Position) -> Content:
    """Return the state, of the live tensors.

    The weights are those that the optimizer trains, not their average: schedule-free cannot switch
    between the two and back exactly.  Its mode is in its own state.
    """
    optimizer = trained.optimizer.state_dict()
    tensors = {_MODEL + name: tensor for name, tensor in trained.model.state_dict().items()}
    for number, state in optimizer["state"].items():
        tensors |= {f"{_OPTIMIZER}{number}.{key}": value for key, value in state.items()}
    generators = Generators(trained.device).states
    tensors |= {_GENERATORS + name: state for name, state in generators.items()}
    data = asdict(position) | {"validations": [asdict(each) for each in position.validations]}
    return Content(
        tensors=tensors,
        state={
            "fingerprint": trained.fingerprint,
            "position": data,
            "param_groups": optimizer["param_groups"],
            "tensors": len(tensors),
        },
    )


def restore(content: Content, trained: Trained) -> None:
    """Restore a state, for which `misfit` must have found nothing."""
    trained.model.load_state_dict(content.part(_MODEL))
    trained.optimizer.load_state_dict(_optimizer_state(content))
    Generators(trained.device, content.part(_GENERATORS)).restore()


def _optimizer_state(content: Content) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in content.part(_OPTIMIZER).items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in content.state["param_groups"]
    ]
    return {"state": state, "param_groups": groups}


def position_of(content: Content) -> Position:
    """Return the position of a state that fits."""
    data = content.state["position"]
    validations = tuple(Validation(**each) for each in data["validations"])
    return Position(**data | {"losses": tuple(data["losses"]), "validations": validations})


def save(content: Content, path: Path, spec: AttemptSpec) -> int:
    """Write a state atomically and return its size in bytes; raises as `tensor_file.write`."""
    card = Card(
        kind=CHECKPOINT,
        spec=spec.encode(),
        state=dict(content.state),
        saved_at=clock.to_text(clock.now()),
    )
    return tensor_file.write(path, content.tensors, card)


def read(path: Path, trained: Trained) -> tuple[Content | None, str]:
    """Return a state that fits, or None and the reason."""
    try:
        saved, tensors = tensor_file.read(path)
    except NotFound:
        return None, "no checkpoint"
    except InvalidModel as exc:
        return None, f"its checkpoint cannot be read: {exc}"
    content = Content(tensors=tensors, state=saved.card.state)
    reason = misfit(content, trained)
    return (content, "") if reason is None else (None, f"its checkpoint does not fit: {reason}")


def misfit(content: Content, trained: Trained) -> str | None:
    """Return why a state cannot be restored, None if it can."""
    if content.state.get("fingerprint") != trained.fingerprint:
        return "it is of another configuration, seed, precision or corpus"
    try:
        parts = (
            ("position", _position_fits(content)),
            ("weights", _weights_fit(content.part(_MODEL), trained.model)),
            ("tensors", content.state["tensors"] == len(content.tensors)),
            ("optimizer", _optimizer_fits(_optimizer_state(content), trained.optimizer)),
            ("generators", _generators_fit(content.part(_GENERATORS), trained.device)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        return f"it is not a whole state: {type(exc).__name__}: {exc}"
    wrong = [name for name, fits in parts if not fits]
    return f"other {', '.join(wrong)}" if wrong else None


def _position_fits(content: Content) -> bool:
    position = position_of(content)
    return position.steps >= 1 and bool(position.losses or position.skipped)


def _weights_fit(saved: Mapping[str, Tensor], model: nn.Module) -> bool:
    own = model.state_dict()
    return own.keys() == saved.keys() and all(
        _same_kind(value, own[name]) for name, value in saved.items()
    )


def _same_kind(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.dtype == other.dtype)


def _optimizer_fits(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return (
        len(saved["param_groups"]) == len(own["param_groups"])
        and all(
            mine.keys() == its.keys() and mine["params"] == its["params"]
            for mine, its in zip(own["param_groups"], saved["param_groups"], strict=True)
        )
        and all(
            _same_kind(value, parameters[number])
            for number, state in saved["state"].items()
            for value in state.values()
        )
    )


def _generators_fit(saved: Mapping[str, Tensor], device: torch.device) -> bool:
    cuda = saved.get("cuda")
    return _same_kind(saved["cpu"], torch.get_rng_state()) and (
        cuda is None or device.type != "cuda" or _same_kind(cuda, torch.cuda.get_rng_state(device))
    )
