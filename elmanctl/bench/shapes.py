"""Models whose training steps are measured, and their matrix products."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elmanctl.models.config import FamilyConfig
from elmanctl.models.registry import FAMILIES, decode_config

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """A model that is trained for a few steps; `name` is its label in tables."""

    name: str
    level: str
    settings: Mapping[str, Any]

    @property
    def config(self) -> FamilyConfig:
        """Validated configuration."""
        return decode_config(self.level, self.settings)

    @property
    def backends(self) -> tuple[str, ...]:
        """Backends of its family, fastest first."""
        return FAMILIES[self.config.level].backends


E88, E88_WIDE, MAMBA2, GDN, TRANSFORMER = (
    "e88 D1920 L17 H83 n32",
    "e88 D2176 L14 H98 n32",
    "mamba2 D1792 L25",
    "fla-gdn D1920 L17 H24",
    "transformer D1536 L17 H24",
)


def _model(name: str, level: str, **settings: int) -> StepModel:
    return StepModel(name=name, level=level, settings=settings)


_LARGE = (
    _model(E88, "e88", dim=1920, depth=17, n_heads=83, n_state=32),
    _model(MAMBA2, "mamba2", dim=1792, depth=25, d_state=96),
    _model(E88_WIDE, "e88", dim=2176, depth=14, n_heads=98, n_state=32),
    _model(GDN, "fla-gdn", dim=1920, depth=17, n_heads=24),
    _model(TRANSFORMER, "transformer", dim=1536, depth=17, n_heads=24),
)

_TINY = (
    _model("e88 tiny", "e88", dim=32, depth=2, n_heads=2, n_state=8),
    _model("mamba2 tiny", "mamba2", dim=32, depth=1, d_state=8, head_dim=16),
    _model("fla-gdn tiny", "fla-gdn", dim=32, depth=1, n_heads=2),
    _model("transformer tiny", "transformer", dim=32, depth=1, n_heads=2, head_dim=16),
)

BATCH, SEQ_LEN = 16, 512
"""Sequences per step and their length on a GPU: 8,192 tokens per step for all models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """Models to train on a device, and the shape of a step."""

    models: tuple[StepModel, ...]
    batch: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.batch * self.seq_len


def step_shape(device: "torch.device") -> StepShape:
    """Return models of about 480M parameters, or on a CPU tiny ones of the same families."""
    if device.type == "cuda":
        return StepShape(models=_LARGE, batch=BATCH, seq_len=SEQ_LEN)
    return StepShape(models=_TINY, batch=2, seq_len=32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear map from `n_in` to `n_out` features, and how often a model contains it."""

    n_in: int
    n_out: int
    count: int


def projections(config: FamilyConfig) -> tuple[Projection, ...]:
    """Return the linear maps of a model, largest first, with the tied head last.

    They are read from a layer built on the meta device.
    """
    import torch
    from torch import nn

    family = FAMILIES[config.level]
    with torch.device("meta"):
        layer = family.load_layer()(config, family.backends[-1])
    modules = layer if isinstance(layer, list) else [layer]
    shapes = Counter(
        (linear.in_features, linear.out_features)
        for module in modules
        for linear in module.modules()
        if isinstance(linear, nn.Linear)
    )
    found = [
        Projection(n_in=n_in, n_out=n_out, count=config.depth * each)
        for (n_in, n_out), each in sorted(shapes.items(), key=lambda item: -item[0][0] * item[0][1])
    ]
    return (*found, Projection(n_in=config.dim, n_out=256, count=1))
