"""Protocol of a loss: the conditions that comparable losses share, and their fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from elmanctl.codec import encode
from elmanctl.run.training import Training

# The names of what `ByteStream.rows` does; another way needs another name.
SAMPLER_NAMES: Mapping[str, str] = {
    "windows": "uniform-windows-v1",
    "documents": "document-windows-v1",
    "stream": "sequential-stream-v1",
}
LOSS_DEFINITIONS: Mapping[str, str] = {
    "val": "held-out-nats-averaged-weights-v1",
    "last100": "mean-train-nats-last-100-steps",
    "mean": "mean-train-nats-all-steps",
}
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
    training: Training
    optimizer: str = OPTIMIZER
    betas: tuple[float, float]
    eps: float = EPS
    precision: str

    def encode(self) -> dict[str, Any]:
        """Return the protocol as plain data."""
        table: dict[str, Any] = encode(self)
        del table["training"]
        table |= _conditions(self.training)
        return {key: table[key] for key in _FIRST if key in table} | table

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ when any condition differs."""
        text = json.dumps(
            self.encode(), sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()
        return hashlib.sha256(text).hexdigest()[:12]


def run_protocol(training: Training) -> dict[str, Any]:
    """Return what a run's settings say of the protocol, before a worker knows its precision."""
    return {"name": training.protocol} | _conditions(training)


def _conditions(training: Training) -> dict[str, Any]:
    rule = training.batch_rule
    tokens = {"tokens_per_step": training.tokens_per_step} if rule is None else {"batch_rule": rule}
    table = encode(training)
    return {
        "budget": training.budget.encode(),
        **tokens,
        **{name: table[name] for name in CONDITIONS if name in table},
        "sampler": SAMPLER_NAMES[training.sampler],
        "loss_definition": LOSS_DEFINITIONS[training.objective],
    }


CONDITIONS = [item.name for item in fields(Training) if item.metadata["condition"]]
