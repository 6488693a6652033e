"""Protocol of a loss: the conditions that comparable losses share, and their fingerprint."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

from elmanctl.codec import encode
from elmanctl.run.training import Training

# The name of what `ByteStream.rows` does; another sampler needs another name.
SAMPLER = "uniform-windows-v1"
LOSS_DEFINITION = "mean-train-nats-last-100-steps"
LOSS_WINDOW_STEPS = 100
OPTIMIZER = "schedulefree-adamw"
BETAS = (0.9, 0.95)
EPS = 1e-8


# The keys of version 0.1 in their order.
_FIRST = (
    *("corpus_sha256", "corpus_size_bytes", "sampler", "loss_definition", "budget"),
    *("tokens_per_step", "seq_len", "warmup_steps", "optimizer", "betas", "eps"),
    *("weight_decay", "grad_clip", "precision"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The conditions that every loss of a comparison must share.

    Of `training` they are its budget, its tokens a step and the fields that are declared a
    `condition`.  The learning rate and the training seed are not among them: they may be
    searched, or varied to see the noise.  `precision` is the one that was used, never "auto".
    """

    corpus_sha256: str
    corpus_size_bytes: int
    sampler: str = SAMPLER
    loss_definition: str = LOSS_DEFINITION
    training: Training
    optimizer: str = OPTIMIZER
    betas: tuple[float, float]
    eps: float = EPS
    precision: str

    def encode(self) -> dict[str, Any]:
        """Return the protocol as plain data."""
        table: dict[str, Any] = encode(self)
        training = table.pop("training")
        table |= {name: training[name] for name in _CONDITIONS if name in training} | {
            "budget": self.training.budget.encode(),
            "tokens_per_step": self.training.tokens_per_step,
        }
        return {key: table[key] for key in _FIRST} | table

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ when any condition differs."""
        text = json.dumps(
            self.encode(), sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()
        return hashlib.sha256(text).hexdigest()[:12]


_CONDITIONS = [item.name for item in fields(Training) if item.metadata["condition"]]
