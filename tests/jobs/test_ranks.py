"""Several processes over gloo train one model as one process does."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elmanctl.jobs import tensor_file
from elmanctl.jobs.data import ByteStream
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import DataSpec
from tests.jobs.attempts import CHECKOUT, Write, metrics, read, run

# One rank of an attempt, as a job starts it, with its result as an output.
RANK = """
import json, sys
from pathlib import Path
import torch.distributed as dist
from elmanctl.jobs.attempt_training import AttemptTraining
from elmanctl.jobs.metrics import MetricsLog
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.signals import Warned
from elmanctl.jobs import tensor_file
from elmanctl.jobs.data import ByteStream
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

class Report:
    def __init__(self, log): self.log = log
    def phase(self, name): pass
    def step(self, record):
        self.log.append(record)
        if record.step == STOP:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
    def validation(self, step, loss): pass

folder, rank, count, port, STOP = sys.argv[1], *map(int, sys.argv[2:])
paths = AttemptPaths(Path(folder))
spec = AttemptSpec.read(paths.spec)
store = dist.TCPStore("127.0.0.1", port, count, rank == 0)
ranks = Ranks.join(store, rank=rank, count=count, local_rank=rank, device="cpu")
log = paths.metrics if rank == 0 else paths.folder / f"metrics-of-{rank}.jsonl"
with MetricsLog(log) as metrics:
    training = AttemptTraining(
        paths, spec, is_restart=True, warned=Warned(), note=lambda *_: None, ranks=ranks
    )
    verdict, entries = training.run(Report(metrics))
if rank == 0:
    training.discard()
    (paths.folder / "out.json").write_text(json.dumps(entries | training.record()))
ranks.leave()
"""


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def together(
    paths: AttemptPaths, count: int, *, stop: int = 0, program: str = RANK
) -> dict[str, Any] | None:
    """Run an attempt in `count` processes, which kill themselves in step `stop`."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                program,
                str(paths.folder),
                *map(str, (rank, count, port, stop)),
            ],
            env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    errors = [process.communicate()[1] for process in processes]
    if stop:
        return None
    assert [process.returncode for process in processes] == [0] * count, errors
    return read(paths.folder / "out.json")


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


@pytest.mark.parametrize(("parallel", "count"), [("ddp", 2), ("fsdp", 2), ("fsdp", 4)])
def test_ranks_make_the_steps_of_one_process(
    write: Write, held: dict[str, Any], parallel: str, count: int
) -> None:
    alone = write(**held, checkpoint_min=0.0, keep=("model",))
    expected = run(alone)
    paths = write(
        evaluation="g000-e01",
        **held,
        gpus=count,
        parallel=parallel,
        checkpoint_min=0.0,
        keep=("model",),
    )
    found = together(paths, count)
    assert found is not None
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


@pytest.mark.parametrize(
    "asked",
    [
        {"parallel": "ddp"},
        {"parallel": "fsdp"},
        {"exchange_every": 3},
    ],
    ids=["ddp", "fsdp", "local-sgd"],
)
def test_ranks_killed_at_a_step_go_on_as_if_never_stopped(
    write: Write, held: dict[str, Any], asked: dict[str, Any]
) -> None:
    first = write(**held, gpus=2, **asked)
    together(first, 2, stop=9)
    second = write(2, **held, gpus=2, **asked)
    found = together(second, 2)
    straight = write(evaluation="g000-e01", **held, gpus=2, **asked, checkpoint_min=0.0)
    undisturbed = together(straight, 2)
    assert found is not None and undisturbed is not None
    begun = found["continued_from"]["step"]
    assert begun == (6 if "exchange_every" in asked else 8)
    assert [m["loss"] for m in metrics(second)] == [m["loss"] for m in metrics(straight)][begun:]
    assert (found["loss"], found["val_loss_se"]) == (
        undisturbed["loss"],
        undisturbed["val_loss_se"],
    )
    assert not list(first.folder.parent.glob("*/checkpoint*"))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_state_goes_on_with_another_number_of_ranks(
    write: Write, held: dict[str, Any], before: int, after: int
) -> None:
    asked = {**held, "parallel": "fsdp"}
    first = write(**asked, gpus=before)
    together(first, before, stop=9)
    assert len(list(first.folder.glob("checkpoint*"))) == before
    second = write(2, **asked, gpus=after)
    found = together(second, after)
    whole = write(evaluation="g000-e01", **asked, checkpoint_min=0.0)
    expected = run(whole)
    assert found is not None and found["continued_from"] == {"attempt": 1, "step": 8}
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert metrics(second)[-1]["loss"] == pytest.approx(metrics(whole)[-1]["loss"], rel=1e-5)


def test_local_sgd_is_another_training(write: Write, held: dict[str, Any]) -> None:
    losses = {}
    for every in (1, 12):
        paths = write(
            evaluation=f"g000-e{every:02}",
            **held,
            gpus=2,
            exchange_every=every,
            checkpoint_min=0.0,
        )
        found = together(paths, 2)
        assert found is not None
        losses[every] = found["loss"]
    assert losses[1] != losses[12]


def test_all_ranks_end_together_on_a_time_budget(write: Write, held: dict[str, Any]) -> None:
    paths = write(**held, gpus=2, minutes=0.02, checkpoint_min=0.0)
    found = together(paths, 2)
    assert found is not None
    other = (paths.folder / "metrics-of-1.jsonl").read_text().splitlines()
    assert len(other) == found["steps"] == len(metrics(paths))


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
