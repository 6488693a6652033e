"""Controllers killed by SIGKILL at random and at chosen instants, again and again."""

import random
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

from campaign.search import Fault, Search, Shape

UNIFORM = "at a random instant"

# A uniform kill comes within this time from the start of the controller.
UNIFORM_WITHIN_S = 3.0

# A controller that did not come to the chosen call within this time is killed by the clock too.
INSIDE_WITHIN_S = 8.0

# Inside these, before or after the call itself, at one of the first so many of a controller's life.
INSIDE = {"fsync": 16, "link": 1, "replace": 5, "tell": 2}

SBATCH = {
    "sbatch, before Slurm hears of it": "before",
    "sbatch, after Slurm accepted": "after",
    "sbatch, Slurm accepts after the kill": "late",
}
SPAWN = "the start of a worker"

# `$1` is consumed once; the parent is the controller.
_WRAPPER = """\
#!/bin/sh
if mv "{folder}/next" "{folder}/now" 2>/dev/null; then
  read -r how < "{folder}/now"
  case $how in
    before) kill -9 $PPID; exit 1 ;;
    late) kill -9 $PPID; sleep 2 ;;
    after) {sbatch} "$@"; kill -9 $PPID; exit 0 ;;
  esac
fi
exec {sbatch} "$@"
"""


def kinds_of(executor: str) -> list[str]:
    """Return the instants at which a controller can be killed, besides random ones."""
    inside = [f"{name}, {moment} it" for name in INSIDE for moment in ("before", "after")]
    return inside + (list(SBATCH) if executor == "slurm" else [SPAWN])


class Killer:
    """Kills controllers of one search after another; forced instants take turns."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._forced: Counter[str] = Counter()

    def disturb(self, search: Search, wanted: int) -> Counter[str]:
        """Kill the controllers of a search up to `wanted` times, then let it finish."""
        kills: Counter[str] = Counter()
        tools = self._tools(search) if search.executor == "slurm" else None
        while kills.total() < wanted:
            kind = self._choose(search.executor)
            if kind == UNIFORM:
                found = self._kill_by_clock(search, search.start(), UNIFORM_WITHIN_S)
            else:
                found = self._kill_inside(search, kind, tools)
                self._forced[kind] += 1
            if found is None:
                return kills
            kills[found] += 1
        search.finish()
        return kills

    def _choose(self, executor: str) -> str:
        if self._chance.random() < 0.5:
            return UNIFORM
        kinds = kinds_of(executor)
        least = min(self._forced[kind] for kind in kinds)
        return self._chance.choice([kind for kind in kinds if self._forced[kind] == least])

    def _kill_by_clock(
        self,
        search: Search,
        process: subprocess.Popen[bytes],
        within_s: float,
        kind: str = UNIFORM,
    ) -> str | None:
        """Kill a controller by the clock; None when it reached the search's end before.

        `kind` is what is returned when it dies by itself after all.
        """
        try:
            code = process.wait(self._chance.uniform(0.0, within_s))
        except subprocess.TimeoutExpired:
            search.kill(process)
            return UNIFORM
        if code == -signal.SIGKILL:
            return kind
        if code != 0:
            raise Fault(f"a controller ended with exit code {code}\n{search.words(process)}")
        return None

    def _kill_inside(self, search: Search, kind: str, tools: Path | None) -> str | None:
        """Let a controller die at a chosen instant; return the instant at which it did."""
        options: list[str] = []
        if tools is not None and kind in SBATCH:
            (tools / "next").write_text(SBATCH[kind] + "\n", encoding="ascii")
        elif kind == SPAWN:
            options = ["--die", f"spawn:{self._chance.choice(['before', 'after'])}:1"]
        else:
            name, _, moment = kind.partition(", ")
            count = self._chance.randint(1, INSIDE[name])
            options = ["--die", f"{name}:{moment.removesuffix(' it')}:{count}"]
        process = search.start(options=options)
        try:
            if process.wait(INSIDE_WITHIN_S) == -signal.SIGKILL:
                return kind
        except subprocess.TimeoutExpired:
            pass
        if tools is not None:
            (tools / "next").unlink(missing_ok=True)
        return self._kill_by_clock(search, process, 1.0, kind)

    def _tools(self, search: Search) -> Path:
        """Put an sbatch before the real one that kills its caller when told to."""
        tools = search.folder / "tools"
        tools.mkdir(exist_ok=True)
        wrapper = tools / "sbatch"
        real = shutil.which("sbatch")
        wrapper.write_text(_WRAPPER.format(folder=tools, sbatch=real), encoding="utf-8")
        wrapper.chmod(0o755)
        search.environment["PATH"] = f"{tools}:{search.environment['PATH']}"
        return tools


def shapes(seed: int, count: int) -> list[Shape]:
    """Return `count` searches of several sizes, most of them with failing configurations."""
    sizes = [(6, 4), (8, 3), (4, 6), (5, 5), (7, 4)]
    shares = [0.35, 0.2, 0.35, 0.0, 0.35]
    return [
        Shape(
            population=sizes[i % 5][0],
            generations=sizes[i % 5][1],
            seed=seed + i,
            faults=shares[i % 5],
        )
        for i in range(count)
    ]
