"""Roll call: the connections of rank 0 with the other ranks of its attempt.

Each of them holds one open for as long as it lives.  It says on it why it fails; when its process
ends, its kernel closes the connection at once, and when its node is gone, no more probes are
answered.  So rank 0 hears of every end, even while it waits in an exchange that cannot complete.
"""

import contextlib
import hmac
import json
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from elmanctl.constants import UNREACHABLE
from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.rank_end import RankEnd, decode_failure, root_of
from elmanctl.jobs.rendezvous import TIMEOUT_S, Address

logger = logging.getLogger(__name__)

# An end reaches rank 0 as a broken exchange, too, and either may come first.
SETTLE_S = 5.0

# An exchange of NCCL need not break: so long after an end rank 0 is ended without its main thread.
GIVE_UP_S = 30.0

# How long the other ranks may take to end after the last word.
_LEAVE_S = 20.0

_POLL_S = 0.2
_LINE_BYTES = 64 * 1024


def keep_probing(connection: socket.socket) -> None:
    """Let the kernel find out within 80 seconds that the other node is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, 20),
        (socket.TCP_KEEPINTVL, 10),
        (socket.TCP_KEEPCNT, 6),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _how_broken(exc: OSError) -> str:
    # A reset is the word of a kernel that lives, or lives again.
    is_reset = isinstance(exc, ConnectionError)
    return "ended without a word" if is_reset else f"{UNREACHABLE}: {exc.strerror}"


def encode_line(message: dict[str, Any]) -> bytes:
    """Return a message as it is sent: JSON on one line."""
    return json.dumps(message).encode() + b"\n"


@dataclass(slots=True)
class _Peer:
    """A connection, which is a rank's once it has named the key."""

    connection: socket.socket
    received: bytes = b""
    rank: int | None = None
    node: str = ""
    has_told: bool = False


class RollCall:
    """Rank 0's side: it waits for all ranks, and afterwards hears of each that ends.

    `give_up` is called from a thread with an end that the main thread, which hangs, has not taken
    note of in time; it must end the process.
    """

    def __init__(
        self,
        count: int,
        *,
        host: str,
        give_up: Callable[[RankEnd], None],
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        self._count = count
        self._give_up, self._give_up_s = give_up, give_up_s
        self._key = secrets.token_hex(16)
        self._peers: dict[int, _Peer] = {}
        self._ends: list[RankEnd] = []
        self._first_end_s: float | None = None
        self._changed = threading.Condition()
        self._is_over = self._is_taken = False
        is_local = host == "127.0.0.1"
        self._server = socket.create_server((host if is_local else "", 0), backlog=count)
        self.address = Address(host=host, port=self._server.getsockname()[1], key=self._key)
        self._thread = threading.Thread(target=self._listen, name="roll call", daemon=True)

    def __enter__(self) -> "RollCall":
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        # Whoever leaves from now on does so because it is told to.
        self._is_over = True
        self._send({"over": kind is None})
        with self._changed:
            self._changed.wait_for(lambda: not self._peers, _LEAVE_S if kind is None else _POLL_S)
            left = list(self._peers.values())
            self._peers.clear()
        self._server.close()
        for peer in left:
            peer.connection.close()
        self._thread.join()

    def wait_for_all(self, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until every rank has come.

        Raises EnvironmentNotReady when that takes too long, or when one has ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ends or self._is_complete(), timeout_s)
            missing = sorted(set(range(1, self._count)) - self._peers.keys())
            ends = list(self._ends)
        if ends:
            raise EnvironmentNotReady(ends[0].describe())
        if missing:
            names = ", ".join(map(str, missing[:10]))
            raise EnvironmentNotReady(
                f"{len(missing)} of {self._count} ranks did not come within {timeout_s:g} s: "
                f"{names}",
                hint="their logs lie beside this one; every node must reach every other one",
            )

    def begin(self, message: dict[str, Any]) -> None:
        """Send all ranks what they need to begin."""
        self._send({"begin": message})

    def take_end(self, settle_s: float) -> RankEnd | None:
        """Return the end that explains why the main thread fails, None if it is its own affair.

        It is waited for so long.  The main thread has taken note of all ends then.
        """
        with self._changed:
            self._is_taken = True
            self._changed.wait_for(lambda: root_of(self._ends), settle_s)
            return root_of(self._ends)

    def need_no_more(self) -> None:
        """Take no notice of ends from now on."""
        with self._changed:
            self._is_taken = True

    def _is_complete(self) -> bool:
        return len(self._peers) == self._count - 1

    def _send(self, message: dict[str, Any]) -> None:
        with self._changed:
            peers = list(self._peers.values())
        for peer in peers:
            # A rank that is gone is noticed where it is read from.
            with contextlib.suppress(OSError):
                peer.connection.sendall(encode_line(message))

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while not (self._is_over and not self._peers):
                for key, _ in selector.select(_POLL_S):
                    if key.fileobj is self._server:
                        self._accept(selector)
                    else:
                        self._read(selector, key.data)
                self._give_up_if_due()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._server.accept()
            keep_probing(connection)
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ, _Peer(connection))

    def _read(self, selector: selectors.BaseSelector, peer: _Peer) -> None:
        how = "ended without a word"
        try:
            received = peer.connection.recv(_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            received, how = b"", _how_broken(exc)
        *lines, peer.received = (peer.received + received).split(b"\n")
        try:
            for line in lines:
                self._take(peer, json.loads(line))
            is_closed = not received or len(peer.received) > _LINE_BYTES
        except (ValueError, KeyError, TypeError) as exc:
            logger.warning("a stranger called: %s", exc)
            is_closed = True
        if is_closed:
            selector.unregister(peer.connection)
            peer.connection.close()
            self._note_closed(peer, how)

    def _take(self, peer: _Peer, message: dict[str, Any]) -> None:
        """Take a message; raises ValueError, KeyError or TypeError for one that is none of ours."""
        if peer.rank is None:
            rank = int(message["rank"])
            is_known = hmac.compare_digest(str(message["key"]), self._key)
            with self._changed:
                if not is_known or not 0 < rank < self._count or rank in self._peers:
                    raise ValueError(f"it is no rank of {self._count} that is waited for")
                peer.rank, peer.node = rank, str(message["node"])
                self._peers[rank] = peer
                self._changed.notify_all()
        elif "failed" in message:
            peer.has_told = True
            end = RankEnd(
                rank=peer.rank,
                count=self._count,
                node=peer.node,
                failure=decode_failure(message["failed"]),
            )
            self._note(end)

    def _note_closed(self, peer: _Peer, how: str) -> None:
        if peer.rank is None:
            return
        if not (peer.has_told or self._is_over):
            self._note(RankEnd(rank=peer.rank, count=self._count, node=peer.node, how=how))
        with self._changed:
            self._peers.pop(peer.rank, None)
            self._changed.notify_all()

    def _note(self, end: RankEnd) -> None:
        logger.warning("%s", end.describe().splitlines()[0])
        with self._changed:
            self._ends.append(end)
            if self._first_end_s is None:
                self._first_end_s = time.monotonic()
            self._changed.notify_all()

    def _give_up_if_due(self) -> None:
        with self._changed:
            if self._is_over or self._is_taken or self._first_end_s is None:
                return
            if time.monotonic() - self._first_end_s < self._give_up_s:
                return
            end = root_of(self._ends) or self._ends[0]
        self._give_up(end)
