"""Memory that runs out in a step: smaller micro-batches, the same tokens, and recomputation."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from elmanctl.jobs import step
from elmanctl.jobs.data import ByteStream
from elmanctl.jobs.device import device_name, held_by_others_bytes
from elmanctl.jobs.evaluation import evaluate_attempt
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.micro_batch import MicroBatch, shortage_text
from elmanctl.jobs.optimizer import make_optimizer
from elmanctl.jobs.outcome import TrainOutcome
from elmanctl.jobs.step import Stepper
from elmanctl.jobs.train import train
from elmanctl.ledger.records import VerdictKind
from elmanctl.models.lm import LanguageModel
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.protocol import BETAS
from elmanctl.run.spec import AttemptSpec, DataSpec
from elmanctl.run.training import Training
from elmanctl.verdicts.causes import find_cause
from tests.jobs.attempts import CHECKOUT, Write, losses, read
from tests.jobs.forked_ranks import ForkedRanks
from tests.jobs.test_train import Recorder

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# A text of torch on a GPU; of which process the memory is, its last sentences say.
GPU_OOM = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 79.15 GiB "
    "of which 812.00 MiB is free. "
)
OURS = "Including non-PyTorch memory, this process has 78.35 GiB memory in use."
NEIGHBOUR = "Process 41120 has 60.02 GiB memory in use. " + OURS.replace("78.35", "18.33")

MODEL = {"dim": 64, "depth": 2, "n_heads": 4, "head_dim": 16}
DEEP = {"depth": 8}

# Train once, so that everything is loaded, then again with so many MB of address space to spare.
LIMITED = """
import resource, sys, torch
from elmanctl.jobs import training_loop
from elmanctl.jobs.evaluation import evaluate_attempt
first, folder, spare_mb, where = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
evaluate_attempt(first)
torch.set_num_threads(1)
def limit(spare_mb):
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + spare_mb * 2**20, resource.RLIM_INFINITY))
if where == "training":
    limit(spare_mb)
else:
    validate = training_loop.TrainingLoop._validate
    def limited(loop, report):
        limit(spare_mb)
        try:
            return validate(loop, report)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    training_loop.TrainingLoop._validate = limited
evaluate_attempt(folder)
"""


def limited(
    first: AttemptPaths, paths: AttemptPaths, spare_mb: int, where: str = "training"
) -> dict[str, Any]:
    """Run an attempt in a process whose allocator has so much to spare, and read its result."""
    arguments = [str(first.folder), str(paths.folder), str(spare_mb), where]
    worker = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        env={
            **os.environ,
            **{"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            # Large tensors come and go with their mappings, as on a GPU whose cache is emptied.
            "MALLOC_MMAP_THRESHOLD_": "65536",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert paths.result.exists(), worker.stderr
    return read(paths.result)


@pytest.fixture
def attempt(write: Write, documents: DataSpec) -> Callable[..., AttemptPaths]:
    """Write an attempt of a transformer whose activations are most of its memory."""

    def make(name: str, **changes: Any) -> AttemptPaths:
        values: dict[str, Any] = {"level": "transformer", "config": MODEL, "data": documents}
        values |= {"batch": 16, "seq_len": 128, "steps": 4, "threads": 1, "checkpoint_min": 0.0}
        return write(1, evaluation=name, **values | changes)

    return make


Attempt = Callable[..., AttemptPaths]


def trained(paths: AttemptPaths) -> dict[str, Any]:
    return evaluate_attempt(str(paths.folder))


def test_memory_that_runs_out_halves_the_micro_batch_and_changes_nothing_else(
    attempt: Attempt,
) -> None:
    whole, short = attempt("g000-e00"), attempt("g000-e01")
    found = limited(whole, short, 20)
    assert found["verdict"]["kind"] == "completed"
    undisturbed = read(whole.result)
    assert "halvings" not in undisturbed and undisturbed["micro_batch"] == 16
    first = found["halvings"][0]
    assert (first["step"], first["from"], first["to"]) == (1, 16, 8)
    assert "DefaultCPUAllocator: can't allocate memory" in first["text"]
    assert found["micro_batch"] == found["halvings"][-1]["to"] < 16
    for same in ("tokens_per_step", "tokens", "steps", "fingerprint"):
        assert found[same] == undisturbed[same]
    assert losses(short) == pytest.approx(losses(whole), rel=1e-4)
    # Those of a training that began with this micro-batch, bit for bit.
    again = attempt("g000-e02", micro_batch=found["micro_batch"])
    assert trained(again)["loss"] == found["loss"]
    assert losses(short) == losses(again)


def test_activations_are_recomputed_where_not_even_one_sequence_fits(attempt: Attempt) -> None:
    changes: dict[str, Any] = {"batch": 2, "seq_len": 512, "steps": 3, "config": MODEL | DEEP}
    # Recomputation loads more of torch, which is not what is limited here.
    on = {"activation_checkpointing": "on"}
    first, short = attempt("g000-e00", **changes, **on), attempt("g000-e01", **changes)
    found = limited(first, short, 20)
    assert found["verdict"]["kind"] == "completed"
    assert found["activation_checkpointing"] == "by need" and found["micro_batch"] == 1
    assert read(first.result)["activation_checkpointing"] == "on"
    again = attempt("g000-e02", **changes, micro_batch=1)
    assert "activation_checkpointing" not in trained(again)
    assert losses(short) == losses(again)
    refused = attempt("g000-e03", **changes, activation_checkpointing="off")
    kept = limited(attempt("g000-e04", **changes, **on), refused, 20)
    assert kept["verdict"]["kind"] == "oom"
    assert kept["micro_batch"] == 1 and [each["to"] for each in kept["halvings"]] == [1]


def test_validation_takes_fewer_windows_at_once_where_memory_runs_out(attempt: Attempt) -> None:
    changes = {"batch": 16, "seq_len": 512, "holdout": 0.1, "val_windows": 16, "objective": "val"}
    whole, short = attempt("g000-e00", **changes), attempt("g000-e01", **changes)
    found = limited(whole, short, 20, "validation")
    assert found["verdict"]["kind"] == "completed"
    assert {each["in"] for each in found["halvings"]} == {"validation"}
    undisturbed = read(whole.result)
    assert found["micro_batch"] == undisturbed["micro_batch"] == 16
    assert found["val_loss"] == pytest.approx(undisturbed["val_loss"], rel=1e-6)
    assert losses(short) == losses(whole)


class Scarce(nn.Module):
    """A bigram with noise whose loss runs out of memory above so many rows, step by step."""

    backend = "torch"
    passes: Tensor

    def __init__(self, limits: Iterable[int], text: str = GPU_OOM + OURS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(256, 256)
        self.register_buffer("passes", torch.zeros(()))
        self.limits = iter(limits)
        self.limit = 10**9
        self.text = text
        self.seen: list[int] = []
        self.on_call: Callable[[bool], None] = lambda fits: None

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy; tokens [B, T+1]."""
        self.seen.append(len(tokens))
        self.limit = next(self.limits, self.limit)
        self.on_call(len(tokens) <= self.limit)
        if len(tokens) > self.limit:
            raise torch.OutOfMemoryError(self.text)
        self.passes = self.passes + 1
        logits = F.dropout(self.table(tokens[:, :-1]) / self.passes, 0.1)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def auxiliary_loss(self) -> float:
        """Nothing beside the loss."""
        return 0.0


@pytest.fixture
def run(
    corpus_file: Path, make_spec: Callable[..., AttemptSpec]
) -> Callable[..., tuple[TrainOutcome, list[StepRecord]]]:
    """Train a scarce model under a spec with changes."""

    def run(model: Scarce, **changes: Any) -> tuple[TrainOutcome, list[StepRecord]]:
        recorder = Recorder()
        spec = make_spec(**{"parameters_expected": 256 * 256, "batch": 8, "steps": 5} | changes)
        return train(model, ByteStream(corpus_file), spec, recorder), recorder.steps

    return run


Run = Callable[..., tuple[TrainOutcome, list[StepRecord]]]


def test_noise_is_that_of_a_training_that_began_with_the_smaller_micro_batch(run: Run) -> None:
    # The second part of the first step fails, when the first has drawn its noise.
    outcome, steps = run(Scarce([8, 2]), micro_batch=4)
    again, same = run(Scarce([]), micro_batch=2)
    assert outcome.micro_batch == again.micro_batch == 2
    assert [record.loss for record in steps] == [record.loss for record in same]
    assert [record.grad_norm for record in steps] == [record.grad_norm for record in same]


def test_step_that_runs_out_of_memory_later_is_made_again_alone(run: Run) -> None:
    model = Scarce([8, 8, 8, 3])
    outcome, steps = run(model)
    assert model.seen == [8, 8, 8, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert [record.step for record in steps] == [1, 2, 3, 4, 5]
    assert outcome.tokens == 5 * outcome.tokens_per_step


def test_memory_of_another_process_is_not_ours_to_save(run: Run) -> None:
    model = Scarce([1], GPU_OOM + NEIGHBOUR)
    with pytest.raises(torch.OutOfMemoryError, match="Process 41120"):
        run(model)
    assert model.seen == [8]


@pytest.mark.parametrize(("whose", "cause"), [(NEIGHBOUR, "neighbour"), (OURS, "gpu")])
def test_failed_attempt_says_whose_memory_it_was_and_how_far_it_came(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch, whose: str, cause: str
) -> None:
    def fail(model: LanguageModel, tokens: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(GPU_OOM + whose)

    monkeypatch.setattr(LanguageModel, "loss", fail)
    paths = attempt("g000-e00")
    with pytest.raises(torch.OutOfMemoryError):
        trained(paths)
    found = read(paths.result)
    assert found["verdict"]["kind"] == "oom" and found["device_name"] == device_name(CPU)
    (quote,) = found["verdict"]["evidence"]
    assert find_cause(VerdictKind.OOM, [quote["text"]]) == cause
    steps = [(each["from"], each["to"]) for each in found.get("halvings", [])]
    if cause == "neighbour":
        assert (found["micro_batch"], steps) == (16, [])
    else:
        assert (found["micro_batch"], steps) == (1, [(16, 8), (8, 4), (4, 2), (2, 1), (1, 1)])


def test_lack_of_memory_that_is_not_ours_or_not_of_the_device_has_no_remedy() -> None:
    gpu, host = torch.OutOfMemoryError(GPU_OOM + OURS), MemoryError("cannot allocate")
    assert shortage_text(gpu, CUDA) and shortage_text(gpu, CPU) and shortage_text(host, CPU)
    assert shortage_text(host, CUDA) is None
    assert shortage_text(torch.OutOfMemoryError(GPU_OOM + NEIGHBOUR), CUDA) is None
    assert shortage_text(ValueError("shapes"), CPU) is None


def test_error_stands_where_one_sequence_does_not_fit(run: Run) -> None:
    model = Scarce([0])
    with pytest.raises(torch.OutOfMemoryError):
        run(model, activation_checkpointing="off")
    assert model.seen == [8, 4, 2, 1]
    model = Scarce([0])
    with pytest.raises(torch.OutOfMemoryError):
        run(model, activation_checkpointing="auto")
    # Once more with recomputation.
    assert model.seen == [8, 4, 2, 1, 1]


def test_time_of_a_failed_attempt_at_a_step_is_not_counted(
    run: Run, training_time: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "time", training_time)
    model = Scarce([8, 3])

    def wait(fits: bool) -> None:
        training_time.now_s += 1.0 if fits else 100.0

    model.on_call = wait
    outcome, _ = run(model)
    assert model.seen == [8, 8, 4] + 4 * [2, 2, 2, 2]
    assert outcome.elapsed_s == 17.0


@settings(max_examples=60)
@given(
    st.integers(1, 40).flatmap(
        lambda batch: st.tuples(st.just(batch), st.integers(1, batch), st.lists(st.integers(1, 40)))
    )
)
def test_shares_of_a_step_sum_to_one_for_any_micro_batches(
    drawn: tuple[int, int, list[int]],
) -> None:
    batch, rows, limits = drawn
    model = Constant(limits)
    training = Training(batch=batch, micro_batch=rows, steps=1)
    fit = MicroBatch(training)
    optimizer = make_optimizer(model, training, BETAS)
    optimizer.train()
    stepper = Stepper(
        model, optimizer, device=CPU, precision="fp32", micro_batch=fit, grad_clip=0.0
    )
    loss, norm, _ = stepper.gradients(np.zeros((batch, 3), np.uint8), 1)
    assert loss == pytest.approx(1.0, abs=1e-6) and norm == pytest.approx(1.0, abs=1e-6)
    # Every row was taken once in the attempt that succeeded.
    counted = list(accumulate(reversed(model.seen)))
    assert batch in counted
    assert fit.rows == rows or batch % fit.rows == 0


class Constant(Scarce):
    """A loss of 1 for each row, and so is its gradient."""

    def __init__(self, limits: Iterable[int]) -> None:
        super().__init__(limits)
        self.table = nn.Embedding(1, 1)
        nn.init.ones_(self.table.weight)

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the weight, which is 1; tokens [B, T+1]."""
        self.seen.append(len(tokens))
        if len(tokens) > next(self.limits, 10**9):
            raise torch.OutOfMemoryError(self.text)
        return self.table.weight.sum()


# The memory of the second rank runs out above two sequences, in a forward pass or a backward pass.
SHORT_RANK = """
import torch
from elmanctl.models.lm import LanguageModel
loss = LanguageModel.loss
def fail(gradient):
    raise torch.OutOfMemoryError("{text}")
def scarce(model, tokens):
    found = loss(model, tokens)
    if rank == 1 and len(tokens) > 2:
        if not {backward}:
            fail(None)
        found.register_hook(fail)
    return found
LanguageModel.loss = scarce
"""


@pytest.mark.parametrize(
    ("asked", "backward"), [({"parallel": "ddp"}, True), ({"exchange_every": 3}, False)]
)
def test_ranks_agree_on_a_micro_batch_that_fits_on_all(
    write: Write,
    documents: DataSpec,
    forked_ranks: ForkedRanks,
    asked: dict[str, Any],
    backward: bool,
) -> None:
    changes = {"data": documents, "batch": 8, "gpus": 2, "checkpoint_min": 0.0, **asked}
    changes |= {"level": "transformer", "config": MODEL | {"dropout": 0.1}}
    small = write(1, evaluation="g000-e00", **changes, micro_batch=2)
    paths = write(1, evaluation="g000-e01", **changes)
    scarce = SHORT_RANK.format(backward=backward, text=GPU_OOM + OURS)
    _, found = forked_ranks.together(small, paths, before=scarce)
    assert found["micro_batch"] == 2
    assert found["halvings"] == [
        {"step": 1, "from": 4, "to": 2, "text": "memory ran out on another rank"}
    ]
    assert losses(paths) == losses(small)


def test_micro_batch_of_this_device_is_taken_up(attempt: Attempt) -> None:
    name = device_name(CPU)
    known = attempt("g000-e00", micro_batches={name: 2, "another GPU": 1})
    assert trained(known)["micro_batch"] == 2
    smaller = attempt("g000-e01", micro_batches={name: 4}, micro_batch=1)
    assert trained(smaller)["micro_batch"] == 1
    other = attempt("g000-e02", micro_batches={"another GPU": 1})
    assert trained(other)["micro_batch"] == 16


def test_memory_of_others_is_what_torch_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_by_others_bytes(CPU) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (50, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    assert held_by_others_bytes(CUDA) == 20
