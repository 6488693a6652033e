"""The roll call of rank 0: who comes, who does not, and whose end explains the others'."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.claim import this_worker
from elmanctl.jobs.place import Place, task_place
from elmanctl.jobs.rank_end import Failure, RankEnd, is_echo, root_of
from elmanctl.jobs.rendezvous import Address, await_address
from elmanctl.jobs.roll_answer import answered
from elmanctl.jobs.roll_call import RollCall
from elmanctl.ledger.records import VerdictKind
from elmanctl.run.paths import AttemptPaths
from tests.patience import PATIENCE_S

HERE = "127.0.0.1"
OOM = Failure(kind=VerdictKind.OOM, text="OutOfMemoryError: CUDA out of memory")
ECHO = Failure(kind=VerdictKind.ENVIRONMENT, text="Connection closed by peer", is_echo=True)

Start = Callable[..., RollCall]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a roll call of three ranks."""
    with ExitStack() as stack:

        def made(give_up: Callable[[RankEnd], None] = lambda _: None, **more: Any) -> RollCall:
            return stack.enter_context(RollCall(3, host=HERE, give_up=give_up, **more))

        yield made


def call(address: Address, rank: object, **changes: Any) -> socket.socket:
    """Connect as a rank does."""
    connection = socket.create_connection((address.host, address.port))
    hello = {"key": address.key, "rank": rank, "node": f"n{rank}", **changes}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    return connection


def end(rank: int, failure: Failure | None = None) -> RankEnd:
    return RankEnd(rank=rank, count=3, node=f"n{rank}", failure=failure)


def test_end_that_no_other_one_explains_is_the_root() -> None:
    assert root_of([]) is None
    assert root_of([end(1, ECHO)]) is None
    assert root_of([end(1, ECHO), end(2, OOM)]) == end(2, OOM)
    # An echo may come first, a process that was killed says nothing.
    assert root_of([end(1, ECHO), end(2)]) == end(2)
    # And one that aborts because another has failed says nothing either.
    assert root_of([end(1, OOM), end(2)]) == end(1, OOM)


@pytest.mark.torch
def test_errors_of_an_exchange_are_echoes_and_others_are_not() -> None:
    from torch.distributed import DistBackendError, DistStoreError

    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"
    for echo in (DistBackendError("NCCL"), DistStoreError("x"), RuntimeError(gloo)):
        assert is_echo(echo)
    try:
        raise ValueError("a bug") from RuntimeError(gloo)
    except ValueError as exc:
        assert is_echo(exc)
    assert not is_echo(RuntimeError("CUDA out of memory"))
    assert not is_echo(FileNotFoundError("spec.json"))


def test_ranks_that_do_not_come_are_named(start: Start) -> None:
    roll = start()
    with closing(call(roll.address, 2)):
        with pytest.raises(EnvironmentNotReady, match=r"1 of 3 ranks did not come .*: 1$"):
            roll.wait_for_all(0.5)
        with closing(call(roll.address, 1)):
            roll.wait_for_all(PATIENCE_S)


def test_strangers_and_ranks_that_are_there_already_are_sent_away(start: Start) -> None:
    roll = start()
    strangers = [
        call(roll.address, 1, key="guessed"),
        call(roll.address, 0),
        call(roll.address, 3),
        call(roll.address, "one"),
        socket.create_connection((HERE, roll.address.port)),
    ]
    strangers[-1].sendall(b"GET / HTTP/1.0\r\n\r\n")
    for stranger in strangers:
        with closing(stranger):
            stranger.settimeout(PATIENCE_S)
            assert stranger.recv(1) == b""
    with closing(call(roll.address, 1)), closing(call(roll.address, 2)):
        roll.wait_for_all(PATIENCE_S)
        with closing(call(roll.address, 2)) as twice:
            twice.settimeout(PATIENCE_S)
            assert twice.recv(1) == b""
        assert roll.take_end(0.0) is None


def test_rank_that_ends_before_all_have_come_is_not_waited_for(start: Start) -> None:
    roll = start()
    call(roll.address, 1).close()
    with pytest.raises(EnvironmentNotReady, match="rank 1 of 3 on n1 ended without a word"):
        roll.wait_for_all(PATIENCE_S)
    found = roll.take_end(0.0)
    assert found is not None and (found.rank, found.node, found.failure) == (1, "n1", None)


def test_main_thread_that_hangs_is_given_up(start: Start) -> None:
    given_up: list[RankEnd] = []
    is_over = threading.Event()

    def give_up(found: RankEnd) -> None:
        given_up.append(found)
        is_over.set()

    roll = start(give_up, give_up_s=0.2)
    place = Place(rank=1, count=3, local_rank=1)
    with answered(roll.address, place) as answer, closing(call(roll.address, 2)):
        roll.wait_for_all(PATIENCE_S)
        answer.tell(OOM)
        assert is_over.wait(PATIENCE_S)
    assert given_up[0].failure == OOM and given_up[0].rank == 1
    assert given_up[0].describe().endswith("failed: OutOfMemoryError: CUDA out of memory")


def test_end_is_ignored_once_the_training_is_done(start: Start) -> None:
    given_up: list[RankEnd] = []
    roll = start(given_up.append, give_up_s=0.0)
    roll.need_no_more()
    call(roll.address, 1).close()
    found = roll.take_end(PATIENCE_S)
    assert found is not None and found.rank == 1
    assert given_up == []


def test_rank_begins_and_ends_with_rank_0(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()

    def be_rank(address: Address) -> None:
        with answered(address, Place(rank=1, count=2)) as answer:
            assert answer.await_beginning() == {"store_port": 7, "is_restart": False}
            answer.await_end()
            ended.set()

    with RollCall(2, host=HERE, give_up=lambda _: None) as roll:
        rank = threading.Thread(target=be_rank, args=(roll.address,))
        rank.start()
        roll.wait_for_all(PATIENCE_S)
        roll.begin({"store_port": 7, "is_restart": False})
    rank.join(PATIENCE_S)
    assert ended.is_set()
    # Nobody was missed.
    assert caplog.messages == []


def test_rank_0_that_cannot_be_reached_is_an_error_of_its_own(tmp_path: Any) -> None:
    with socket.create_server((HERE, 0)) as server:
        port = server.getsockname()[1]
    address = Address(host=HERE, port=port, key="x")
    with (
        pytest.raises(EnvironmentNotReady, match=f"cannot reach rank 0 at {HERE}:{port}"),
        answered(address, Place(rank=1, count=2), timeout_s=0.0),
    ):
        pass


def test_place_is_that_of_a_task_only_in_jobs_of_ours() -> None:
    inside = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert task_place(inside) is None
    assert task_place({**inside, "SUBMITIT_EXECUTOR": "local"}) is None
    ours = task_place({**inside, "SUBMITIT_EXECUTOR": "slurm"})
    assert ours == Place(rank=5, count=8, local_rank=1)


def test_address_that_does_not_come_is_an_error_of_its_own(tmp_path: Any) -> None:
    paths = AttemptPaths(tmp_path)
    with pytest.raises(EnvironmentNotReady, match=r"gave no address within 0\.3 s") as raised:
        await_address(paths, this_worker({"SLURM_JOB_ID": "7"}), timeout_s=0.3)
    assert raised.value.hint is not None and str(tmp_path) in raised.value.hint
