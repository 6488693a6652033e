"""Supervisor of a process that outlives its controller: a small shell in a session of its own.

It records its own process id, start time and host before the process starts, and the exit code
after that has ended, so that a later controller can adopt the process or read how it ended.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from elmanctl.errors import SubmissionError
from elmanctl.ledger.files import write_atomically
from elmanctl.processes import command_lines, start_ticks

# $1 process file, $2 exit file, the rest the worker's command.  SIGTERM to the session ends the
# worker, and the supervisor survives to record it.
_SUPERVISOR = """\
process=$1 exit=$2; shift 2
trap : TERM
# What a login shell limits softly, other than stacks and cores, is meant for no worker.
for limit in t v d m f n u p; do ulimit -S -$limit "$(ulimit -H -$limit)"; done 2>/dev/null
ticks=$(cut -d' ' -f22 /proc/$$/stat)
echo "$$ $ticks $(uname -n)" > "$process.new" && mv "$process.new" "$process"
# Written now and written over later, which needs no room on a disk that is full by then.
echo 'no code' > "$exit.new"
"$@"
code=$?
printf '%-7s\n' "$code" 1<> "$exit.new" && mv "$exit.new" "$exit"
"""

_PROCESS_FILE = "process"
_EXIT_FILE = "exit"

# A process has no command line for an instant while it executes another program.
_TRIES = 3
_RETRY_S = 0.05

# Grace period of a cancelled process before SIGKILL.
_GRACE_S = 5.0


def start(folder: Path, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
    """Start a command under a supervisor with its files in `folder`, its output in `log`.

    Raises SubmissionError if there is no room for a process.
    """
    supervised = [
        # Forked, so that the supervisor is nobody's child and no controller has to reap it.
        *("setsid", "--fork", "sh", "-c", _SUPERVISOR, "sh"),
        *(str(folder / _PROCESS_FILE), str(folder / _EXIT_FILE), *command),
    ]
    try:
        with log.open("ab") as output:
            subprocess.run(
                supervised,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
            )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise SubmissionError(f"cannot start a worker: {exc}") from exc


def exit_code(folder: Path) -> int | None:
    """Return the exit code of the process, None while it has none."""
    words = _read_words(folder / _EXIT_FILE)
    return int(words[0]) if words else None


def age_of_exit_s(folder: Path, now: float) -> float:
    """Return for how long the exit code has been there."""
    return now - (folder / _EXIT_FILE).stat().st_mtime


def is_recorded(folder: Path) -> bool:
    """Whether the supervisor has recorded itself."""
    return (folder / _PROCESS_FILE).exists()


def is_elsewhere(folder: Path) -> bool:
    """Whether the supervisor is one of another host, whose processes are not seen from here."""
    words = _read_words(folder / _PROCESS_FILE)
    # That of an earlier version names none: it runs on this machine.
    return len(words) > 2 and words[2] != os.uname().nodename


def was_started(folder: Path) -> bool:
    """Whether a supervisor was ever started, as far as files and processes here show."""
    if is_recorded(folder) or (folder / _EXIT_FILE).exists():
        return True
    for _ in range(_TRIES):
        if is_starting(folder):
            return True
        time.sleep(_RETRY_S)
    return False


def is_starting(folder: Path) -> bool:
    """Whether a supervisor that has not yet recorded itself is alive."""
    marker = str(folder / _PROCESS_FILE)
    return any(marker in line for _, line in command_lines())


def group(folder: Path) -> int | None:
    """Return the process, and process group, of a supervisor that is alive here, or None."""
    process = _read_words(folder / _PROCESS_FILE)
    if len(process) < 2 or is_elsewhere(folder):
        return None
    return int(process[0]) if start_ticks(int(process[0])) == int(process[1]) else None


def end(folders: Sequence[Path]) -> None:
    """End processes: SIGTERM to the whole session, then SIGKILL to what is left of it."""
    alive = {folder: found for folder in folders if (found := group(folder)) is not None}
    groups = alive.values()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one, number)
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and any(_is_group_alive(one) for one in groups):
            time.sleep(0.05)
    for folder in alive:
        if not (folder / _EXIT_FILE).exists():
            _record_killed(folder)


def _record_killed(folder: Path) -> None:
    """Write the exit code that the supervisor, killed with its process, could not write."""
    # Without it the job would have vanished, which takes longer to establish.
    with contextlib.suppress(OSError):
        write_atomically(folder / _EXIT_FILE, f"{128 + signal.SIGKILL}\n".encode())


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        return []


def _is_group_alive(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except (ProcessLookupError, PermissionError):
        # Another user's process has the number by now.
        return False
    return True
