"""Architecture searches on Slurm clusters, with a ledger of everything that happened."""

# What type checkers take for true; typing itself would be imported by every start of a program.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike

    from torch import nn

__version__ = "0.1.0"


def load(path: "str | PathLike[str]", *, device: str = "cpu", backend: str = "auto") -> "nn.Module":
    """Return a kept model as a torch module in evaluation mode.

    `path` is its file, or a folder that holds `model.safetensors`.  `device` is cpu, cuda, cuda:N
    or auto; `backend` one of the model's backends, or auto for the best on that device.

        model = elmanctl.load("model.safetensors")
        logits, state = model(tokens)               # int64 [B, T] -> float32 [B, T, 256]
        logits, state = model(following, state)     # goes on behind the tokens so far

    Tokens are bytes, 0 to 255; the byte 0x1e begins a document.  `logits[:, t]` are those of the
    byte behind token t, and `state` is a list with an entry for each of `model.layers`.  Weights
    are float32, averaged as in validation.  `model.card` is the `elmanctl.run.saved_file.Card` with
    the spec and the result of the training, `model.config` the configuration, and `model.backend`
    the backend.

    On the kind of device, with the backend and the number of threads of the worker that trained
    the model, its logits have the bits of the worker's.

    Raises NotFound when there is no such file; InvalidModel for one that is no model, of another
    version, cut or damaged, and for a checkpoint; UsageError for an unknown device;
    EnvironmentNotReady when torch, the device or the backend is not there; InvalidConfiguration
    when the backend does not support the model.  All are `elmanctl.errors.ElmanError`.
    """
    from pathlib import Path

    from elmanctl.constants import INSTALL_TRAIN
    from elmanctl.errors import EnvironmentNotReady

    try:
        from elmanctl.jobs.saved_model import load_model
    except ImportError as exc:
        if (exc.name or "").startswith(__name__):
            raise
        raise EnvironmentNotReady(
            f"what a model needs cannot be imported here: {exc}", hint=INSTALL_TRAIN
        ) from exc
    return load_model(Path(path), device=device, backend=backend)
