"""Outcome of a training run, and its verdict."""

from dataclasses import dataclass

from elmanctl.codec import json_field
from elmanctl.jobs.convergence import Convergence
from elmanctl.ledger.records import Evidence, EvidenceSource, Verdict, VerdictKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first number that was not finite: its step, its quantity, and its value."""

    step: int
    quantity: str
    value: str
    last_finite_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One validation: nats per byte, and its standard error over documents.

    `val_loss_se` is None for a single document.  `step`, `tokens` and `elapsed_s`, without
    validations, are those of the training until then.
    """

    step: int
    tokens: int
    elapsed_s: float
    val_loss: float
    val_loss_se: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """The outcome of one training run.

    `loss` is the loss that the protocol names as `objective`, in nats per byte, None for a run that
    diverged: `val_loss` on held-out documents, with its standard error over them; `last100_loss`,
    the mean training loss of the last `loss_window_steps` steps; or `mean_loss`, that of all steps.
    `steps` and `tokens` count updates and the bytes predicted for them, skipped ones included.
    `tokens_per_s` is the speed after the warm-up, None if nothing followed it.  `validations` are
    up to 64 of them, the last at the end; `elapsed_s` is without the `validation_s` that they took.
    `flops` is None for a family without a count.  Of several `ranks` speed and tokens are those of
    all together, the micro-batch is one rank's, and the peak of memory that of the one with most.
    A stoppable training has its `curve` of losses at the looks, and the `share` of the budget that
    it spent; one that was stopped has no `loss` and no `val_loss`.
    """

    divergence: Divergence | None
    objective: str
    loss: float | None
    loss_window_steps: int
    last_loss: float | None
    last100_loss: float | None
    mean_loss: float | None
    val_loss: float | None = None
    val_loss_se: float | None = None
    bits_per_byte: float | None = None
    val_documents: int = 0
    val_bytes: int = 0
    validations: tuple[Validation, ...] = ()
    validation_s: float = 0.0
    convergence: Convergence | None = None
    skipped_updates: int = 0
    steps: int
    tokens: int
    flops: float | None
    tokens_per_s: float | None
    elapsed_s: float
    parameters: int
    tokens_per_step: int
    micro_batch: int
    backend: str
    device: str
    device_name: str
    precision: str
    peak_memory_bytes: int
    ranks: int = 1
    is_stopped: bool = json_field(default=False, omit=True)
    share: float | None = json_field(default=None, omit=True)
    curve: tuple[float | None, ...] = json_field(default=(), omit=True)

    def verdict(self, metrics_file: str, *, steps_before: int = 0) -> Verdict:
        """Return completed, stopped or diverged; `metrics_file` is relative to the run folder.

        `steps_before` were made by earlier attempts, whose metrics are in files of their own.
        """
        found = self.divergence
        if found is None and self.is_stopped:
            text = f"stopped after {self.steps} steps and {self.tokens} bytes"
            if self.share is not None and self.last100_loss is not None:
                text += f", {self.share:.0%} of the budget; training loss {self.last100_loss:.4f}"
            evidence = Evidence(source=EvidenceSource.RESULT, text=text)
            return Verdict(kind=VerdictKind.STOPPED, evidence=(evidence,))
        if found is None:
            text = f"{self._loss_text} after {self.steps} steps and {self.tokens} bytes"
            if self.convergence is not None and not self.convergence.is_converged:
                text += ", not converged"
            evidence = Evidence(source=EvidenceSource.RESULT, text=text)
            return Verdict(kind=VerdictKind.COMPLETED, evidence=(evidence,))
        last = found.last_finite_loss
        text = f"the {found.quantity} of step {found.step} is {found.value}; " + (
            "no step was finite" if last is None else f"the last finite loss was {last:.4f}"
        )
        line = found.step - steps_before
        evidence = Evidence(source=EvidenceSource.RESULT, text=text, file=metrics_file, line=line)
        return Verdict(kind=VerdictKind.DIVERGED, evidence=(evidence,))

    @property
    def _loss_text(self) -> str:
        if self.objective != "val":
            return f"loss {self.loss:.4f}"
        error = "" if self.val_loss_se is None else f" ± {self.val_loss_se:.4f}"
        return f"held-out loss {self.loss:.4f}{error}"
