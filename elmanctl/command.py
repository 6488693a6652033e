"""Run one command: within a time limit, with a bounded answer, away from any terminal."""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

# squeue writes about 1,100 bytes a job in our format: room for 60,000 jobs of one user.
ANSWER_LIMIT_BYTES = 64 << 20

_CHUNK_BYTES = 1 << 16

# A wrapper may leave something behind that keeps the pipes open; it is not waited for.
_LOOK_S = 0.2

_KILLED_S = 5.0


class NoAnswer(Exception):
    """A command took too long or said too much, and was killed; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a command ended; the code is negative where a signal ended it."""

    code: int
    stdout: str
    stderr: str


def run_command(
    command: Sequence[str], environment: Mapping[str, str], *, timeout_s: float, text: str = ""
) -> Answer:
    """Run a command to its end, with `text` as its input, and return its answer.

    In a session of its own it has no terminal to ask on, and a Ctrl-C meant for the controller
    does not cut it.  Raises OSError where it cannot be started, NoAnswer where it, with all that
    it started, was killed.
    """
    with _input(text) as stdin:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    try:
        stdout, stderr = _read(process, command[0], time.monotonic() + timeout_s, timeout_s)
    except BaseException as exc:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(exc, OSError):
            # It was started: to the caller an OSError would say that it was not.
            raise NoAnswer(f"the answer of `{command[0]}` cannot be read: {exc.strerror}") from exc
        raise
    finally:
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        # What hangs in the kernel cannot even be killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_KILLED_S)
    # Not all is UTF-8: among the jobs of a user may be one with a name in another encoding.
    return Answer(
        code=process.returncode,
        stdout=stdout.decode(errors="replace"),
        stderr=stderr.decode(errors="replace"),
    )


@contextlib.contextmanager
def _input(text: str) -> Iterator[IO[bytes] | int]:
    """Yield a file of what a command reads, or the word for nothing to read."""
    if not text:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)
        yield file


def _read(
    process: subprocess.Popen[bytes], name: str, deadline: float, timeout_s: float
) -> tuple[bytearray, bytearray]:
    """Return what a process writes until it has ended and its pipes are empty."""
    texts = (bytearray(), bytearray())
    with selectors.DefaultSelector() as selector:
        for pipe, text in zip((process.stdout, process.stderr), texts, strict=True):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, text)
        while selector.get_map() or process.poll() is None:
            left_s = deadline - time.monotonic()
            has_ended = process.poll() is not None
            # What ended in time is heard also by a controller that was suspended meanwhile.
            if left_s <= 0 and not has_ended:
                raise NoAnswer(f"`{name}` did not answer within {timeout_s:g} s")
            if not selector.get_map():
                # It closed its output and lives on.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(left_s)
                continue
            ready = selector.select(0 if has_ended else min(left_s, _LOOK_S))
            if has_ended and not ready:
                break
            for key, _ in ready:
                chunk = os.read(key.fd, _CHUNK_BYTES)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk)
                if len(key.data) > ANSWER_LIMIT_BYTES:
                    limit_mib = ANSWER_LIMIT_BYTES >> 20
                    raise NoAnswer(f"`{name}` said more than {limit_mib} MiB and was stopped")
    return texts
