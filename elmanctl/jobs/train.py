"""Training run of one attempt: the same data, tokens per step and clock for any model."""

import platform
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

import elmanctl
from elmanctl.errors import InvalidConfiguration
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.data import ByteStream, HeldOutWindows
from elmanctl.jobs.device import (
    choose_device,
    choose_precision,
    device_name,
    peak_memory_bytes,
    repeatable,
    use_threads,
)
from elmanctl.jobs.early_stop import EarlyStop
from elmanctl.jobs.micro_batch import MicroBatch
from elmanctl.jobs.outcome import Divergence, TrainOutcome
from elmanctl.jobs.parallel import place
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.training_loop import Report, TrainingLoop
from elmanctl.run.spec import AttemptSpec


def train(
    model: nn.Module,
    stream: ByteStream,
    spec: AttemptSpec,
    report: Report,
    checkpoints: Checkpoints | None = None,
    held_out: HeldOutWindows | None = None,
    keep: Callable[[TrainOutcome, nn.Module], None] | None = None,
    micro_batch: MicroBatch | None = None,
    ranks: Ranks | None = None,
    early_stop: EarlyStop | None = None,
) -> TrainOutcome:
    """Train `model` under `spec` and return the outcome, divergence included.

    `model.loss` takes int64 tokens [B, T+1] and returns the mean loss in nats, which is reported;
    `model.auxiliary_loss()` is added to what is minimised.  With a budget of steps or tokens on the
    CPU and `threads` 1, equal specs give equal losses, bit for bit, and so does a run that resumes
    from a checkpoint; a model that computes its initial weights has to be built after
    `use_threads`.  Unless it diverged, `keep` gets the outcome and the model with its averaged
    weights, those that were validated.  `micro_batch` shrinks by need.  Of several `ranks` each
    calls this, and gets the same outcome.  The first of them may have an `early_stop`, by whose
    request a stoppable training ends: without a loss, and nothing of it is kept.  Raises
    InvalidConfiguration when the model does not have the expected number of parameters.
    """
    parameters = count_parameters(model)
    if parameters != spec.parameters_expected:
        raise InvalidConfiguration(
            f"the model has {parameters} parameters, {spec.parameters_expected} were expected"
        )
    training = spec.training
    if training.objective == "val" and held_out is None:
        raise InvalidConfiguration("the loss on held-out text is asked for, and there is none")
    ranks = ranks or Ranks()
    device = choose_device(training.device, ranks.gpu)
    precision = choose_precision(training.precision, device)
    use_threads(training.threads)
    with repeatable(device.type == "cpu" and training.threads == 1):
        # Each rank has its own noise; that of the first is that of one process.
        torch.manual_seed(training.seed + ranks.rank)
        loop = TrainingLoop(
            place(model, device, training, ranks),
            stream,
            held_out,
            spec,
            device,
            precision,
            checkpoints,
            micro_batch or MicroBatch(training),
            ranks,
            early_stop,
        )
        divergence = loop.run(report)
        outcome = _outcome(loop, spec, divergence, ranks)
        if keep is not None and divergence is None and not loop.is_stopped:
            with loop.averaged_weights():
                keep(outcome, model)
    return outcome


def _outcome(
    loop: TrainingLoop, spec: AttemptSpec, divergence: Divergence | None, ranks: Ranks
) -> TrainOutcome:
    training, device = spec.training, loop.device
    return TrainOutcome(
        divergence=divergence,
        **loop.measured(training.objective, is_diverged=divergence is not None),
        convergence=None if divergence else loop.convergence,
        skipped_updates=loop.skipped,
        steps=loop.steps,
        tokens=loop.tokens,
        flops=loop.flops,
        tokens_per_s=loop.clock.tokens_per_s(loop.tokens),
        elapsed_s=loop.clock.elapsed_s(),
        parameters=spec.parameters_expected,
        tokens_per_step=training.tokens_per_step,
        micro_batch=loop.micro_batch.rows,
        backend=loop.backend,
        device=str(device),
        device_name=device_name(device),
        precision=loop.precision,
        peak_memory_bytes=ranks.most(peak_memory_bytes(device)),
        ranks=ranks.count,
    )


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def versions() -> dict[str, str | None]:
    """Return the versions that a loss may depend on."""
    return {
        "elmanctl": elmanctl.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "schedulefree": version("schedulefree"),
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
    }
