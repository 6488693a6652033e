"""Counting the commands of Slurm that a controller runs, by stand-ins on its PATH."""

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# What asks slurmctld or slurmdbd; sbatch and scancel change something, and are not counted here.
QUERIES = ("sacct", "sacctmgr", "scontrol", "sdiag", "sinfo", "sprio", "squeue", "sshare", "sstat")


@dataclass(frozen=True)
class Counted:
    """The queries of a search: how many of each, and when."""

    times_s: tuple[float, ...]
    by_command: dict[str, int]

    @property
    def most_in_a_minute(self) -> int:
        """The most that began within any 60 seconds."""
        first = most = 0
        for last, at_s in enumerate(self.times_s):
            while at_s - self.times_s[first] >= 60:
                first += 1
            most = max(most, last - first + 1)
        return most


class Counters:
    """A folder of commands that note themselves, and then are the real ones."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "queries.log"
        commands = folder / "counted"
        commands.mkdir()
        for name in QUERIES:
            real = shutil.which(name)
            if real is None:
                continue
            script = commands / name
            script.write_text(
                f'#!/bin/sh\necho "$(date +%s.%N) {name}" >>"{self._log}"\nexec "{real}" "$@"\n',
                encoding="utf-8",
            )
            script.chmod(0o755)
        self._log.touch()
        self.environment = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}

    def read(self) -> Counted:
        """Return what was asked so far."""
        rows = sorted(line.split() for line in self._log.read_text(encoding="utf-8").splitlines())
        return Counted(
            times_s=tuple(float(at) for at, _ in rows),
            by_command=dict(Counter(name for _, name in rows)),
        )


def per_minute(counted: Counted, seconds: float) -> float:
    """Return how many queries a minute that is."""
    return len(counted.times_s) / (seconds / 60)
