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
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import DataSpec
from tests.jobs.attempts import CHECKOUT, Write, interrupted, losses, metrics, read, run

# One rank of attempts, one after the other, with their results as an output.
RANK = """
import json, os, resource, signal, sys, threading, time
from pathlib import Path
import torch.distributed as dist
from elmanctl.jobs.attempt_training import AttemptTraining
from elmanctl.jobs.metrics import MetricsLog
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.signals import Warned
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

class Report:
    def __init__(self, log): self.log = log
    def phase(self, name): pass
    def step(self, record):
        self.log.append(record)
        if record.step == stop:
            threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            # Without a delay the rank is killed in this step.
            threading.Event().wait(None if not delay_s else 0)
    def validation(self, step, loss): pass

rank, count, token, stop, largest = map(int, sys.argv[1:6])
delay_s, folders = float(sys.argv[6]), sys.argv[7:]
if largest and rank == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
place = Path(folders[0]) / f"port-{token}"
if rank == 0:
    store = dist.TCPStore("127.0.0.1", 0, count, True, wait_for_workers=False)
    written = place.with_suffix(".tmp")
    written.write_text(str(store.port))
    written.rename(place)
else:
    while not place.exists():
        time.sleep(0.01)
    store = dist.TCPStore("127.0.0.1", int(place.read_text()), count, False)
ranks = Ranks.join(store, rank=rank, count=count, local_rank=rank, device="cpu")
for paths in (AttemptPaths(Path(folder)) for folder in folders):
    log = paths.metrics if rank == 0 else paths.folder / f"metrics-of-{rank}.jsonl"
    with MetricsLog(log) as metrics:
        training = AttemptTraining(
            paths,
            AttemptSpec.read(paths.spec),
            is_restart=True,
            warned=Warned(),
            note=lambda *_: None,
            ranks=ranks,
        )
        verdict, entries = training.run(Report(metrics))
    if rank == 0:
        training.discard()
        (paths.folder / "out.json").write_text(json.dumps(entries | training.record()))
ranks.leave()
sys.stdout.flush()
# In its regular end a busy machine's process may be aborted by a thread of torch that is left.
os._exit(0)
"""


def started(
    attempts: tuple[AttemptPaths, ...],
    *,
    count: int = 2,
    stop: int = 0,
    delay_s: float = 0.0,
    largest: int = 0,
    program: str = RANK,
) -> list[subprocess.Popen[str]]:
    """Start the ranks of attempts."""
    token = random.getrandbits(40)
    folders = [str(paths.folder) for paths in attempts]
    numbers = [
        [str(n) for n in (rank, count, token, stop, largest, delay_s)] for rank in range(count)
    ]
    return [
        subprocess.Popen(
            [sys.executable, "-B", "-c", program, *own, *folders],
            env={"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in numbers
    ]


def together(
    *attempts: AttemptPaths, count: int = 2, largest: int = 0, program: str = RANK
) -> list[dict[str, Any]]:
    """Run attempts in `count` processes and return their results.

    The second process can write no file that is larger than `largest` bytes.
    """
    processes = started(attempts, count=count, largest=largest, program=program)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, errors
    return [read(paths.folder / "out.json") for paths in attempts]


def killed_together(*attempts: AttemptPaths, stop: int, delay_s: float = 0.0) -> None:
    """Run each attempt in two processes, which kill themselves in a step or soon after."""
    pairs = [started((a,), stop=stop, delay_s=delay_s) for a in attempts]
    for process in (process for pair in pairs for process in pair):
        process.communicate()
        assert process.returncode != 0


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
    write: Write, held: dict[str, Any], count: int, parallels: tuple[str, ...]
) -> None:
    asked = {**held, "checkpoint_min": 0.0, "keep": ("model",)}
    alone = write(**asked, micro_batch=2)
    expected = run(alone)
    # Of four ranks some have no row of a small tensor.
    attempts = [
        write(evaluation=f"g000-e0{n}", **asked, gpus=count, parallel=parallel, micro_batch=1)
        for n, parallel in enumerate(parallels, start=1)
    ]
    for paths, found in zip(attempts, together(*attempts, count=count), strict=True):
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
    write: Write, held: dict[str, Any]
) -> None:
    kinds: list[dict[str, Any]] = [{"parallel": "ddp"}, {"parallel": "fsdp"}, {"exchange_every": 3}]
    firsts, seconds, straights = (
        [
            write(number, evaluation=f"g000-e{base + n}", **held, gpus=2, **kind, **more)
            for n, kind in enumerate(kinds)
        ]
        for number, base, more in ((1, 10, {}), (2, 10, {}), (1, 20, {"checkpoint_min": 0.0}))
    )
    killed_together(*firsts, stop=9)
    results = together(*seconds, *straights)
    for n, begun in enumerate((8, 8, 6)):
        found, undisturbed = results[n], results[len(kinds) + n]
        assert found["continued_from"] == {"attempt": 1, "step": begun}
        assert losses(seconds[n]) == losses(straights[n])[begun:]
        assert (found["loss"], found["val_loss_se"]) == (
            undisturbed["loss"],
            undisturbed["val_loss_se"],
        )
        assert not list(firsts[n].folder.parent.glob("*/checkpoint*"))


def test_ranks_killed_at_any_moment_leave_a_whole_state(write: Write, held: dict[str, Any]) -> None:
    asked = {**held, "steps": 30, "gpus": 2, "parallel": "fsdp"}
    straight, paths = write(evaluation="g000-e01", **asked, checkpoint_min=0.0), write(**asked)
    # Checkpoints of every step take most of the time.
    killed_together(paths, stop=12, delay_s=random.uniform(0.001, 0.1))
    undisturbed, found = together(straight, paths)
    assert found["continued_from"]["step"] >= 11 and "not_continued" not in found
    assert found["loss"] == undisturbed["loss"]
    assert not list(paths.folder.glob("checkpoint*"))


def test_a_rank_that_cannot_write_costs_the_checkpoint_alone(
    write: Write, held: dict[str, Any]
) -> None:
    paths = write(**held, gpus=2, parallel="fsdp", keep=("checkpoint",))
    (found,) = together(paths, largest=2000)
    assert (found["steps"], found["checkpoints_written"]) == (12, 0)
    assert not list(paths.folder.glob("checkpoint*"))


def test_a_state_goes_on_with_another_number_of_ranks(write: Write, held: dict[str, Any]) -> None:
    asked = {**held, "parallel": "fsdp"}
    alone = write(evaluation="g000-e02", **asked, checkpoint_min=0.0)
    expected = run(alone)
    of_one, of_two = write(**asked), write(evaluation="g000-e01", **asked, gpus=2)
    interrupted(of_one, before_step=9)
    killed_together(of_two, stop=9)
    assert len(list(of_one.folder.glob("checkpoint*"))) == 1
    assert len(list(of_two.folder.glob("checkpoint*"))) == 2
    to_two, to_one = write(2, **asked, gpus=2), write(2, evaluation="g000-e01", **asked)
    for paths, found in ((to_two, together(to_two)[0]), (to_one, run(to_one))):
        assert found["continued_from"] == {"attempt": 1, "step": 8}
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert losses(paths)[-1] == pytest.approx(losses(alone)[-1], rel=1e-5)


def test_ranks_exchange_as_often_as_asked_and_end_together(
    write: Write, held: dict[str, Any]
) -> None:
    asked = {**held, "gpus": 2, "checkpoint_min": 0.0}
    every_step = write(evaluation="g000-e01", **asked)
    once = write(evaluation="g000-e02", **asked, exchange_every=12)
    timed = write(evaluation="g000-e03", **asked, minutes=0.02)
    results = together(every_step, once, timed)
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
