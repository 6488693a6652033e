"""Training loop of one attempt: the same data, tokens per step and clock for any model."""

import inspect
import math
import os
import platform
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import schedulefree
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

import elmanctl
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.jobs.checkpoint import Position, Trained, position_of, restore, spec_fingerprint
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.data import ByteStream
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.outcome import Divergence, TrainOutcome
from elmanctl.jobs.training_clock import TrainingClock
from elmanctl.run.protocol import EPS, LOSS_WINDOW_STEPS
from elmanctl.run.spec import AttemptSpec

# Slurm sets these in a job with GPUs; some releases set the last one to -1 or a word without.
_GPU_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")
_NO_GPU = ("-1", "NoDevFiles")


class Report(Protocol):
    """Receiver of the progress of a training."""

    def phase(self, name: str) -> None:
        """Report the start of the warm-up or of the training proper."""

    def step(self, record: StepRecord) -> None:
        """Report a step whose numbers are known, before its update."""


def train(
    model: nn.Module,
    stream: ByteStream,
    spec: AttemptSpec,
    report: Report,
    checkpoints: Checkpoints | None = None,
) -> TrainOutcome:
    """Train `model` under `spec` and return the outcome, divergence included.

    `model.loss` takes int64 tokens [B, T+1] and returns the mean loss in nats, which is reported;
    `model.auxiliary_loss()` is added to what is minimised.  With a budget of steps or tokens on the
    CPU and `threads` 1, equal specs give equal losses, bit for bit, and so does a run that resumes
    from a checkpoint; a model that computes its initial weights has to be built after
    `use_threads`.  Raises InvalidConfiguration when the model does not have the expected number of
    parameters.
    """
    parameters = count_parameters(model)
    if parameters != spec.parameters_expected:
        raise InvalidConfiguration(
            f"the model has {parameters} parameters, {spec.parameters_expected} were expected"
        )
    training = spec.training
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device)
    use_threads(training.threads)
    with _repeatable(device.type == "cpu" and training.threads == 1):
        torch.manual_seed(training.seed)
        loop = _Loop(model.to(device), stream, spec, device, precision, checkpoints)
        divergence = loop.run(report)
    return TrainOutcome(
        divergence=divergence,
        loss=None if divergence else loop.mean_loss,
        loss_window_steps=len(loop.losses),
        last_loss=loop.losses[-1] if loop.losses else None,
        steps=loop.steps,
        tokens=loop.tokens,
        tokens_per_s=loop.clock.tokens_per_s(loop.tokens),
        elapsed_s=loop.clock.elapsed_s(),
        parameters=parameters,
        tokens_per_step=training.tokens_per_step,
        micro_batch=loop.micro_batch,
        backend=str(model.backend),
        device=str(device),
        device_name=_device_name(device),
        precision=precision,
        peak_memory_bytes=_peak_memory_bytes(device),
    )


def use_threads(count: int) -> None:
    """Set the number of CPU threads of torch; 0 leaves it to torch.

    It must come before a model is built: the last bits of an orthogonal initial weight depend on
    the number of threads.
    """
    if count:
        torch.set_num_threads(count)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, shared ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def choose_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here.

    Raises EnvironmentNotReady when torch sees no CUDA device although CUDA is requested, or
    although the job was given a GPU, which `auto` would leave idle.
    """
    is_available = torch.cuda.is_available()
    if name == "cuda" and not is_available:
        raise EnvironmentNotReady("torch sees no CUDA device on this machine")
    given = _given_gpu() if name == "auto" and not is_available else None
    if given:
        raise EnvironmentNotReady(
            f"this job was given a GPU ({given}), but torch sees no CUDA device",
            hint="install a torch with CUDA that the node's driver can run, or set `train.device` "
            "to cpu and ask for no GPU",
        )
    return torch.device("cuda" if is_available and name != "cpu" else "cpu")


def _given_gpu() -> str | None:
    """Return the variable that names the GPUs of this job, None if it has none."""
    values = {name: os.environ.get(name, "").strip() for name in _GPU_VARIABLES}
    given = (f"{name}={value}" for name, value in values.items() if value not in ("", *_NO_GPU))
    return next(given, None)


def choose_precision(name: str, device: torch.device) -> str:
    """Return fp32 or bf16: the requested one, or for `auto` bf16 if the GPU supports it.

    Raises EnvironmentNotReady when bf16 is requested and the GPU does not support it.
    """
    if device.type != "cuda":
        return "fp32" if name == "auto" else name
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not has_bf16:
        raise EnvironmentNotReady(
            f"{_device_name(device)} does not compute in bf16", hint="set train.precision to fp32"
        )
    return ("bf16" if has_bf16 else "fp32") if name == "auto" else name


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


class _Loop:
    """The state of a training run between two steps."""

    def __init__(
        self,
        model: nn.Module,
        stream: ByteStream,
        spec: AttemptSpec,
        device: torch.device,
        precision: str,
        checkpoints: Checkpoints | None,
    ) -> None:
        training = spec.training
        self.micro_batch = min(training.micro_batch or training.batch, training.batch)
        self.losses: deque[float] = deque(maxlen=LOSS_WINDOW_STEPS)
        self.steps = 0
        self.tokens = 0
        self.clock = TrainingClock()
        self._model = model.train()
        self._parameters = list(model.parameters())
        self._stream = stream
        self._training = training
        self._budget = training.budget
        self._device = device
        self._precision = precision
        self._optimizer = _AdamWScheduleFree(
            self._parameters,
            lr=training.lr,
            betas=spec.betas,
            eps=EPS,
            weight_decay=training.weight_decay,
        )
        self._checkpoints = checkpoints
        self._trained = Trained(
            model=self._model,
            optimizer=self._optimizer,
            device=device,
            fingerprint=spec_fingerprint(spec, precision),
        )

    @property
    def mean_loss(self) -> float:
        """The mean loss over the window, in nats."""
        return math.fsum(self.losses) / len(self.losses)

    def run(self, report: Report) -> Divergence | None:
        """Train until the budget is spent or a number is not finite."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._optimizer.train()
        self.clock = TrainingClock()
        report.phase("warmup")
        self._resume_from_checkpoint()
        if self.clock.is_warm:
            report.phase("training")
        while not self._is_spent():
            if self.steps == self._training.warmup_steps and not self.clock.is_warm:
                self.clock.warm_up_ends(self.tokens)
                report.phase("training")
            divergence = self._step(report)
            if divergence is not None:
                return divergence
            # Here the last step was finite, and there are more to come.
            if self._checkpoints is not None and self._checkpoints.is_due and not self._is_spent():
                with self.clock.stopped():
                    self._checkpoints.write(self._trained, self._position())
        return None

    def _position(self) -> Position:
        return Position(
            steps=self.steps,
            tokens=self.tokens,
            losses=tuple(self.losses),
            elapsed_s=self.clock.elapsed_s(),
            counted_s=self.clock.counted_s() if self.clock.is_warm else None,
            warm_tokens=self.clock.warm_tokens,
        )

    def _resume_from_checkpoint(self) -> None:
        content = None if self._checkpoints is None else self._checkpoints.find(self._trained)
        if content is None:
            return
        position = position_of(content)
        self.steps, self.tokens = position.steps, position.tokens
        if position.counted_s is not None and self._budget.kind == "minutes":
            # The first steps compile kernels, which must not use up the budget a second time.  They
            # train nothing: the restored state replaces everything afterwards.
            for _ in range(self._training.warmup_steps):
                self._forward_and_backward()
        restore(content, self._trained)
        self.losses.extend(position.losses)
        self.clock = TrainingClock(
            elapsed_s=position.elapsed_s,
            counted_s=position.counted_s,
            warm_tokens=position.warm_tokens,
        )

    def _is_spent(self) -> bool:
        budget = self._budget
        if budget.kind == "minutes":
            return self.clock.counted_s() >= budget.amount * 60
        return (self.steps if budget.kind == "steps" else self.tokens) >= budget.amount

    def _step(self, report: Report) -> Divergence | None:
        loss, grad_norm = self._forward_and_backward()
        record = StepRecord(
            step=self.steps + 1,
            loss=loss,
            grad_norm=grad_norm,
            tokens=self.tokens + self._training.tokens_per_step,
            elapsed_s=self.clock.elapsed_s(),
        )
        report.step(record)
        for quantity, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                return Divergence(
                    step=record.step,
                    quantity=quantity,
                    value=str(value),
                    last_finite_loss=self.losses[-1] if self.losses else None,
                )
        self._optimizer.step()
        self.losses.append(loss)
        self.steps, self.tokens = record.step, record.tokens
        return None

    def _forward_and_backward(self) -> tuple[float, float]:
        """Compute one step's gradients, clip them, and return loss and norm before clipping."""
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        batch = self._batch()
        for start in range(0, len(batch), self.micro_batch):
            rows = batch[start : start + self.micro_batch]
            with self._autocast():
                loss: Tensor = self._model.loss(rows)  # type: ignore[operator]
            share = len(rows) / len(batch)
            objective = loss.float() + self._model.auxiliary_loss()  # type: ignore[operator]
            (objective * share).backward()
            total += loss.detach() * share
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        if self._training.grad_clip:
            clip_grads_with_norm_(self._parameters, self._training.grad_clip, norm)
        # The only synchronisation of a step: both numbers are copied to the host together.
        values = torch.stack([total, norm.to(total)]).tolist()
        return values[0], values[1]

    def _batch(self) -> Tensor:
        training = self._training
        rows = self._stream.rows(training.seed, self.steps + 1, training.batch, training.seq_len)
        return torch.from_numpy(rows).to(self._device).long()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision == "fp32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)


class _AdamWScheduleFree(schedulefree.AdamWScheduleFree):  # type: ignore[misc]
    """The same without torch's compiler.

    torch would import the compiler, more than a second of each job, only to disable it here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


@contextmanager
def _repeatable(is_wanted: bool) -> Iterator[None]:
    """Make torch refuse operations whose result depends on scheduling."""
    # torch.use_deterministic_algorithms would import torch's compiler.
    before = torch.get_deterministic_debug_mode()
    if is_wanted:
        torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: allocated on the GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage would include the peak of the process that started this one.
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise EnvironmentNotReady("/proc/self/status names no peak of memory")
