"""Work of every rank but the first: it trains along, and writes nothing of the attempt itself."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from elmanctl.jobs.claim import Worker
from elmanctl.jobs.metrics import StepRecord
from elmanctl.jobs.place import Place
from elmanctl.jobs.rank_end import failure_of
from elmanctl.jobs.rendezvous import TIMEOUT_S, await_address
from elmanctl.jobs.roll_answer import RollAnswer, answered
from elmanctl.jobs.signals import Warned
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec

logger = logging.getLogger(__name__)


def train_along(
    paths: AttemptPaths, worker: Worker, place: Place, *, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Train as one of several ranks, until rank 0 has written the result.

    Returns {"rank": N}, also when rank 0 has nothing to do.  An exception is told to rank 0, whose
    result it becomes, and raised again.
    """
    with _endings_noted() as warned:
        address = await_address(paths, worker, timeout_s=timeout_s)
        if address is None:
            logger.info("rank 0 has nothing to do, nor has rank %d", place.rank)
            return {"rank": place.rank}
        with answered(address, place, timeout_s=timeout_s) as answer:
            try:
                _train(paths, place, answer, address.host, warned)
            except (Exception, SystemExit) as exc:
                answer.tell(failure_of(exc, paths.run_folder, place))
                raise
    return {"rank": place.rank}


def _train(
    paths: AttemptPaths, place: Place, answer: RollAnswer, host: str, warned: Warned
) -> None:
    # torch is imported while rank 0 waits for the others.
    from elmanctl.jobs.attempt_training import AttemptTraining
    from elmanctl.jobs.group import join, reach_store

    spec = AttemptSpec.read(paths.spec)
    begin = answer.await_beginning()
    if begin is None:
        return
    store = reach_store(host, int(begin["store_port"]), place.count)
    ranks = join(store, place, spec.training)
    training = AttemptTraining(
        paths,
        spec,
        is_restart=bool(begin["is_restart"]),
        warned=warned,
        note=_note_nothing,
        ranks=ranks,
    )
    training.run(_Silent())
    answer.await_end()
    ranks.leave()


class _Silent:
    """Receives the progress of a training that rank 0 reports."""

    def phase(self, name: str) -> None:
        """Do nothing."""

    def step(self, record: StepRecord) -> None:
        """Do nothing."""

    def validation(self, step: int, loss: float) -> None:
        """Do nothing."""


def _note_nothing(step: int, error: str | None) -> None:
    """Do nothing: rank 0 notes the checkpoint of all ranks."""


@contextmanager
def _endings_noted() -> Iterator[Warned]:
    """Let SIGUSR2, which announces an end, and SIGINT pass: rank 0 decides for all.

    SIGTERM ends the process, as by default; submitit's handler would ignore it.
    """
    warned = Warned()

    def note(number: int, frame: FrameType | None) -> None:
        warned.is_pending = True

    handlers: dict[signal.Signals, Any] = {
        signal.SIGUSR2: note,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.SIG_IGN,
    }
    earlier = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield warned
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
