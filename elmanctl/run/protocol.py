"""What must be equal for two losses to be comparable, and its fingerprint."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from elmanctl.errors import InvalidConfiguration

# The name of what `ByteStream.rows` does; another sampler needs another name.
SAMPLER = "uniform-windows-v1"
LOSS_DEFINITION = "mean-train-nats-last-100-steps"
LOSS_WINDOW_STEPS = 100
OPTIMIZER = "schedulefree-adamw"
BETAS = (0.9, 0.95)
EPS = 1e-8

BudgetKind = Literal["minutes", "steps", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a model trains, by exactly one measure.

    Minutes run from the end of the warm-up steps; steps and tokens count from the first step.
    """

    kind: BudgetKind
    amount: float

    def __post_init__(self) -> None:
        amount = self.amount
        if not math.isfinite(amount) or amount <= 0:
            raise InvalidConfiguration(f"a budget of {amount:g} {self.kind} is not above zero")
        if self.kind != "minutes" and amount != int(amount):
            raise InvalidConfiguration(f"a budget of {amount:g} {self.kind} is not whole")

    def encode(self) -> dict[str, float]:
        """Return the budget as plain data, e.g. {"steps": 200}."""
        return {self.kind: float(self.amount) if self.kind == "minutes" else int(self.amount)}

    @classmethod
    def decode(cls, data: Mapping[str, Any]) -> "Budget":
        """Read plain data; raise InvalidConfiguration unless exactly one measure is named."""
        kinds: tuple[BudgetKind, ...] = ("minutes", "steps", "tokens")
        named = [kind for kind in kinds if kind in data]
        if len(named) != 1 or len(data) != 1:
            raise InvalidConfiguration(
                f"a budget names exactly one of minutes, steps, tokens, not {sorted(data)}"
            )
        amount = data[named[0]]
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise InvalidConfiguration(f"a budget in {named[0]} is a number, not {amount!r}")
        return cls(kind=named[0], amount=amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The conditions that every loss of a comparison must share.

    The learning rate and the training seed are not among them: they may be searched, or varied
    to see the noise.  `precision` is the one that was used, never "auto".
    """

    corpus_sha256: str
    corpus_size_bytes: int
    sampler: str = SAMPLER
    loss_definition: str = LOSS_DEFINITION
    budget: Budget
    tokens_per_step: int
    seq_len: int
    warmup_steps: int
    optimizer: str = OPTIMIZER
    betas: tuple[float, float]
    eps: float = EPS
    weight_decay: float
    grad_clip: float
    precision: str

    def encode(self) -> dict[str, Any]:
        """Return the protocol as plain data."""
        data = asdict(self)
        # Whole numbers given for fractions must not make two equal protocols look different.
        for name in ("eps", "weight_decay", "grad_clip"):
            data[name] = float(data[name])
        return data | {
            "budget": self.budget.encode(),
            "betas": [float(beta) for beta in self.betas],
        }

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ when any condition differs."""
        text = json.dumps(
            self.encode(), sort_keys=True, separators=(",", ":"), allow_nan=False
        ).encode()
        return hashlib.sha256(text).hexdigest()[:12]
