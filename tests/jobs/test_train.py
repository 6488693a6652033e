import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.jobs.data import ByteStream
from elmanctl.jobs.device import choose_device, choose_precision
from elmanctl.jobs.failure import classify_exception
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.outcome import TrainOutcome
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.train import count_parameters, train
from elmanctl.ledger.records import VerdictKind
from elmanctl.run.spec import AttemptSpec

MakeSpec = Callable[..., AttemptSpec]

GPU_VARIABLES = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "CUDA_VISIBLE_DEVICES")


class Bigram(nn.Module):
    """The least model: the next byte from the last one."""

    backend = "torch"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(256, 8)
        self.head = nn.Linear(8, 256, bias=False)
        self.calls = 0

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy; tokens [B, T+1]."""
        self.calls += 1
        logits = self.head(self.table(tokens[:, :-1]))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def auxiliary_loss(self) -> float:
        """Nothing beside the loss."""
        return 0.0


PARAMETERS = 2 * 256 * 8


class Recorder:
    """Keeps what the loop reports."""

    def __init__(self) -> None:
        self.events: list[StepRecord | str] = []

    def phase(self, name: str) -> None:
        self.events.append(name)

    def step(self, record: StepRecord) -> None:
        self.events.append(record)

    def validation(self, step: int, loss: float) -> None:
        self.events.append(f"validation {step}")

    @property
    def steps(self) -> list[StepRecord]:
        return [event for event in self.events if isinstance(event, StepRecord)]


@pytest.fixture
def run(corpus_file: Path, make_spec: MakeSpec) -> Callable[..., tuple[TrainOutcome, Recorder]]:
    """Train a model under a spec with changes."""

    def run(model: nn.Module | None = None, **changes: object) -> tuple[TrainOutcome, Recorder]:
        recorder = Recorder()
        spec = make_spec(**({"parameters_expected": PARAMETERS} | changes))
        return train(model or Bigram(), ByteStream(corpus_file), spec, recorder), recorder

    return run


Run = Callable[..., tuple[TrainOutcome, Recorder]]


def test_training_lowers_the_loss_of_a_learnable_text(run: Run) -> None:
    outcome, recorder = run(steps=150, lr=3e-2)
    assert recorder.steps[0].loss == pytest.approx(math.log(256), abs=0.5)
    assert outcome.loss is not None
    assert outcome.loss < 2.0
    assert outcome.divergence is None


def test_the_loss_is_the_mean_of_the_last_hundred_steps(run: Run) -> None:
    outcome, recorder = run(steps=130)
    losses = [record.loss for record in recorder.steps]
    assert outcome.loss_window_steps == 100
    assert outcome.loss == pytest.approx(sum(losses[-100:]) / 100)
    assert outcome.last_loss == losses[-1]


def test_the_loss_of_a_short_run_is_the_mean_of_all_its_steps(run: Run) -> None:
    outcome, recorder = run(steps=7)
    assert outcome.loss_window_steps == 7
    assert outcome.loss == pytest.approx(sum(record.loss for record in recorder.steps) / 7)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 9])
def test_micro_batches_change_neither_tokens_nor_losses(run: Run, micro_batch: int) -> None:
    _, whole = run()
    model = Bigram()
    outcome, parts = run(model, micro_batch=micro_batch)
    assert outcome.micro_batch == min(micro_batch, 4)
    assert model.calls == 4 * math.ceil(4 / min(micro_batch, 4))
    assert [record.tokens for record in parts.steps] == [64, 128, 192, 256]
    for one, other in zip(whole.steps, parts.steps, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)


def test_a_token_budget_ends_with_the_step_that_reaches_it(run: Run) -> None:
    for tokens, steps in ((64, 1), (65, 2), (128, 2)):
        outcome, _ = run(tokens=tokens)
        assert (outcome.steps, outcome.tokens) == (steps, 64 * steps)


def test_the_clock_of_a_time_budget_starts_after_the_warm_up(run: Run, training_time: Any) -> None:
    class SlowStart(Bigram):
        def loss(self, tokens: Tensor) -> Tensor:
            training_time.now_s += 15.0 if self.calls < 2 else 1.0
            return super().loss(tokens)

    outcome, recorder = run(SlowStart(), minutes=20 / 60, warmup_steps=2)
    assert [event for event in recorder.events if isinstance(event, str)] == ["warmup", "training"]
    assert recorder.events.index("training") == 3
    # The two slow steps are steps like any other, but no part of the budget and of the speed.
    assert (outcome.steps, outcome.elapsed_s, outcome.tokens_per_s) == (22, 50.0, 64.0)
    assert outcome.tokens == outcome.steps * 64


def test_a_run_that_ends_within_its_warm_up_has_no_speed(run: Run) -> None:
    outcome, recorder = run(warmup_steps=50)
    assert outcome.tokens_per_s is None
    assert "training" not in recorder.events


class Poisoned(Bigram):
    """Its loss is not finite from the third step on."""

    value = float("nan")

    def loss(self, tokens: Tensor) -> Tensor:
        loss = super().loss(tokens)
        return loss * self.value if self.calls == 3 else loss


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_not_finite_stops_before_the_update(
    run: Run, value: float, text: str
) -> None:
    model = Poisoned()
    model.value = value
    outcome, recorder = run(model)
    assert outcome.divergence is not None
    assert (outcome.divergence.step, outcome.divergence.quantity) == (3, "loss")
    assert outcome.divergence.value == text
    assert outcome.divergence.last_finite_loss == recorder.steps[1].loss == outcome.last_loss
    assert (outcome.steps, outcome.tokens, outcome.loss) == (2, 128, None)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert len(recorder.steps) == 3


def test_one_bad_micro_batch_is_enough(run: Run) -> None:
    outcome, _ = run(Poisoned(), micro_batch=1)
    assert outcome.divergence is not None
    assert (outcome.divergence.step, outcome.divergence.last_finite_loss) == (1, None)
    assert outcome.verdict("m.jsonl").evidence[0].text == (
        "the loss of step 1 is nan; no step was finite"
    )


def test_a_gradient_that_is_not_finite_is_divergence_though_the_loss_is_fine(run: Run) -> None:
    class Kink(Bigram):
        def loss(self, tokens: Tensor) -> Tensor:
            # The square root has value 0 and no finite slope at 0.
            return super().loss(tokens) + (self.head.weight.sum() * 0).sqrt()

    model = Kink()
    outcome, recorder = run(model)
    assert outcome.divergence is not None
    assert (outcome.divergence.step, outcome.divergence.quantity) == (1, "gradient norm")
    assert math.isfinite(recorder.steps[0].loss)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_another_number_of_parameters_than_expected_is_invalid(run: Run) -> None:
    with pytest.raises(InvalidConfiguration, match="4096 parameters, 4097 were expected"):
        run(parameters_expected=PARAMETERS + 1)


def test_shared_parameters_are_counted_once() -> None:
    model = Bigram()
    model.head.weight = model.table.weight
    assert count_parameters(model) == PARAMETERS // 2


def test_the_gradient_is_clipped_and_its_norm_reported_unclipped(run: Run) -> None:
    _, free = run(grad_clip=0.0)
    _, wide = run(grad_clip=1e9)
    _, tight = run(grad_clip=1e-12)
    assert [r.loss for r in free.steps] == [r.loss for r in wide.steps]
    assert free.steps[0].grad_norm == tight.steps[0].grad_norm > 0.01
    # Gradients of 1e-12 are far below Adam's eps: such a model hardly moves.
    by_clipping = abs(tight.steps[-1].loss - free.steps[-1].loss)
    assert by_clipping > 1e-4


def test_equal_specs_give_equal_losses_whatever_was_drawn_before(run: Run) -> None:
    _, one = run()
    torch.rand(10)
    _, other = run()
    assert [r.loss for r in one.steps] == [r.loss for r in other.steps]
    _, third = run(seed=4)
    assert [r.loss for r in one.steps] != [r.loss for r in third.steps]


def test_elapsed_time_never_goes_back(run: Run) -> None:
    outcome, recorder = run()
    assert all(one.elapsed_s <= other.elapsed_s for one, other in pairwise(recorder.steps))
    assert recorder.steps[-1].elapsed_s <= outcome.elapsed_s


def test_the_outcome_says_what_it_ran_on(run: Run) -> None:
    outcome, _ = run()
    assert (outcome.device, outcome.precision, outcome.parameters) == ("cpu", "fp32", PARAMETERS)
    assert outcome.device_name
    assert 10**7 < outcome.peak_memory_bytes < 10**11


def test_determinism_is_asked_of_torch_during_the_training_only(run: Run) -> None:
    class Watching(Bigram):
        was_deterministic = False

        def loss(self, tokens: Tensor) -> Tensor:
            self.was_deterministic = torch.are_deterministic_algorithms_enabled()
            return super().loss(tokens)

    model = Watching()
    run(model)
    assert model.was_deterministic
    assert not torch.are_deterministic_algorithms_enabled()


def test_bf16_keeps_the_weights_in_fp32(run: Run) -> None:
    seen = set()

    class Watching(Bigram):
        def loss(self, tokens: Tensor) -> Tensor:
            seen.add(self.head(self.table(tokens)).dtype)
            return super().loss(tokens)

    model = Watching()
    outcome, _ = run(model, precision="bf16")
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert outcome.precision == "bf16"


def test_a_missing_gpu_means_the_environment_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for variable in GPU_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(EnvironmentNotReady, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("variable", GPU_VARIABLES)
def test_a_gpu_that_torch_does_not_see_is_not_left_idle(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for other in GPU_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(variable, "0,1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentNotReady, match=f"{variable}=0,1.* no CUDA device") as raised:
        choose_device("auto")
    assert raised.value.hint is not None and "train.device" in raised.value.hint
    assert classify_exception(raised.value)[0] is VerdictKind.ENVIRONMENT
    assert choose_device("cpu").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


@pytest.mark.parametrize(("seen", "rank", "number"), [(4, 2, 2), (4, 0, 0), (1, 3, 0)])
def test_each_rank_takes_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, seen: int, rank: int, number: int
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    device = choose_device("cuda", Ranks(rank, 8, rank).gpu)
    assert chosen == [device] == [torch.device("cuda", number)]
    assert choose_device("cuda", Ranks().gpu) == torch.device("cuda")


def test_a_rank_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EnvironmentNotReady, match="has 2 GPUs") as raised:
        choose_device("auto", Ranks(2, 4, 2).gpu)
    assert raised.value.hint is not None and "train.gpus" in raised.value.hint


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles"])
def test_a_job_without_a_gpu_trains_on_the_cpu(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for variable in GPU_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert choose_device("auto").type == "cpu"


def test_precision_follows_what_the_gpu_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old GPU")
    for has_bf16, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has
        )
        assert choose_precision("auto", gpu) == expected
        assert choose_precision("fp32", gpu) == "fp32"
    with pytest.raises(EnvironmentNotReady, match="Old GPU does not compute in bf16"):
        choose_precision("bf16", gpu)


def test_a_failing_report_ends_the_training(corpus_file: Path, make_spec: MakeSpec) -> None:
    class Failing(Recorder):
        def step(self, record: StepRecord) -> None:
            raise OSError("disk")

    spec = make_spec(parameters_expected=PARAMETERS)
    with pytest.raises(OSError, match="disk"):
        train(Bigram(), ByteStream(corpus_file), spec, Failing())
    assert not torch.are_deterministic_algorithms_enabled()
