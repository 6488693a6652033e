"""Schedule-free AdamW, and the parameters that its weight decay acts on."""

import inspect
from typing import Any

import schedulefree
import torch
from torch import nn

from elmanctl.run.protocol import EPS
from elmanctl.run.training import Training

# Ends of the names of biases, decay rates and gains, which weight decay leaves alone.
_UNDECAYED = ("bias", "A_log", "log_rate", "skip")


def make_optimizer(
    model: nn.Module, training: Training, betas: tuple[float, float]
) -> "AdamWScheduleFree":
    """Return the optimizer of a training (Defazio et al., 2024, arXiv 2405.15682)."""
    return AdamWScheduleFree(
        parameter_groups(model, training.decay),
        lr=training.lr,
        betas=betas,
        eps=EPS,
        weight_decay=training.weight_decay,
    )


def parameter_groups(model: nn.Module, decay: str) -> list[dict[str, Any]]:
    """Return the parameters for the optimizer, those that weight decay leaves alone apart."""
    if decay == "all":
        return [{"params": list(model.parameters())}]
    free: list[nn.Parameter] = []
    decayed: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_free = parameter.ndim < 2 or name.endswith(_UNDECAYED)
        (free if is_free else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class AdamWScheduleFree(schedulefree.AdamWScheduleFree):  # type: ignore[misc]
    """The same without torch's compiler.

    torch would import the compiler, more than a second of each job, only to disable it here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
