"""Answer to the roll call: the connection of a rank with rank 0, open for as long as both live."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.claim import node_name
from elmanctl.jobs.place import Place
from elmanctl.jobs.rank_end import Failure, encode_failure
from elmanctl.jobs.rendezvous import TIMEOUT_S, Address
from elmanctl.jobs.roll_call import SETTLE_S, encode_line, keep_probing

logger = logging.getLogger(__name__)

_PAUSE_S = 0.5


class RollAnswer:
    """A rank's side: it hears when to begin, and when all is over.

    Once it has begun, this process ends when rank 0 does, whatever its main thread waits for.
    """

    def __init__(self, connection: socket.socket, place: Place) -> None:
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._place = place
        self._is_over = threading.Event()

    def await_beginning(self) -> dict[str, Any] | None:
        """Return what rank 0 says at the beginning, None when there is nothing to do."""
        message = self._message()
        if message is None or "begin" not in message:
            return None
        threading.Thread(target=self._watch, name="roll answer", daemon=True).start()
        begin: dict[str, Any] = message["begin"]
        return begin

    def tell(self, failure: Failure) -> None:
        """Tell rank 0 why this rank ends; of an echo only if rank 0 does not end by itself."""
        if failure.is_echo:
            self._is_over.wait(SETTLE_S)
        try:
            self._connection.sendall(encode_line({"failed": encode_failure(failure)}))
        except OSError as exc:
            logger.warning("rank 0 cannot be notified: %s", exc)

    def await_end(self) -> None:
        """Wait until rank 0 has written the result."""
        self._is_over.wait()

    def _message(self) -> dict[str, Any] | None:
        try:
            line = self._lines.readline()
        except OSError:
            return None
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    def _watch(self) -> None:
        message = self._message()
        if message is None or not message.get("over"):
            why = "rank 0 is gone" if message is None else "rank 0 has ended the attempt"
            # No logging: the main thread may hold its lock, and never return.
            os.write(2, f"rank {self._place.rank} ends: {why}\n".encode())
            os._exit(1)
        self._is_over.set()


@contextmanager
def answered(
    address: Address, place: Place, *, timeout_s: float = TIMEOUT_S
) -> Iterator[RollAnswer]:
    """Connect to rank 0 as the rank of this place.

    Raises EnvironmentNotReady when rank 0 cannot be reached in time.
    """
    with _connect(address, timeout_s) as connection:
        keep_probing(connection)
        hello = {"key": address.key, "rank": place.rank, "node": node_name()}
        connection.sendall(encode_line(hello))
        yield RollAnswer(connection, place)


def _connect(address: Address, timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection((address.host, address.port), timeout=10.0)
        except OSError as exc:
            if time.monotonic() >= deadline:
                raise EnvironmentNotReady(
                    f"{node_name()} cannot reach rank 0 at {address.host}:{address.port}: {exc}",
                    hint="the nodes of a job must reach each other by their host names",
                ) from exc
            time.sleep(_PAUSE_S)
        else:
            connection.settimeout(None)
            return connection
