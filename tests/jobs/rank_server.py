"""Fork server of ranks: starts those of attempts that stdin names, and prints their exit codes.

A request is one line of JSON: `groups`, of folders of attempts that the same ranks train one after
the other; `count`, the ranks of a group; `log`, the file for what they print; and what else
`train` takes.
"""

import importlib
import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from elmanctl.jobs.attempt_training import AttemptTraining
from elmanctl.jobs.metrics import MetricsLog, StepRecord
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.signals import Warned
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

# Hundreds of modules that a training of several ranks comes to need.
IMPORTED_LATE = ("torch._dynamo", "torch.distributed.fsdp")


class Report:
    """Observer that writes the metrics, and kills its process at the step `stop`."""

    def __init__(self, log: MetricsLog, stop: int, delay_s: float) -> None:
        self._log = log
        self._stop = stop
        self._delay_s = delay_s

    def phase(self, name: str) -> None:
        """Ignore it."""

    def step(self, record: StepRecord) -> None:
        """Write it, and have this process killed if it is time."""
        self._log.append(record)
        if record.step == self._stop:
            threading.Timer(self._delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            # Without a delay the rank is killed in this step.
            threading.Event().wait(None if not self._delay_s else 0)

    def validation(self, step: int, loss: float) -> None:
        """Ignore it."""


def meet(place: Path, rank: int, count: int) -> Any:
    """Return the store of all ranks, whose port the first one chooses and writes to a file."""
    if rank == 0:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, count, True, wait_for_workers=False
        )
        written = place.with_suffix(".tmp")
        written.write_text(str(store.port))
        written.rename(place)
        return store
    while not place.exists():
        time.sleep(0.01)
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", int(place.read_text()), count, False
    )


def train(
    folders: list[Path],
    place: Path,
    rank: int,
    count: int,
    *,
    stop: int = 0,
    delay_s: float = 0.0,
    largest: int = 0,
    before: str = "",
) -> None:
    """Train attempts, one after the other, as one rank; leave their results as out.json."""
    if largest and rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    exec(before, {"rank": rank})
    store = meet(place, rank, count)
    ranks = Ranks.join(store, rank=rank, count=count, local_rank=rank, device="cpu")
    for paths in map(AttemptPaths, folders):
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
            _, entries = training.run(Report(metrics, stop, delay_s))
        if rank == 0:
            training.discard()
            (paths.folder / "out.json").write_text(json.dumps(entries | training.record()))
    ranks.leave()


def fork(log: Path, *arguments: Any, **asked: Any) -> int:
    """Start a rank whose output goes to a file, and return its process."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("a") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        train(*arguments, **asked)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # In its regular end a busy machine's process may be aborted by a thread of torch that is
        # left.
        os._exit(code)


def main() -> None:
    """Answer the requests on stdin."""
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        groups, count, log = (request.pop(name) for name in ("groups", "count", "log"))
        processes = []
        for number, names in enumerate(groups):
            folders = [Path(name) for name in names]
            place = Path(f"{log}-port-{number}")
            processes += [
                fork(Path(log), folders, place, rank, count, **request) for rank in range(count)
            ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in processes]
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    main()
