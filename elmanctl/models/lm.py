"""Byte-level language model around the layers of a family."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elmanctl.constants import VOCABULARY
from elmanctl.models.buffers import Buffers
from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import FAMILIES

NORM_EPS = 1e-5
EMBEDDING_STD = 0.02


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich, 2019), computed in the dtype of x."""

    eps = NORM_EPS

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., dim] normalized and scaled, in the weight's dtype."""
        weight = self.weight.to(x.dtype)
        return F.rms_norm(x, weight.shape, weight, self.eps).to(self.weight.dtype)


class LayerNorm(nn.Module):
    """Layer norm (Ba et al., 2016), computed in the dtype of x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., dim] normalized, scaled and shifted, in the weight's dtype."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, NORM_EPS).to(self.weight.dtype)


_NORMS = {"rms": RMSNorm, "layer": LayerNorm}


class LanguageModel(nn.Module):
    """Byte-level language model: embedding, pre-norm residual layers, tied head.

    The residual stream is float32 for any dtype of the weights (float64 for float64).  Layers come
    from the registry; each of their modules maps [B, T, dim] and its state to the same.  A module
    with an additional loss sets its attribute `auxiliary_loss` in a training forward pass.  With
    `is_recomputing` what layers compute in training is not kept, but computed again in the
    backward pass (Chen et al., 2016, arXiv 1604.06174), which gives the same gradients.
    """

    def __init__(self, config: FamilyConfig, backend: str) -> None:
        super().__init__()
        make_norm, make_layer = _NORMS[config.norm], FAMILIES[config.level].load_layer()
        self.config = config
        self.backend = backend
        self.is_recomputing = False
        self.embedding = nn.Embedding(VOCABULARY, config.dim)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        self.layers = nn.ModuleList()
        for _ in range(config.depth):
            made = make_layer(config, backend)
            self.layers.extend(made if isinstance(made, list) else [made])
        self.norms = nn.ModuleList(make_norm(config.dim) for _ in self.layers)
        self.final_norm = make_norm(config.dim)

    def forward(
        self, tokens: Tensor, state: Sequence[Any] | None = None
    ) -> tuple[Tensor, list[Any]]:
        """Return the logits [B, T, 256] for tokens [B, T] and the states of the layers.

        Passing the states with the following tokens continues the sequence; None starts one.
        """
        weight = self.embedding.weight
        residual_dtype = torch.promote_types(weight.dtype, torch.float32)
        residual = F.embedding(tokens, weight).to(residual_dtype)
        before = [None] * len(self.layers) if state is None else state
        after = []
        for norm, layer, layer_state in zip(self.norms, self.layers, before, strict=True):
            change, layer_state = self._change(norm, layer, residual, layer_state)
            residual = residual + change
            after.append(layer_state)
        logits = F.linear(self.final_norm(residual), weight)
        return logits.to(residual_dtype), after

    def _change(
        self, norm: nn.Module, layer: nn.Module, residual: Tensor, state: Any
    ) -> tuple[Tensor, Any]:
        """Return what a layer adds to the residual stream [B, T, dim], and its state."""

        def run(residual: Tensor, state: Any) -> tuple[Tensor, Any]:
            found: tuple[Tensor, Any] = layer(norm(residual), state)
            return found

        if not (self.is_recomputing and self.training and torch.is_grad_enabled()):
            return run(residual, state)
        again = _as_in_forward(layer, Buffers(layer.modules()))
        contexts: tuple[AbstractContextManager[None], AbstractContextManager[None]]
        contexts = (nullcontext(), again)
        found: tuple[Tensor, Any] = checkpoint(
            run, residual, state, use_reentrant=False, context_fn=lambda: contexts
        )
        return found

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean cross entropy in nats over all bytes of [B, T+1] but the first."""
        logits, _ = self(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def auxiliary_loss(self) -> Tensor | float:
        """Return the layers' total auxiliary loss of the last training forward pass, in nats."""
        total: Tensor | float = 0.0
        for layer in self.layers:
            total = total + getattr(layer, "auxiliary_loss", 0.0)
        return total

    def drop_auxiliary_loss(self) -> None:
        """Forget the auxiliary loss, whose graph keeps the activations of a forward pass."""
        for layer in self.layers:
            if hasattr(layer, "auxiliary_loss"):
                layer.auxiliary_loss = torch.zeros(())


@contextmanager
def _as_in_forward(layer: nn.Module, buffers: Buffers) -> Iterator[None]:
    """Let a layer compute again as it did with `buffers`, and leave it as it is now.

    The auxiliary loss of the second time would hold the graph of what is computed in it.
    """
    now, loss = Buffers(layer.modules()), getattr(layer, "auxiliary_loss", None)
    buffers.restore()
    try:
        yield
    finally:
        now.restore()
        if loss is not None:
            layer.auxiliary_loss = loss
