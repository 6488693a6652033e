"""Controllers killed by SIGKILL at random and at chosen instants, again and again."""

import random
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

from campaign.search import Search, Shape, wait_for

UNIFORM = "at a random instant"
EARLY = "at a random instant of its start"

# A uniform kill comes within this time from the controller's first event, or from its start.
UNIFORM_WITHIN_S = 3.0

# Of uniform kills, those that may come before the controller has written anything.
EARLY_SHARE = 0.25

# A controller that did not come to the chosen call within this time is killed by the clock. It is
# long because a generation may have to end before the optimizer is told.
INSIDE_WITHIN_S = 60.0

# Inside these, before or after the call itself, at one of the first so many of a controller's life.
INSIDE = {"fsync": 16, "link": 1, "replace": 5, "tell": 1, "worker": 1}

# Of a hundred kills, so many are aimed at each call.
AIMED = {"fsync": 4, "link": 4, "replace": 4, "tell": 4, "worker": 4, "sbatch": 8}

SBATCH = {
    "sbatch, before Slurm hears of it": "before",
    "sbatch, after Slurm accepted": "after",
    "sbatch, Slurm accepts after the kill": "late",
}

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


def aims(executor: str, kills: int) -> Counter[str]:
    """Return how many of so many kills are to come at each chosen instant."""
    names = [name for name in INSIDE if name != "worker" or executor == "local"]
    kinds = [f"{name}, {moment} it" for name in names for moment in ("before", "after")]
    kinds += list(SBATCH) if executor == "slurm" else []
    return Counter({kind: -(-AIMED[kind.partition(",")[0]] * kills // 100) for kind in kinds})


class Killer:
    """Kills the controllers of one search after another, `kills` times in all.

    In each search the kills that are aimed at calls come first: later it has none left.
    """

    def __init__(self, chance: random.Random, executor: str, kills: int, searches: int) -> None:
        self._chance = chance
        self._missing = aims(executor, kills)
        self._searches = searches

    def disturb(self, search: Search, wanted: int, kills: Counter[str]) -> str:
        """Kill the controllers of a search up to `wanted` times, then let it finish."""
        tools = self._tools(search) if search.executor == "slurm" else None
        plan = self._plan(wanted)
        while kills.total() < wanted:
            if plan:
                found = self._kill_inside(search, plan.pop(), tools)
            else:
                found = self._kill_at_random(search)
            if found is None:
                return ""
            kills[found] += 1
            self._missing[found] -= 1
        search.finish()
        return ""

    def _plan(self, wanted: int) -> list[str]:
        """Return this search's share of what is missing, the last one first.

        Calls that a generation has one of come last, as each takes the search further; and a third
        of the kills is left to the clock.
        """
        share = [
            kind
            for kind, count in self._missing.items()
            for _ in range(-(-max(count, 0) // max(self._searches, 1)))
        ]
        self._searches -= 1
        self._chance.shuffle(share)
        return sorted(share[: -(-2 * wanted // 3)], key=_is_frequent)

    def _kill_at_random(self, search: Search) -> str | None:
        """Kill a controller at a random instant; None when it reached the search's end before."""
        path = search.run_folder / "ledger.jsonl"
        before = path.stat().st_size if search.exists else 0
        process = search.start()
        if self._chance.random() < EARLY_SHARE:
            return self._kill_by_clock(search, process, UNIFORM_WITHIN_S, EARLY)
        wait_for(
            lambda: process.poll() is not None or (search.exists and path.stat().st_size > before),
            "a controller to begin",
        )
        return self._kill_by_clock(search, process, UNIFORM_WITHIN_S, UNIFORM)

    def _kill_by_clock(
        self, search: Search, process: subprocess.Popen[bytes], within_s: float, kind: str
    ) -> str | None:
        """Kill a controller within a time; None when it reached the search's end before."""
        try:
            process.wait(self._chance.uniform(0.0, within_s))
        except subprocess.TimeoutExpired:
            search.kill(process)
            return kind
        search.expect(process, 0)
        return None

    def _kill_inside(self, search: Search, kind: str, tools: Path | None) -> str | None:
        """Let a controller die at a chosen instant; return the instant at which it did."""
        options: list[str] = []
        if tools is not None and kind in SBATCH:
            (tools / "next").write_text(SBATCH[kind] + "\n", encoding="ascii")
        else:
            name, _, moment = kind.partition(", ")
            count = self._chance.randint(1, INSIDE[name])
            point = "submit" if name == "worker" else name
            options = ["--die", f"{point}:{moment.removesuffix(' it')}:{count}"]
        process = search.start(options=options)
        try:
            code: int | None = process.wait(INSIDE_WITHIN_S)
        except subprocess.TimeoutExpired:
            search.kill(process)
            code = None
        if tools is not None:
            (tools / "next").unlink(missing_ok=True)
        if code == -signal.SIGKILL:
            return kind
        if code is None:
            return UNIFORM
        search.expect(process, 0)
        return None

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


def _is_frequent(kind: str) -> bool:
    return kind.startswith(("fsync", "link", "replace"))


def shapes(seed: int, count: int, *, is_quick: bool) -> list[Shape]:
    """Return `count` searches of several sizes, most of them with failing configurations."""
    sizes = [(4, 3)] if is_quick else [(6, 4), (8, 3), (4, 6), (5, 5), (7, 4)]
    shares = [0.35, 0.2, 0.35, 0.0, 0.35]
    return [
        Shape(
            population=sizes[i % len(sizes)][0],
            generations=sizes[i % len(sizes)][1],
            seed=seed + i,
            faults=shares[i % 5],
            seconds=(0.0, 1.0) if is_quick else (0.0, 2.0),
        )
        for i in range(count)
    ]
