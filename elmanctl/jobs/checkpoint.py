"""Checkpoint: the whole state of a training run between two steps, in memory and as a file.

A run resumed from it makes the same steps as one that was never interrupted, since the bytes of a
step depend on its number alone.  The file holds no code, and is used only if everything in it fits.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elmanctl import clock
from elmanctl.errors import InvalidModel, NotFound
from elmanctl.jobs import shards
from elmanctl.jobs.generators import Generators
from elmanctl.jobs.outcome import Validation
from elmanctl.jobs.parallel import is_split, part
from elmanctl.jobs.ranks import Ranks
from elmanctl.run.saved_file import CHECKPOINT, Card, read_header
from elmanctl.run.spec import AttemptSpec

# The parts of a checkpoint; a tensor's name begins with that of its part.
_MODEL, _OPTIMIZER, _GENERATORS = "model.", "optimizer.", "generators."


_OTHER = "it is of another configuration, seed, precision or corpus"


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
    ranks: Ranks = field(default_factory=Ranks)


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
    """Return the state, of the live tensors; of several ranks each calls this.

    Where each rank has a part of a tensor, so has its state; what is whole is in that of the first.
    The weights are those that the optimizer trains, not their average: schedule-free cannot switch
    between the two and back exactly.  Its mode is in its own state.
    """
    optimizer = trained.optimizer.state_dict()
    tensors = {_MODEL + name: tensor for name, tensor in trained.model.state_dict().items()}
    for number, state in optimizer["state"].items():
        tensors |= {f"{_OPTIMIZER}{number}.{key}": value for key, value in state.items()}
    parts = [name for name, tensor in tensors.items() if is_split(tensor)]
    tensors = {name: part(tensor) for name, tensor in tensors.items()}
    tensors |= _generator_states(trained)
    data = asdict(position) | {"validations": [asdict(each) for each in position.validations]}
    return Content(
        tensors=tensors,
        state={
            "fingerprint": trained.fingerprint,
            "position": data,
            "param_groups": optimizer["param_groups"],
            "tensors": len(tensors),
            **({"parts": parts} if parts else {}),
        },
    )


def _generator_states(trained: Trained) -> dict[str, Tensor]:
    """Return the generators of every rank: those of the first by name, of others by rank too."""
    found = {}
    for name, own in Generators(trained.device).states.items():
        for rank, state in enumerate(trained.ranks.gathered(own)):
            found[_GENERATORS + (f"{rank}.{name}" if rank else name)] = state
    return found


def restore(content: Content, trained: Trained) -> None:
    """Restore a state, for which `misfit` must have found nothing."""
    weights, optimizer = content.part(_MODEL), _optimizer_state(content)
    own = trained.model.state_dict()
    if any(map(is_split, own.values())):
        with torch.no_grad():
            for name, tensor in own.items():
                part(tensor).copy_(weights[name])
            _take_parts(optimizer["state"], trained)
    else:
        trained.model.load_state_dict(weights)
    trained.optimizer.load_state_dict(optimizer)
    rank = trained.ranks.rank
    generators = content.part(f"{_GENERATORS}{rank}." if rank else _GENERATORS)
    # A rank that was not there before keeps its own.
    if "cpu" in generators:
        Generators(trained.device, generators).restore()


def _take_parts(state: dict[int, dict[str, Tensor]], trained: Trained) -> None:
    """Tell torch of the rows of an optimizer's state that they are parts of tensors."""
    parameters = _parameters(trained.optimizer)
    for number, values in state.items():
        for key, value in values.items():
            values[key] = torch.zeros_like(parameters[number])
            part(values[key]).copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


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


def save(content: Content, path: Path, spec: AttemptSpec, ranks: Ranks | None = None) -> int:
    """Write a state and return the size in bytes of what this rank wrote.

    A kill at any time leaves the old state or the new one; raises as `shards.write`.
    """
    card = Card(
        kind=CHECKPOINT,
        spec=spec.encode(),
        state=dict(content.state),
        saved_at=clock.to_text(clock.now()),
    )
    parts = content.state.get("parts", [])
    return shards.write(path, content.tensors, parts, card, ranks or Ranks())


def read(path: Path, trained: Trained) -> tuple[Content | None, str]:
    """Return a state that fits, or None and the reason.

    Of tensors that the ranks share out it has this rank's rows alone, whoever wrote them.
    """
    try:
        saved = read_header(path)
        if saved.card.state.get("fingerprint") != trained.fingerprint:
            return None, f"its checkpoint does not fit: {_OTHER}"
        tensors = shards.read(saved, _shared_out(trained), trained.ranks)
    except NotFound as exc:
        return None, "no checkpoint" if not path.exists() else f"its checkpoint lacks a part: {exc}"
    except InvalidModel as exc:
        return None, f"its checkpoint cannot be read: {exc}"
    content = Content(tensors=tensors, state=saved.card.state)
    reason = misfit(content, trained)
    return (content, "") if reason is None else (None, f"its checkpoint does not fit: {reason}")


def _shared_out(trained: Trained) -> Callable[[str], bool]:
    """Return whether each rank has some rows of a tensor of a state, by its name."""
    own = {_MODEL + name: tensor for name, tensor in trained.model.state_dict().items()}
    numbered = {str(n): parameter for n, parameter in enumerate(_parameters(trained.optimizer))}

    def is_in_parts(name: str) -> bool:
        number = name.removeprefix(_OPTIMIZER).partition(".")[0]
        tensor = numbered.get(number) if name.startswith(_OPTIMIZER) else own.get(name)
        return tensor is not None and is_split(tensor)

    return is_in_parts


def misfit(content: Content, trained: Trained) -> str | None:
    """Return why a state cannot be restored, None if it can."""
    if content.state.get("fingerprint") != trained.fingerprint:
        return _OTHER
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


def _same_kind(one: Tensor, other: Tensor) -> bool:
    """Whether a tensor has the shape and dtype of this rank's part of another one."""
    own = part(other)
    return one.shape == own.shape and one.dtype == own.dtype


def _optimizer_fits(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    own = optimizer.state_dict()
    parameters = _parameters(optimizer)
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
