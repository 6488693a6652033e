"""Outcome of a training run, and its verdict."""

from dataclasses import dataclass

from elmanctl.ledger.records import Evidence, EvidenceSource, Verdict, VerdictKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first number that was not finite: its step, its quantity, and its value."""

    step: int
    quantity: str
    value: str
    last_finite_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """The outcome of one training run.

    `loss` is the mean training loss of the last `loss_window_steps` steps in nats per byte, None
    for a run that diverged.  `steps` and `tokens` count updates and the bytes predicted for them.
    `tokens_per_s` is the speed after the warm-up, None if nothing followed it.
    """

    divergence: Divergence | None
    loss: float | None
    loss_window_steps: int
    last_loss: float | None
    steps: int
    tokens: int
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

    def verdict(self, metrics_file: str, *, steps_before: int = 0) -> Verdict:
        """Return completed or diverged; `metrics_file` is relative to the run folder.

        `steps_before` were made by earlier attempts, whose metrics are in files of their own.
        """
        found = self.divergence
        if found is None:
            text = f"loss {self.loss:.4f} after {self.steps} steps and {self.tokens} bytes"
            evidence = Evidence(source=EvidenceSource.RESULT, text=text)
            return Verdict(kind=VerdictKind.COMPLETED, evidence=(evidence,))
        last = found.last_finite_loss
        text = f"the {found.quantity} of step {found.step} is {found.value}; " + (
            "no step was finite" if last is None else f"the last finite loss was {last:.4f}"
        )
        line = found.step - steps_before
        evidence = Evidence(source=EvidenceSource.RESULT, text=text, file=metrics_file, line=line)
        return Verdict(kind=VerdictKind.DIVERGED, evidence=(evidence,))
