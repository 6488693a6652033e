"""Several processes over gloo train one model as one process does."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elmanctl.jobs import tensor_file
from elmanctl.jobs.data import ByteStream
from elmanctl.run.spec import DataSpec
from tests.jobs.attempts import CHECKOUT, Write, interrupted, losses, metrics, run
from tests.jobs.forked_ranks import ForkedRanks


@pytest.fixture
def held(documents: DataSpec) -> dict[str, Any]:
    return {"data": documents, "objective": "val", "holdout": 0.1, "val_windows": 9, "val_every": 5}


def test_a_worker_of_one_gpu_does_not_import_what_splits_tensors() -> None:
    code = (
        "import sys, elmanctl.jobs.attempt_training as t; print('torch.distributed.tensor' in "
        "sys.modules, t.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False ")


@pytest.mark.parametrize(("count", "parallels"), [(2, ("ddp", "fsdp")), (4, ("fsdp",))])
def test_ranks_make_the_steps_of_one_process(
    write: Write,
    held: dict[str, Any],
    forked_ranks: ForkedRanks,
    count: int,
    parallels: tuple[str, ...],
) -> None:
    asked = {**held, "checkpoint_min": 0.0, "keep": ("model",)}
    alone = write(**asked, micro_batch=2)
    expected = run(alone)
    # Of four ranks some have no row of a small tensor.
    attempts = [
        write(evaluation=f"g000-e0{n}", **asked, gpus=count, parallel=parallel, micro_batch=1)
        for n, parallel in enumerate(parallels, start=1)
    ]
    for paths, found in zip(attempts, forked_ranks.together(*attempts, count=count), strict=True):
        assert (found["ranks"], found["steps"], found["tokens"]) == (count, 12, expected["tokens"])
        for one, other in zip(metrics(paths), metrics(alone), strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-5)
        assert found["val_loss_se"] == pytest.approx(expected["val_loss_se"], rel=1e-4)
        _, kept = tensor_file.read(paths.model)
        _, of_one = tensor_file.read(alone.model)
        for name, tensor in of_one.items():
            assert torch.allclose(kept[name], tensor, atol=1e-5)


def test_ranks_killed_at_a_step_go_on_as_if_never_stopped(
    write: Write, held: dict[str, Any], forked_ranks: ForkedRanks
) -> None:
    kinds: list[dict[str, Any]] = [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"exchange_every": 3}]
    firsts, seconds, straights = (
        [
            write(number, evaluation=f"g000-e{base + n}", **held, gpus=2, **kind, **more)
            for n, kind in enumerate(kinds)
        ]
        for number, base, more in ((1, 10, {}), (2, 10, {}), (1, 20, {"checkpoint_min": 0.0}))
    )
    forked_ranks.killed(*firsts, stop=9)
    results = forked_ranks.together(*seconds, *straights)
    for n, begun in enumerate((8, 8, 6)):
        found, undisturbed = results[n], results[len(kinds) + n]
        assert found["continued_from"] == {"attempt": 1, "step": begun}
        assert losses(seconds[n]) == losses(straights[n])[begun:]
        assert (found["loss"], found["val_loss_se"]) == (
            undisturbed["loss"],
            undisturbed["val_loss_se"],
        )
        assert not list(firsts[n].folder.parent.glob("*/checkpoint*"))


def test_ranks_killed_at_any_moment_leave_a_whole_state(
    write: Write, held: dict[str, Any], forked_ranks: ForkedRanks
) -> None:
    asked = {**held, "steps": 30, "gpus": 2, "parallel": "fsdp"}
    straight, paths = write(evaluation="g000-e01", **asked, checkpoint_min=0.0), write(**asked)
    # Checkpoints of every step take most of the time.
    forked_ranks.killed(paths, stop=12, delay_s=random.uniform(0.001, 0.1))
    undisturbed, found = forked_ranks.together(straight, paths)
    assert found["continued_from"]["step"] >= 11 and "not_continued" not in found
    assert found["loss"] == undisturbed["loss"]
    assert not list(paths.folder.glob("checkpoint*"))


def test_a_rank_that_cannot_write_costs_the_checkpoint_alone(
    write: Write, held: dict[str, Any], forked_ranks: ForkedRanks
) -> None:
    paths = write(**held, gpus=2, parallel="fsdp", keep=("checkpoint",))
    (found,) = forked_ranks.together(paths, largest=2000)
    assert (found["steps"], found["checkpoints_written"]) == (12, 0)
    assert not list(paths.folder.glob("checkpoint*"))


def test_a_state_goes_on_with_another_number_of_ranks(
    write: Write, held: dict[str, Any], forked_ranks: ForkedRanks
) -> None:
    asked = {**held, "parallel": "fsdp"}
    alone = write(evaluation="g000-e02", **asked, checkpoint_min=0.0)
    expected = run(alone)
    of_one, of_two = write(**asked), write(evaluation="g000-e01", **asked, gpus=2)
    interrupted(of_one, before_step=9)
    forked_ranks.killed(of_two, stop=9)
    assert len(list(of_one.folder.glob("checkpoint*"))) == 1
    assert len(list(of_two.folder.glob("checkpoint*"))) == 2
    to_two, to_one = write(2, **asked, gpus=2), write(2, evaluation="g000-e01", **asked)
    for paths, found in ((to_two, forked_ranks.together(to_two)[0]), (to_one, run(to_one))):
        assert found["continued_from"] == {"attempt": 1, "step": 8}
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert losses(paths)[-1] == pytest.approx(losses(alone)[-1], rel=1e-5)


def test_ranks_exchange_as_often_as_asked_and_end_together(
    write: Write, held: dict[str, Any], forked_ranks: ForkedRanks
) -> None:
    asked = {**held, "gpus": 2, "checkpoint_min": 0.0}
    every_step = write(evaluation="g000-e01", **asked)
    once = write(evaluation="g000-e02", **asked, exchange_every=12)
    timed = write(evaluation="g000-e03", **asked, minutes=0.02)
    results = forked_ranks.together(every_step, once, timed)
    assert losses(every_step)[0] == losses(once)[0]
    assert results[0]["loss"] != results[1]["loss"]
    other = (timed.folder / "metrics-of-1.jsonl").read_text().splitlines()
    assert len(other) == results[2]["steps"] == len(metrics(timed))


@pytest.mark.parametrize("sampler", ["windows", "documents", "stream"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_data_are_the_same_for_any_number_of_ranks(
    documents: DataSpec, sampler: str, ranks: int
) -> None:
    whole = ByteStream(Path(documents.path), sampler=sampler).rows(3, 7, 8, 16)
    rows = np.empty_like(whole)
    for rank in range(ranks):
        own = ByteStream(Path(documents.path), sampler=sampler)
        rows[rank::ranks] = own.rows(3, 7, 8, 16, rank=rank, ranks=ranks)
    assert (rows == whole).all()
