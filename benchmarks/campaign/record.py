"""Results as they come: kept in a file after every search, so that a campaign can go on."""

import fcntl
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from campaign.search import ROOT, Judgement

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One search of a part of the campaign; `times` is how often it was disturbed.

    `slurm` is the version of Slurm that it ran on, empty for one that ran on this machine, and
    `fault` says what went wrong where the search could not be driven to its end and judged.
    """

    part: str
    executor: str
    number: int
    shape: str
    times: int
    kinds: dict[str, int]
    evaluations: int
    lost: int
    duplicated: int
    same: bool
    seconds: float
    slurm: str = ""
    note: str = ""
    fault: str = ""

    @classmethod
    def of(cls, judgement: Judgement, *, note: str = "", **known: Any) -> "Trial":
        """Return the trial that came to this judgement."""
        return cls(
            evaluations=judgement.evaluations,
            lost=judgement.lost,
            duplicated=judgement.duplicated,
            same=judgement.same,
            note="; ".join(text for text in (judgement.why, note) if text),
            **known,
        )

    @property
    def is_good(self) -> bool:
        """Whether it ended, nothing was lost or done twice, and the points are the same."""
        return not self.fault and self.same and self.lost == 0 and self.duplicated == 0


class OtherCode(Exception):
    """The results that are to be continued were made with another version of the product."""


class Results:
    """The trials of one version of the product in one file, of all releases of Slurm.

    Several campaigns that run at one time may add to it.  Raises OtherCode when the file to go on
    with tells of other code than this, unless it is only read.
    """

    def __init__(self, path: Path, *, go_on: bool, is_read_only: bool = False) -> None:
        self._path = path
        self._is_read_only = is_read_only
        self.about = about_this_machine()
        self.slurm = self.about["versions"]["slurm"]
        self.trials: list[Trial] = []
        if go_on and path.exists():
            self._read()
        else:
            path.unlink(missing_ok=True)

    def of(self, part: str, executor: str, slurm: str | None = None) -> list[Trial]:
        """Return the trials of one part on one executor; on Slurm of one version, default ours."""
        wanted = (slurm or self.slurm) if executor == "slurm" else ""
        key = (part, executor, wanted)
        return [t for t in self.trials if (t.part, t.executor, t.slurm) == key]

    def add(self, trial: Trial) -> None:
        """Keep one more trial, on disk too, with those that others have added meanwhile."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._path.exists():
                self._read()
            self.trials.append(trial)
            self._write()

    def _read(self) -> None:
        known = json.loads(self._path.read_text(encoding="utf-8"))
        if known["product"] != self.about["product"] and not self._is_read_only:
            raise OtherCode(f"{self._path} was made with other code (commit {known['commit']})")
        self.about = {name: known[name] for name in self.about}
        # Earlier results are of one version of Slurm and do not repeat it.
        first = known["versions"]["slurm"]
        self.trials = [
            Trial(**{"slurm": first if trial["executor"] == "slurm" else "", **trial})
            for trial in known["trials"]
        ]

    def _write(self) -> None:
        data = {"version": VERSION, **self.about, "trials": [asdict(t) for t in self.trials]}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        new.replace(self._path)


def release(slurm: str) -> str:
    """Return `Slurm 24.11` for a whole version."""
    return f"Slurm {'.'.join(slurm.split()[-1].split('.')[:2])}"


@cache
def about_this_machine() -> dict[str, Any]:
    """Return what the numbers depend on: code, date, versions and the machine in words.

    `commit` is the newest one that touched the product's folder, `product` git's hash of that
    folder: commits to anything else change neither.
    """
    names = ("cma", "numpy", "submitit")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "commit": _say("git", "-C", str(ROOT), "log", "-1", "--format=%h", "--", "elmanctl")
        + ("-dirty" if _say("git", "-C", str(ROOT), "status", "-s", "--", "elmanctl") else ""),
        "product": _say("git", "-C", str(ROOT), "rev-parse", "HEAD:elmanctl"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, {memory_gb:.0f} GB of memory, no GPU, Linux "
        f"{platform.release()}",
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in names},
            "slurm": _say("sinfo", "--version").removeprefix("slurm ") or "none",
        },
    }


def _say(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
