"""Compare the processor time that the tests of two checkouts take, one after the other.

usage: python benchmarks/ci_time.py BEFORE AFTER [PYTEST ARGUMENT...]

Each folder has a `.venv` that scripts/test made. The tests marked slurm are left out, since the
daemons of a cluster take time of their own, and what Triton has compiled before is removed. Time of
workers that outlive the command that started them counts too: this process adopts them.
"""

import ctypes
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD_SUBREAPER = 36  # of prctl


def main(before: str, after: str, *arguments: str) -> None:
    """Print the seconds of both, and the share that the second one saves."""
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    seconds = []
    for folder in (before, after):
        code, used_s = measured(Path(folder), list(arguments))
        seconds.append(used_s)
        print(f"{folder}: {used_s:.0f} s of processor time, exit code {code}", flush=True)
    print(f"{100 * (1 - seconds[1] / seconds[0]):.1f} % less")


def measured(folder: Path, arguments: list[str]) -> tuple[int, float]:
    """Run the tests of a checkout; return the exit code and the seconds of user and system time."""
    shutil.rmtree(folder / ".cache" / "kernel-code", ignore_errors=True)
    start_s = children_s()
    with tempfile.TemporaryDirectory() as base:
        command = [str(folder / ".venv" / "bin" / "python"), "-m", "pytest", "-q"]
        command += ["-m", "not slurm", "-p", "no:cacheprovider", f"--basetemp={base}/tests"]
        code = subprocess.call([*command, *arguments], cwd=folder, stdout=sys.stderr)
        adopted()
    return code, children_s() - start_s


def adopted() -> None:
    """Wait for the processes that lost their parents."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def children_s() -> float:
    """Return the user and system time of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
