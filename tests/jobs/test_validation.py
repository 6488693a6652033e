import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from elmanctl.jobs.data import ByteStream, HeldOutWindows, held_out_windows
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.micro_batch import MicroBatch
from elmanctl.jobs.optimizer import make_optimizer, parameter_groups
from elmanctl.jobs.train import train
from elmanctl.jobs.validation import Validator, averaged_weights, is_due, mean_and_error
from elmanctl.models.registry import FAMILIES, build_model, decode_config
from elmanctl.run.corpus import describe
from elmanctl.run.protocol import BETAS
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.split import find_split
from elmanctl.run.training import Training
from tests.jobs.test_train import Recorder
from tests.models.samples import small_config

TINY = {"dim": 16, "depth": 1, "n_heads": 2, "n_state": 8}


def model() -> nn.Module:
    return build_model(decode_config("e88", TINY), seed=1, backend="torch")


@pytest.fixture
def windows(corpus: Path) -> HeldOutWindows:
    return held_out_windows(corpus, find_split(describe(corpus), 0.1), count=30, seq_len=16)


def trained(steps: int) -> tuple[nn.Module, Any]:
    net = model()
    optimizer: Any = make_optimizer(net, Training(lr=1e-2, steps=1), BETAS)
    optimizer.train()
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        net.loss(torch.randint(0, 256, (4, 17))).backward()  # type: ignore[operator]
        optimizer.step()
    return net, optimizer


def test_the_loss_is_that_of_the_averaged_weights_over_the_scored_bytes(
    windows: HeldOutWindows,
) -> None:
    net, optimizer = trained(5)
    found = validator(net, optimizer, windows).validate()
    optimizer.eval()
    total = 0.0
    for row, scored in zip(windows.rows, windows.scored, strict=True):
        tokens = torch.from_numpy(row).long()[None, : scored + 1]
        logits, _ = net(tokens[:, :-1])
        total += F.cross_entropy(logits[0], tokens[0, 1:], reduction="sum").item()
    assert found[0] == pytest.approx(total / windows.scored_bytes, rel=1e-6)


def validator(net: nn.Module, optimizer: Any, windows: HeldOutWindows) -> Validator:
    return Validator(
        net,
        optimizer,
        windows,
        device=torch.device("cpu"),
        micro_batch=MicroBatch(Training(batch=7)),
        autocast=nullcontext,
    )


def test_a_validation_leaves_weights_and_optimizer_as_they_were(windows: HeldOutWindows) -> None:
    net, optimizer = trained(5)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = {
        (index, key): value.clone() if isinstance(value, torch.Tensor) else value
        for index, each in enumerate(optimizer.state.values())
        for key, value in each.items()
    }
    generator = torch.get_rng_state()
    validator(net, optimizer, windows).validate()
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for index, each in enumerate(optimizer.state.values()):
        for key, value in each.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[index, key]))
    assert torch.equal(generator, torch.get_rng_state())
    assert optimizer.param_groups[0]["train_mode"]


def test_averaged_weights_are_put_back_after_an_error() -> None:
    net, optimizer = trained(3)
    before = net.embedding.weight.detach().clone()  # type: ignore[operator, union-attr]
    with pytest.raises(KeyError), averaged_weights(net, optimizer):
        assert not torch.equal(net.embedding.weight, before)  # type: ignore[arg-type, union-attr]
        raise KeyError
    assert torch.equal(net.embedding.weight, before)  # type: ignore[arg-type, union-attr]


def test_the_standard_error_is_over_documents() -> None:
    # Documents of one loss each: 1, 2 and 3 nats a byte, in windows of 10 bytes.
    windows = HeldOutWindows(
        rows=np.zeros((6, 11), dtype=np.uint8),
        scored=np.full(6, 10),
        document=np.array([0, 0, 1, 1, 2, 2]),
    )
    mean, error = mean_and_error([10.0, 10.0, 20.0, 20.0, 30.0, 30.0], windows)
    assert mean == 2.0
    # Of three equal means with standard deviation 1.
    assert error == pytest.approx(1 / math.sqrt(3))


def test_one_document_has_no_standard_error() -> None:
    windows = HeldOutWindows(
        rows=np.zeros((2, 11), dtype=np.uint8), scored=np.full(2, 10), document=np.array([4, 4])
    )
    assert mean_and_error([10.0, 30.0], windows) == (2.0, None)


def test_it_is_due_at_every_doubling_or_every_so_many_steps() -> None:
    assert [step for step in range(1, 600) if is_due(step, 0)] == [64, 128, 256, 512]
    assert [step for step in range(1, 100) if is_due(step, 30)] == [30, 60, 90]


@pytest.mark.parametrize("objective", ["val", "last100", "mean"])
def test_training_is_the_same_with_and_without_validation(
    corpus: Path, make_spec: Callable[..., AttemptSpec], objective: str
) -> None:
    split = find_split(describe(corpus), 0.1)
    windows = held_out_windows(corpus, split, count=20, seq_len=16)
    parameters = sum(p.numel() for p in model().parameters())
    found = []
    for held_out, every in ((windows, 3), (windows, 0), (None, 0)):
        named = objective if held_out is not None else "last100"
        spec = make_spec(
            parameters_expected=parameters,
            steps=12,
            objective=named,
            holdout=0.1,
            val_every=every,
            config=TINY,
        )
        recorder = Recorder()
        outcome = train(model(), ByteStream(corpus, split), spec, recorder, None, held_out)
        found.append([record.loss for record in recorder.steps])
        if held_out is not None:
            assert (
                outcome.loss
                == {
                    "val": outcome.val_loss,
                    "last100": outcome.last100_loss,
                    "mean": outcome.mean_loss,
                }[objective]
            )
            assert [each.step for each in outcome.validations] == ([3, 6, 9, 12] if every else [12])
            assert outcome.val_loss == outcome.validations[-1].val_loss
            assert outcome.bits_per_byte == pytest.approx((outcome.val_loss or 0) / math.log(2))
            assert outcome.mean_loss == pytest.approx(sum(found[-1]) / 12)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("level", FAMILIES)
def test_no_family_is_trained_otherwise_for_being_validated(
    corpus: Path, make_spec: Callable[..., AttemptSpec], level: str
) -> None:
    split = find_split(describe(corpus), 0.1)
    windows = held_out_windows(corpus, split, count=11, seq_len=16)
    config = small_config(level)
    found, steps = [], []
    # As seldom as can be, then between all steps, the rows of a step and of a validation in parts.
    for every, micro_batch in ((9, 0), (1, 0), (1, 2)):
        net = build_model(config, seed=1, backend="torch")
        spec = make_spec(
            level=level,
            config=config.encode(),
            parameters_expected=sum(p.numel() for p in net.parameters()),
            **{"objective": "val", "holdout": 0.1, "val_every": every, "micro_batch": micro_batch},
        )
        recorder = Recorder()
        found.append(train(net, ByteStream(corpus, split), spec, recorder, None, windows))
        steps.append([record.loss for record in recorder.steps])
    seldom, often, parted = found
    assert steps[0] == steps[1]
    # The load-balancing loss of mom-e88 is that of each micro-batch.
    rel = 1e-2 if level == "mom-e88" else 1e-3
    assert steps[2] == pytest.approx(steps[0], rel=rel)
    assert (seldom.val_loss, seldom.val_loss_se) == (often.val_loss, often.val_loss_se)
    assert parted.val_loss == pytest.approx(seldom.val_loss, rel=rel)
    assert parted.val_loss_se == pytest.approx(seldom.val_loss_se, rel=10 * rel)
    assert len(often.validations) == 4


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_the_norm_of_an_update_is_that_of_the_change_of_the_weights(
    corpus: Path, make_spec: Callable[..., AttemptSpec], micro_batch: int
) -> None:
    split = find_split(describe(corpus), 0.1)
    windows = held_out_windows(corpus, split, count=20, seq_len=16)
    net = model()
    weights = []

    class Watching(Recorder):
        def step(self, record: StepRecord) -> None:
            super().step(record)
            weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))

    spec = make_spec(
        parameters_expected=sum(p.numel() for p in net.parameters()),
        config=TINY,
        steps=6,
        **{"objective": "val", "holdout": 0.1, "val_every": 2, "micro_batch": micro_batch},
    )
    recorder = Watching()
    train(net, ByteStream(corpus, split), spec, recorder, None, windows)
    norms = [record.update_norm for record in recorder.steps]
    assert norms[0] is None
    assert norms[1:] == [
        pytest.approx(float((after - before).norm()), rel=1e-4)
        for before, after in pairwise(weights)
    ]


@pytest.mark.parametrize(
    ("level", "config", "spared"),
    [
        ("mamba2", {"dim": 32, "depth": 1}, {"log_rate", "step_bias", "bias", "skip", "weight"}),
        ("e75", {**TINY, "dim": 32}, {"decay_bias", "weight"}),
        ("e88", {**TINY, "value_residual": True}, {"skip", "weight"}),
    ],
)
def test_decay_leaves_norms_biases_and_rates_alone(
    level: str, config: dict[str, object], spared: set[str]
) -> None:
    net = build_model(decode_config(level, config), seed=1, backend="torch")
    decayed, free = parameter_groups(net, "matrices")
    names = {id(p): name for name, p in net.named_parameters()}
    assert free["weight_decay"] == 0.0
    assert "weight_decay" not in decayed
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert {names[id(p)].rsplit(".", 1)[-1] for p in free["params"]} >= spared
    assert len(decayed["params"]) + len(free["params"]) == len(list(net.parameters()))
    (everything,) = parameter_groups(net, "all")
    assert [id(p) for p in everything["params"]] == [id(p) for p in net.parameters()]
