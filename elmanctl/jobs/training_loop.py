"""Training loop: steps, validations and checkpoints of a model until its budget is spent."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from elmanctl.errors import InvalidConfiguration
from elmanctl.jobs.checkpoint import Position, Trained, position_of, restore
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.convergence import Convergence, is_look, judge
from elmanctl.jobs.data import ByteStream, HeldOutWindows
from elmanctl.jobs.early_stop import EarlyStop
from elmanctl.jobs.losses import TrainingLosses
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.micro_batch import MicroBatch
from elmanctl.jobs.optimizer import make_optimizer
from elmanctl.jobs.outcome import Divergence, Validation
from elmanctl.jobs.parallel import Parallel
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.step import Stepper
from elmanctl.jobs.training_clock import TrainingClock
from elmanctl.jobs.validation import Validator, averaged_weights, is_due
from elmanctl.models.params import flops_per_token
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.state_fingerprint import spec_fingerprint

# Results go into the ledger, so they stay small.
MOST_VALIDATIONS = 64

# More than this many updates in a row that are not finite are no accident.
MOST_SKIPPED_IN_A_ROW = 10


class Report(Protocol):
    """Receiver of the progress of a training."""

    def phase(self, name: str) -> None:
        """Report the start of the warm-up or of the training proper."""

    def step(self, record: StepRecord) -> None:
        """Report a step whose numbers are known, before its update."""

    def validation(self, step: int, loss: float) -> None:
        """Report the held-out loss after a step."""


class TrainingLoop:
    """The state of a training run between two steps."""

    def __init__(
        self,
        model: nn.Module,
        stream: ByteStream,
        held_out: HeldOutWindows | None,
        spec: AttemptSpec,
        device: torch.device,
        precision: str,
        checkpoints: Checkpoints | None,
        micro_batch: MicroBatch,
        ranks: Ranks,
        early_stop: EarlyStop | None = None,
    ) -> None:
        training = spec.training
        self.is_stopped = False
        self._is_stoppable = spec.stoppable
        self._early_stop = early_stop
        self.micro_batch = micro_batch
        self.losses = TrainingLosses(training)
        self.steps = 0
        self.tokens = 0
        self.skipped = self.skipped_in_a_row = 0
        self.convergence: Convergence | None = None
        self._flops_per_token = _flops_per_token(spec)
        self.validations: tuple[Validation, ...] = ()
        self.validation_s = 0.0
        self.clock = TrainingClock()
        self.device = device
        self.precision = precision
        self.backend = str(model.backend)
        self._model = model.train()
        self._stream = stream
        self._held_out = held_out
        self._training = training
        self._budget = training.budget
        self._optimizer = make_optimizer(model, training, spec.betas)
        self._ranks = ranks
        self._parallel = Parallel(self._model, training, ranks, precision=precision)
        self._stepper = Stepper(
            self._model,
            self._optimizer,
            device=device,
            precision=precision,
            micro_batch=micro_batch,
            grad_clip=training.grad_clip,
            parallel=self._parallel,
        )
        self._checkpoints = checkpoints
        self._trained = Trained(
            model=self._model,
            optimizer=self._optimizer,
            device=device,
            fingerprint=spec_fingerprint(spec, precision),
            ranks=ranks,
        )
        self._validator = None
        if held_out is not None:
            self._validator = Validator(
                self._model,
                self._optimizer,
                held_out,
                device=device,
                micro_batch=micro_batch,
                autocast=self._stepper.autocast,
                parallel=self._parallel,
            )

    def measured(self, objective: str, *, is_diverged: bool) -> dict[str, Any]:
        """Return the losses of the run, as a `TrainOutcome` has them; without one if diverged.

        A run that was stopped has its training losses alone.
        """
        is_over = not is_diverged and not self.is_stopped
        final = self.validations[-1] if self.validations and is_over else None
        val = None if final is None else final.val_loss
        losses = {
            "val": val,
            "last100": None if is_diverged else self.losses.last100,
            "mean": None if is_diverged else self.losses.mean,
        }
        return {
            "objective": objective,
            "loss": None if self.is_stopped else losses[objective],
            "loss_window_steps": self.losses.window_steps,
            "last_loss": self.losses.last,
            "last100_loss": losses["last100"],
            "mean_loss": losses["mean"],
            "val_loss": val,
            "val_loss_se": None if final is None else final.val_loss_se,
            "bits_per_byte": None if val is None else val / math.log(2),
            "val_documents": 0 if self._held_out is None else self._held_out.documents,
            "val_bytes": 0 if self._held_out is None else self._held_out.scored_bytes,
            "validations": _thinned(self.validations),
            "validation_s": self.validation_s,
            "is_stopped": self.is_stopped,
            **({} if self._early_stop is None else self._early_stop.record()),
        }

    @property
    def flops(self) -> float | None:
        """The FLOPs of the training so far, None for a family without a count."""
        each = self._flops_per_token
        return None if each is None else float(self.tokens * each)

    def run(self, report: Report) -> Divergence | None:
        """Train until the budget is spent or a number is not finite."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._optimizer.train()
        self.clock = TrainingClock()
        report.phase("warmup")
        self._resume_from_checkpoint()
        if self.clock.is_warm:
            report.phase("training")
        # A training that was shorter may have ended at a step after which this one validates.
        divergence = self._validate_if_due(report)
        is_spent = self._is_spent()
        while divergence is None and not is_spent:
            if self.steps == self._training.warmup_steps and not self.clock.is_warm:
                self.clock.warm_up_ends(self.tokens)
                report.phase("training")
            divergence = self._step(report) or self._validate_if_due(report)
            is_spent = self._is_spent()
            if divergence is None and not is_spent:
                self._checkpoint_if_due()
        if self._is_stoppable:
            self.is_stopped = self._ranks.decide(self.is_stopped)
        if divergence is not None or self.is_stopped:
            return divergence
        if not self._parallel.is_exchange(self.steps):
            self._parallel.exchange(self._optimizer)
        if self._checkpoints is not None:
            # Before the validation at the end, which a longer training does not have.
            self._write(self._checkpoints.write_last)
        return self._validate(report)

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Return a context in which the model has the weights that are validated."""
        return averaged_weights(self._model, self._optimizer, self._parallel)

    def _checkpoint_if_due(self) -> None:
        # With local SGD the ranks have equal states behind an exchange alone.
        if self._checkpoints is None or not self._parallel.is_exchange(self.steps):
            return
        if self._ranks.decide(self._checkpoints.is_due):
            self._write(self._checkpoints.write)

    def _write(self, write: Callable[[Trained, Position], None]) -> None:
        with self.clock.stopped():
            write(self._trained, self._position())

    def _validate_if_due(self, report: Report) -> Divergence | None:
        if not self.steps or not is_due(self.steps, self._training.val_every):
            return None
        return self._validate(report)

    def _validate(self, report: Report) -> Divergence | None:
        """Validate, outside the clock, unless that was done after this step.

        Returns a divergence if the loss is not finite.
        """
        done = self.validations[-1].step if self.validations else None
        if self._validator is None or done == self.steps:
            return None
        began, elapsed_s = time.monotonic(), self.clock.elapsed_s()
        with self.clock.stopped():
            report.phase("validation")
            loss, error = self._validator.validate(self.steps)
            found = Validation(
                step=self.steps,
                tokens=self.tokens,
                elapsed_s=elapsed_s,
                val_loss=loss,
                val_loss_se=error,
            )
            report.validation(self.steps, loss)
            report.phase("training" if self.clock.is_warm else "warmup")
        self.validation_s += time.monotonic() - began
        if not math.isfinite(loss):
            return self._divergence(self.steps, "held-out loss", loss)
        self.validations = (*self.validations, found)
        return None

    def _position(self) -> Position:
        return Position(
            steps=self.steps,
            tokens=self.tokens,
            losses=tuple(self.losses.kept),
            elapsed_s=self.clock.elapsed_s(),
            counted_s=self.clock.counted_s() if self.clock.is_warm else None,
            warm_tokens=self.clock.warm_tokens,
            loss_sum=self.losses.total,
            loss_count=self.losses.count,
            skipped=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            update_norm=self._stepper.update_norm,
            validations=self.validations,
            validation_s=self.validation_s,
        )

    def _resume_from_checkpoint(self) -> None:
        content = None if self._checkpoints is None else self._checkpoints.find(self._trained)
        if content is None:
            return
        position = position_of(content)
        self.steps, self.tokens = position.steps, position.tokens
        if position.counted_s is not None and self._training.minutes_at_most is not None:
            # The first steps compile kernels, which must not use up the budget a second time.  They
            # train nothing: the restored state replaces everything afterwards.
            for _ in range(self._training.warmup_steps):
                self._gradients()
        restore(content, self._trained)
        self.losses.kept.extend(position.losses)
        self.losses.total, self.losses.count = position.loss_sum, position.loss_count
        self.skipped, self.skipped_in_a_row = position.skipped, position.skipped_in_a_row
        self._stepper.restore(position.update_norm)
        self.validations, self.validation_s = position.validations, position.validation_s
        self.clock = TrainingClock(
            elapsed_s=position.elapsed_s,
            counted_s=position.counted_s,
            warm_tokens=position.warm_tokens,
        )
        if self._early_stop is not None:
            self._early_stop.curve.resume(self._share)

    def _is_spent(self) -> bool:
        """Whether the budget is spent, by the clock of rank 0, or the controller asked to stop."""
        has_spent = self._has_spent()
        if self._early_stop is not None and not has_spent:
            self.is_stopped = self._early_stop.is_asked()
        return self._ranks.decide(has_spent or self.is_stopped)

    @property
    def _share(self) -> float:
        """The share of the budget that is spent; 0 in a warm-up, and of one that has no end."""
        budget = self._budget
        spent = {
            "minutes": self.clock.counted_s() / 60,
            "steps": self.steps,
            "tokens": self.tokens,
            "flops": self.flops or 0.0,
        }
        return float(spent.get(budget.kind, 0.0) / budget.amount)

    def _has_spent(self) -> bool:
        budget = self._budget
        if budget.kind == "minutes":
            return self.clock.counted_s() >= budget.amount * 60
        if budget.kind == "converge":
            return self._has_converged(budget.amount)
        spent = {"steps": self.steps, "tokens": self.tokens, "flops": self.flops or 0.0}
        return spent[budget.kind] >= budget.amount

    def _has_converged(self, threshold: float) -> bool:
        """Judge convergence where it is due, and at the cap; leave the finding behind."""
        is_capped = self.clock.counted_s() >= self._training.converge_cap_min * 60
        window = self._training.converge_window
        if not is_capped and not is_look(self.steps, window):
            return False
        self.convergence = judge(
            self.losses,
            window,
            threshold,
            step=self.steps,
            tokens=self.tokens,
            elapsed_s=self.clock.elapsed_s(),
            flops=self.flops,
        )
        return self.convergence.is_converged or is_capped

    def _step(self, report: Report) -> Divergence | None:
        loss, grad_norm, update_norm = self._gradients()
        record = StepRecord(
            step=self.steps + 1,
            loss=loss,
            grad_norm=grad_norm,
            tokens=self.tokens + self._training.tokens_per_step,
            elapsed_s=self.clock.elapsed_s(),
            update_norm=update_norm,
        )
        report.step(record)
        for quantity, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                self.skipped_in_a_row += 1
                is_skipped = self._training.skip_nonfinite
                if not is_skipped or self.skipped_in_a_row > MOST_SKIPPED_IN_A_ROW:
                    return self._divergence(record.step, quantity, value)
                self.skipped += 1
                self._stepper.skip_update()
                break
        else:
            self._stepper.update()
            if self._parallel.is_exchange(record.step):
                self._parallel.exchange(self._optimizer)
            self.skipped_in_a_row = 0
            self.losses.append(loss)
        self.steps, self.tokens = record.step, record.tokens
        if self._early_stop is not None:
            self._early_stop.add(self._share, loss)
        return None

    def _gradients(self) -> tuple[float, float, float | None]:
        """Compute the gradients of the next step; attempts that ran out of memory cost no time."""
        lost_s = self._stepper.lost_s
        found = self._stepper.gradients(self._batch(), self.steps + 1)
        self.clock.leave_out(self._stepper.lost_s - lost_s)
        return found

    def _divergence(self, step: int, quantity: str, value: float) -> Divergence:
        return Divergence(
            step=step,
            quantity=quantity,
            value=str(value),
            last_finite_loss=self.losses.last,
        )

    def _batch(self) -> npt.NDArray[np.uint8]:
        training, ranks = self._training, self._ranks
        step, size = self.steps + 1, (training.batch, training.seq_len)
        return self._stream.rows(training.seed, step, *size, rank=ranks.rank, ranks=ranks.count)


def _thinned(validations: tuple[Validation, ...]) -> tuple[Validation, ...]:
    """Return at most `MOST_VALIDATIONS` of them, evenly spaced, with the last one."""
    every = -(-len(validations) // MOST_VALIDATIONS)
    return validations[::-1][:: every or 1][::-1]


def _flops_per_token(spec: AttemptSpec) -> int | None:
    """Return the FLOPs of training on one token, None for a family without a count.

    Raises InvalidConfiguration for such a family under a budget in FLOPs.
    """
    try:
        return flops_per_token(
            spec.level, spec.config, seq_len=spec.training.seq_len, training=True
        )
    except InvalidConfiguration:
        if spec.training.budget.kind == "flops":
            raise
        return None
