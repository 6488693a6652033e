"""A disk that fills up in the middle of a search."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from campaign.search import PATIENCE_S, Fault, Search, wait_for

_SIZE = "12m"

# The exit code of a search that stopped itself.
PAUSED = 6


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of a few megabytes; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "elmanctl-small-disk", str(folder)],
        check=True,
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Take every byte that is left."""
    file = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while os.write(file, b"x" * size):
                    pass
    finally:
        os.close(file)


def fill_and_free(search: Search, after_s: float) -> str:
    """Fill the disk of a running search, make room when it has stopped, and let it finish.

    Raises Fault when it does not stop by itself with the exit code and the word of a pause, or
    when its ledger does not open on the full disk.  What failed for want of space is put back by
    `requeue --failed`, as the search's own hint says.  Returns how it went.
    """
    process = search.start()
    wait_for(lambda: search.trainings(), "a worker to train")
    time.sleep(after_s)
    filler = search.run_folder.parent / "filler"
    end = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < end:
        fill(filler)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)
    search.expect(process, PAUSED, 1.0)
    # Workers that still train meet the full disk too.
    time.sleep(search.shape.seconds[1] + 1.0)
    status = search.state().status
    full = search.start()
    search.expect(full, PAUSED)
    filler.unlink()
    for resumes in range(1, 5):
        requeue = search.start(["requeue", "--failed", "--run", "run", "--yes"])
        search.wait(requeue)
        process = search.start()
        if search.wait(process) == 0:
            return f"exit code {PAUSED}, status {status}, done after {resumes}x `resume`"
    raise Fault(f"not finished after room was made\n{search.words(process)}")
