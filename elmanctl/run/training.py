"""Training settings: the one record that a run's settings, its specs and its protocols share.

In a spec `lr` and `seed` are the evaluation's, and `micro_batch` is the attempt's.  A new field has
`absent`, what was done before it existed: the frozen code of an older run refuses a key that it
does not know.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from elmanctl.bounds import setting
from elmanctl.constants import DEVICES, PRECISIONS, YEAR_MIN
from elmanctl.errors import ConfigError

BudgetKind = Literal["minutes", "steps", "tokens", "flops", "converge"]
OBJECTIVES = ("val", "last100", "mean")
SAMPLERS = ("windows", "documents", "stream")
DECAYS = ("matrices", "all")
PARALLELS = (DDP, FSDP) = ("ddp", "fsdp")

# By name, the largest first: above so many parameters so many sequences a step.
BATCH_RULES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "study-2026-01": ((480_000_000, 8), (350_000_000, 16), (-1, 32)),
}

# An improvement and its noise are estimated from parts of a window.
MIN_CONVERGE_WINDOW = 20

BUDGET_KINDS: tuple[BudgetKind, ...] = get_args(BudgetKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a model trains, by exactly one measure.

    Minutes run from the end of the warm-up steps; steps, tokens and FLOPs count from the first
    step.  `converge` is the improvement in nats over one window below which a loss has converged.
    """

    kind: BudgetKind
    amount: float

    def encode(self) -> dict[str, float]:
        """Return the budget as plain data, e.g. {"steps": 200}."""
        return {self.kind: self.amount}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """[train]: one evaluation's training run, with one budget of `BUDGET_KINDS`."""

    protocol: str | None = setting(
        "fair", "Named conditions of a comparison; other settings override them", absent=None
    )
    minutes: float | None = setting(
        None, "Time budget of one evaluation", above=0, most=YEAR_MIN, omit=True
    )
    steps: int | None = setting(
        None, "Step budget of one evaluation", least=1, most=10**9, omit=True
    )
    tokens: int | None = setting(
        None, "Token (byte) budget of one evaluation", least=1, most=10**15, omit=True
    )
    flops: float | None = setting(
        None,
        "FLOP budget of one evaluation, of the model's own count",
        above=0,
        most=1e30,
        absent=None,
    )
    converge: float | None = setting(
        None,
        "Train until the loss improves by less than this many nats over converge_window steps",
        above=0,
        most=100,
        absent=None,
    )
    converge_window: int = setting(
        500,
        "Steps over which an improvement is measured, by a line through four windows or more",
        least=MIN_CONVERGE_WINDOW,
        most=1_000_000,
        condition=True,
        absent=500,
    )
    converge_cap_min: float = setting(
        60.0,
        "Minutes after which a loss counts as not converged",
        above=0,
        most=YEAR_MIN,
        condition=True,
        absent=60.0,
    )
    objective: str = setting(
        "val",
        "Loss that is searched: val (held out), last100 (last 100 training steps) or mean (all)",
        words=OBJECTIVES,
        absent="last100",
    )
    sampler: str = setting(
        "windows",
        "Order of the data: windows (random), documents (random, kept within) or stream (in order)",
        words=SAMPLERS,
        absent="windows",
    )
    holdout: float = setting(
        0.02,
        "Share of the documents that is held out of training, by a hash of their content",
        most=0.5,
        condition=True,
        absent=0.0,
    )
    val_windows: int = setting(
        512,
        "Windows of seq_len bytes whose loss is the held-out loss",
        least=1,
        most=10**7,
        condition=True,
        absent=512,
    )
    val_every: int = setting(
        0,
        "Steps between two validations; 0: at 64 steps and at every doubling",
        most=10**9,
        condition=True,
        absent=0,
    )
    batch: int = setting(16, "Sequences a step", least=1, most=1_000_000)
    batch_rule: str | None = setting(
        None,
        "Sequences a step by the size of the model, as in a study; takes the place of batch",
        words=tuple(BATCH_RULES),
        absent=None,
    )
    micro_batch: int = setting(
        0, "Sequences at once; 0 is the batch, or what fits gpu_memory_gb", most=1_000_000
    )
    activation_checkpointing: str = setting(
        "auto",
        "Recompute activations in the backward pass: on, off, or auto, where memory requires it",
        words=("auto", "on", "off"),
        absent="off",
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
    decay: str = setting(
        "matrices",
        "What weight_decay acts on: matrices (no norms, biases, decay rates) or all parameters",
        words=DECAYS,
        condition=True,
        absent="all",
    )
    skip_nonfinite: bool = setting(
        False,
        "Skip an update whose loss or gradient is not finite, and count it",
        condition=True,
        absent=False,
    )
    gpus: int = setting(
        1,
        "GPUs on each node that train one model together, each a part of the batch",
        least=1,
        most=1024,
        condition=True,
        absent=1,
    )
    nodes: int = setting(
        1,
        "Nodes that train one model together",
        least=1,
        most=10_000,
        condition=True,
        absent=1,
    )
    parallel: str = setting(
        "ddp",
        "How several GPUs hold a model: ddp (each all of it) or fsdp (each a part)",
        words=PARALLELS,
        absent="ddp",
    )
    exchange_every: int = setting(
        1,
        "Steps between exchanges of several GPUs: 1 averages gradients, more weights (local SGD)",
        least=1,
        most=1_000_000,
        condition=True,
        absent=1,
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
                f"a budget names exactly one of {', '.join(BUDGET_KINDS)}, not "
                f"{', '.join(budget.kind for budget in named)}"
            )
        if not named:
            raise ConfigError(
                "no training budget is set",
                hint="pass `--train-minutes 10`, `--train-steps N`, `--train-tokens N` or "
                "`--train-flops N`",
            )
        return named[0]

    @property
    def minutes_at_most(self) -> float | None:
        """The longest training time in minutes, None where only steps or tokens end it."""
        return self.converge_cap_min if self.budget.kind == "converge" else self.minutes

    def batch_for(self, parameters: int) -> int:
        """Return the sequences a step of a model of this size."""
        if self.batch_rule is None:
            return self.batch
        return next(batch for least, batch in BATCH_RULES[self.batch_rule] if parameters > least)

    @property
    def ranks(self) -> int:
        """The processes that train one model, one for each GPU."""
        return self.gpus * self.nodes

    @property
    def tokens_per_step(self) -> int:
        """Bytes predicted in one step, whatever the micro-batch."""
        return self.batch * self.seq_len

    def check_together(self) -> None:
        """Raise ConfigError for values that are within their bounds and do not go together."""
        rule = BATCH_RULES.get(self.batch_rule or "", ((0, self.batch),))
        for _, batch in rule:
            if batch % self.ranks:
                raise ConfigError(
                    f"`train.batch` {batch} cannot be shared by {self.ranks} GPUs "
                    "(`train.gpus` times `train.nodes`)",
                    hint="each GPU gets as many sequences of a step as any other",
                )
            if self.micro_batch and batch // self.ranks % self.micro_batch:
                share = f"{batch // self.ranks}, the share of one GPU" if self.ranks > 1 else batch
                raise ConfigError(
                    f"`train.micro_batch` {self.micro_batch} does not divide `train.batch` {share}"
                )
        if self.exchange_every > 1 and self.ranks == 1:
            raise ConfigError(
                "`train.exchange_every` above 1 needs several GPUs: `train.gpus` or `train.nodes`"
            )
        if self.exchange_every > 1 and self.parallel == FSDP:
            raise ConfigError(
                "`train.exchange_every` above 1 goes with `train.parallel` ddp: with fsdp no GPU "
                "has weights of its own"
            )
        if self.objective == "val" and not self.holdout:
            raise ConfigError(
                "`train.objective` is val, and `train.holdout` 0 holds nothing out",
                hint="set `train.holdout` above 0, or `train.objective` to last100 or mean",
            )
