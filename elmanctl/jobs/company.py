"""Company of rank 0: the other ranks of its attempt, gathered, begun with, and heard of."""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.claim import Worker
from elmanctl.jobs.local_ranks import LocalRanks
from elmanctl.jobs.place import Place, task_place
from elmanctl.jobs.rank_end import Failure, RankEnd, RankFailed, RankLost, is_echo
from elmanctl.jobs.rendezvous import publish
from elmanctl.jobs.roll_call import SETTLE_S, RollCall
from elmanctl.ledger.records import VerdictKind
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.training import Training

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


class Company:
    """The ranks that train together, and rank 0's word that the training is done.

    `ranks` is a `Ranks`, whose module needs torch.
    """

    def __init__(self, ranks: Any, roll: RollCall) -> None:
        self.ranks = ranks
        self._roll = roll

    def training_is_done(self) -> None:
        """Need no other rank any more: what ends one now changes no result."""
        self._roll.need_no_more()


def first_place(training: Training) -> Place:
    """Return rank 0's place.

    Raises EnvironmentNotReady when the job has another number of tasks than its training ranks.
    """
    task = task_place()
    if task is not None and task.count != training.ranks:
        raise EnvironmentNotReady(
            f"the job has {task.count} tasks, and {training.ranks} processes train its model"
        )
    return task or Place(count=training.ranks)


@contextmanager
def gathered(
    paths: AttemptPaths,
    worker: Worker,
    training: Training,
    *,
    is_restart: bool,
    give_up: Callable[[RankFailed | RankLost], None],
) -> Iterator[Company]:
    """Gather the ranks of a training on several GPUs; without Slurm, start them here.

    Whatever breaks because another rank has ended is raised as RankFailed or RankLost.  `give_up`
    gets the same from a thread, if the main thread hangs; it must end the process.  Raises
    EnvironmentNotReady when the ranks do not come together.
    """
    place, is_local = first_place(training), task_place() is None
    with ExitStack() as stack:
        local = None
        if is_local:
            local = stack.enter_context(LocalRanks(paths.folder, worker, place.count))
        roll = RollCall(
            place.count,
            host=LOOPBACK if is_local else socket.gethostname(),
            give_up=lambda end: give_up(explained(end, local)),
        )
        stack.enter_context(roll)
        stack.callback(paths.rendezvous.unlink, missing_ok=True)
        publish(paths, worker, roll.address)
        try:
            roll.wait_for_all()
            from elmanctl.jobs.group import join, open_store

            store = open_store(place.count)
            roll.begin({"store_port": store.port, "is_restart": is_restart})
            yield Company(join(store, place, training), roll)
        except (Exception, SystemExit) as exc:
            end = roll.take_end(SETTLE_S if is_echo(exc) else 0.0)
            if end is None:
                raise
            raise explained(end, local) from exc


def explained(end: RankEnd, local: LocalRanks | None) -> RankFailed | RankLost:
    """Return the end of a rank as what it means here; of a process of ours it is known how."""
    failure = end.failure
    if failure is None and local is not None and (how := local.how_ended(end.rank)) is not None:
        text = f"rank {end.rank} of {end.count} on {end.node} was ended by {how}"
        failure = Failure(kind=VerdictKind.KILLED, text=text)
    return RankLost(end) if failure is None else RankFailed(end, failure)
