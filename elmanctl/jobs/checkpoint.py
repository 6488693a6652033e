"""Checkpoint: the whole state of a training run between two steps, in memory and as a file.

A run resumed from it makes the same steps as one that was never interrupted, since the bytes of a
step depend on its number alone.  The file is read by `torch.load` with `weights_only`, which runs
no code from it, and used only if everything in it fits.
"""

import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from elmanctl.jobs.validation import Validation
from elmanctl.ledger.files import sync_folder
from elmanctl.run.spec import AttemptSpec

VERSION = 1

# Settings that may differ between an attempt and the one that resumes it: a step is the same
# whatever part of it is held in memory at once, and wherever it is computed.
_MAY_DIFFER = (
    *("attempt", "micro_batch", "timeout_min", "heartbeat_s", "device"),
    *("checkpoint_min", "continues_from", "protocol"),
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
    loss_sum: float = 0.0
    loss_count: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    update_norm: float | None = None
    validations: tuple[Validation, ...] = ()
    validation_s: float = 0.0


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


def capture(trained: Trained, position: Position) -> dict[str, Any]:
    """Return the state as plain containers of the live tensors.

    The weights are those that the optimizer trains, not their average: schedule-free cannot switch
    between the two and back exactly.  Its mode is in its own state.
    """
    on_gpu = trained.device.type == "cuda"
    return {
        "version": VERSION,
        "fingerprint": trained.fingerprint,
        "position": asdict(position)
        | {
            "losses": list(position.losses),
            "validations": [asdict(each) for each in position.validations],
        },
        "model": trained.model.state_dict(),
        "optimizer": trained.optimizer.state_dict(),
        "generators": {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(trained.device) if on_gpu else None,
        },
    }


def restore(content: Mapping[str, Any], trained: Trained) -> None:
    """Restore a state, for which `misfit` must have found nothing."""
    trained.model.load_state_dict(content["model"])
    trained.optimizer.load_state_dict(content["optimizer"])
    generators = content["generators"]
    torch.set_rng_state(generators["cpu"])
    if trained.device.type == "cuda" and generators["cuda"] is not None:
        torch.cuda.set_rng_state(generators["cuda"], trained.device)


def position_of(content: Mapping[str, Any]) -> Position:
    """Return the position of a state that fits."""
    data = content["position"]
    validations = tuple(Validation(**each) for each in data.get("validations", ()))
    return Position(**data | {"losses": tuple(data["losses"]), "validations": validations})


def save(content: Mapping[str, Any], path: Path) -> int:
    """Write a state atomically and return its size in bytes.

    Raises OSError, with ENOSPC before a byte is written if there is no room, and RuntimeError if
    there is no memory; a partial file is removed.
    """
    _check_room(content, path.parent)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as exc:
                # torch reports that it cannot close its archive, not the write that failed.
                found = _first_os_error(exc)
                if found is None:
                    raise
                raise OSError(found.errno, found.strerror) from exc
            file.flush()
            os.fsync(file.fileno())
            size_bytes = file.tell()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return size_bytes


def _check_room(content: Mapping[str, Any], folder: Path) -> None:
    """Raise OSError if there is no room: a disk that is full for a moment fails other jobs."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(content))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB are free"
        )


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)


def _first_os_error(exc: BaseException) -> OSError | None:
    link: BaseException | None = exc
    while link is not None:
        if isinstance(link, OSError):
            return link
        link = link.__cause__ or link.__context__
    return None


def read(path: Path, trained: Trained) -> tuple[dict[str, Any] | None, str]:
    """Return a state that fits, or None and the reason."""
    try:
        # torch does not verify the checksums in its own archive.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return None, f"its checkpoint cannot be read: {damaged} is damaged"
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None, "no checkpoint"
    except Exception as exc:
        # Damage raises almost any exception, and the run can do without the checkpoint.
        first, *_ = str(exc).splitlines() or [""]
        return None, f"its checkpoint cannot be read: {type(exc).__name__}: {first}"
    reason = misfit(content, trained)
    return (content, "") if reason is None else (None, f"its checkpoint does not fit: {reason}")


def misfit(content: object, trained: Trained) -> str | None:
    """Return why a state cannot be restored, None if it can."""
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return f"it is not of version {VERSION}"
    if content.get("fingerprint") != trained.fingerprint:
        return "it is of another configuration, seed, budget, precision or corpus"
    try:
        parts = (
            ("position", _position_fits(content)),
            ("weights", _weights_fit(content["model"], trained.model)),
            ("optimizer", _optimizer_fits(content["optimizer"], trained.optimizer)),
            ("generators", _generators_fit(content["generators"], trained.device)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        return f"it is not a whole state: {type(exc).__name__}: {exc}"
    wrong = [name for name, fits in parts if not fits]
    return f"other {', '.join(wrong)}" if wrong else None


def _position_fits(content: Mapping[str, Any]) -> bool:
    position = position_of(content)
    return position.steps >= 1 and bool(position.losses or position.skipped)


def _weights_fit(saved: Mapping[str, Any], model: nn.Module) -> bool:
    own = model.state_dict()
    # Older versions kept less: buffers that a module computes itself may be missing.
    found_anew = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name in getattr(module, "found_anew", ())
    }
    return own.keys() - found_anew <= saved.keys() <= own.keys() and all(
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


def _generators_fit(saved: Mapping[str, Any], device: torch.device) -> bool:
    cuda = saved["cuda"]
    return _same_kind(saved["cpu"], torch.get_rng_state()) and (
        cuda is None or device.type != "cuda" or _same_kind(cuda, torch.cuda.get_rng_state(device))
    )
