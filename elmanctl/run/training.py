"""Training settings: the one record that a run's settings, its specs and its protocols share.

In a spec `lr` and `seed` are the evaluation's, and `micro_batch` is the attempt's.  A new field has
`omit`: the frozen code of an older run refuses a key that it does not know.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from elmanctl.bounds import setting
from elmanctl.constants import DEVICES, PRECISIONS, YEAR_MIN
from elmanctl.errors import ConfigError

BudgetKind = Literal["minutes", "steps", "tokens"]
BUDGET_KINDS: tuple[BudgetKind, ...] = get_args(BudgetKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a model trains, by exactly one measure.

    Minutes run from the end of the warm-up steps; steps and tokens count from the first step.
    """

    kind: BudgetKind
    amount: float

    def encode(self) -> dict[str, float]:
        """Return the budget as plain data, e.g. {"steps": 200}."""
        return {self.kind: self.amount}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """[train]: one evaluation's training run; exactly one of minutes, steps, tokens."""

    minutes: float | None = setting(
        None, "Time budget of one evaluation", above=0, most=YEAR_MIN, omit=True
    )
    steps: int | None = setting(
        None, "Step budget of one evaluation", least=1, most=10**9, omit=True
    )
    tokens: int | None = setting(
        None, "Token (byte) budget of one evaluation", least=1, most=10**15, omit=True
    )
    batch: int = setting(16, "Sequences a step", least=1, most=1_000_000)
    micro_batch: int = setting(
        0, "Sequences at once; 0 is the batch, or what fits gpu_memory_gb", most=1_000_000
    )
    seq_len: int = setting(
        512, "Bytes predicted in one sequence", least=1, most=10**9, condition=True
    )
    lr: float = setting(3e-4, "Learning rate, where the space has no lr axis", above=0, most=10)
    warmup_steps: int = setting(
        3, "Steps before the clock of a time budget starts", most=1_000_000, condition=True
    )
    grad_clip: float = setting(1.0, "Largest norm of the gradient", most=1_000_000, condition=True)
    weight_decay: float = setting(
        0.01, "Weight decay of schedule-free AdamW", most=10, condition=True
    )
    seed: int = setting(42, "Seed of initialisation and of the order of the data", most=2**62)
    precision: str = setting("auto", "fp32, bf16 or auto (bf16 on a GPU)", words=PRECISIONS)
    device: str = setting("auto", "cpu, cuda or auto", words=DEVICES)
    backend: str = setting("auto", "Implementation of the recurrence")
    threads: int = setting(0, "CPU threads of a worker; 0 leaves it to torch", most=1024)
    heartbeat_s: float = setting(
        10.0, "Seconds between two heartbeats of a worker", above=0, most=3600
    )
    checkpoint_min: float = setting(
        0.0, "Minutes between two checkpoints of a worker; 0: none", most=YEAR_MIN, omit=True
    )

    @property
    def budget(self) -> Budget:
        """The one budget that is set; raises ConfigError when none or several are."""
        amounts = {kind: getattr(self, kind) for kind in BUDGET_KINDS}
        named = [Budget(kind=kind, amount=n) for kind, n in amounts.items() if n is not None]
        if len(named) > 1:
            raise ConfigError(
                f"a budget names exactly one of minutes, steps, tokens, not "
                f"{', '.join(budget.kind for budget in named)}"
            )
        if not named:
            raise ConfigError(
                "no training budget is set",
                hint="pass `--train-minutes 10`, `--train-steps N` or `--train-tokens N`",
            )
        return named[0]

    @property
    def tokens_per_step(self) -> int:
        """Bytes predicted in one step, whatever the micro-batch."""
        return self.batch * self.seq_len

    def check_together(self) -> None:
        """Raise ConfigError for values that are within their bounds and do not go together."""
        if self.micro_batch and self.batch % self.micro_batch:
            raise ConfigError(
                f"`train.micro_batch` {self.micro_batch} does not divide `train.batch` {self.batch}"
            )
