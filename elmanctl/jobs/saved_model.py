"""Saved model: a file of averaged weights as a module that computes."""

from pathlib import Path

from torch import nn

from elmanctl.errors import InvalidConfiguration, InvalidModel, NotFound
from elmanctl.jobs import tensor_file
from elmanctl.jobs.device import find_device
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import build_model, decode_config
from elmanctl.run.saved_file import MODEL, SavedFile, locate_model, read_header
from elmanctl.run.spec import spec_of, unreadable


def load_model(path: Path, *, device: str = "cpu", backend: str = "auto") -> nn.Module:
    """Return the model that a file or folder holds, in evaluation mode, as its worker had it.

    On the same kind of device, with the same backend, its logits have the same bits.  Its card is
    the attribute `card`.  Raises NotFound, InvalidModel for a file that holds no model, UsageError
    for an unknown device, InvalidConfiguration and EnvironmentNotReady as `build_model` does.
    """
    file = locate_model(path)
    check_kind(read_header(file))
    target = find_device(device)
    saved, tensors = tensor_file.read(file)
    spec = spec_of(saved)
    try:
        config = decode_config(spec.level, spec.config)
    except (InvalidConfiguration, NotFound) as exc:
        raise unreadable(saved, exc) from exc
    misfit = InvalidModel(f"{file} has other weights than its configuration")
    # Before memory is taken for a configuration that may say anything.
    if count_parameters(config.level, config.encode()) > saved.parameters:
        raise misfit
    model = build_model(config, seed=0, backend=backend, device=target.type)
    own = {name: (value.dtype, value.shape) for name, value in model.state_dict().items()}
    if own != {name: (value.dtype, value.shape) for name, value in tensors.items()}:
        raise misfit
    model.load_state_dict(tensors)
    model.card = saved.card  # type: ignore[assignment]
    return model.to(target).eval()


def check_kind(saved: SavedFile) -> None:
    """Raise InvalidModel for a checkpoint, whose weights are not those that were validated."""
    if saved.card.kind != MODEL:
        raise InvalidModel(
            f"{saved.path} is a {saved.card.kind}, not a model",
            hint="`model.safetensors` beside it is the model, once the training has ended",
        )
