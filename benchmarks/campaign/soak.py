"""A long search on a cluster where something is always failing, and what is measured on it."""

import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from campaign.allocation import Allocation, node_of_controller
from campaign.cluster import slurmbox
from campaign.counting import Counters, per_minute
from campaign.search import Search, Shape
from campaign.soak_judge import judge
from elmanctl.ledger.lease import read_holder
from elmanctl.ledger.records import RunStatus

# After this many evaluations the memory of a controller is taken as the one to compare with.
SETTLED = 100
# By then a controller has read the ledger, has looked and has submitted.
_BEGUN_S = 20.0

# srun waits for a node that is gone until slurmctld has given it up.
_HANGS_S = 60.0

# With the default of an hour, of four nodes that fail in turn three would always be avoided.
_SETTINGS = """\
[slurm]
partition = "gpu"
mem_gb = 0.3
poll_s = {}

[retry]
exclude_min = 5
"""

# What a user waits before starting a controller again that could not be started.
_AGAIN_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how hard: periods in seconds, `poll_s` that of the product."""

    evaluations: int
    population: int
    submit_limit: int
    restart_s: float
    node_s: float
    node_back_s: float
    renew_s: float
    poll_s: float
    seconds: tuple[float, float]
    settled: int = SETTLED
    seed: int = 1

    @property
    def queries_a_minute(self) -> float:
        """The most that the product may ask: two commands in each interval."""
        return 2 * 60 / self.poll_s


@dataclass
class Life:
    """One controller: how many evaluations were done when it was first and last seen, and MB.

    `since_s` is when it was first seen, by the monotonic clock.
    """

    command: str
    first_done: int
    last_done: int
    peak_mb: float
    since_s: float


class Memory:
    """The most that each controller had resident.

    `search` and `resume` are compared each with its own kind: only the first plans a search, for
    which it loads more.
    """

    def __init__(self, settled: int) -> None:
        self._settled = settled
        self._lives: dict[int, Life] = {}
        self.settled_mb: dict[str, float] = {}

    def note(self, pid: int, done: int) -> None:
        """Look at one process, unless it has just ended."""
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return
        found = dict(line.split(":", 1) for line in text.splitlines()).get("VmHWM")
        command = next((word for word in ("search", "resume") if word.encode() in words), None)
        if found is None or command is None:
            return
        most_mb = round(int(found.split()[0]) / 1024, 1)
        life = self._lives.setdefault(pid, Life(command, done, done, most_mb, time.monotonic()))
        life.last_done, life.peak_mb = done, max(life.peak_mb, most_mb)
        has_begun = time.monotonic() - life.since_s >= _BEGUN_S
        if done >= self._settled and has_begun:
            self.settled_mb.setdefault(command, self.peak_mb(command))

    def peak_mb(self, command: str) -> float:
        """Return the most that any controller of this command had."""
        return max((x.peak_mb for x in self._lives.values() if x.command == command), default=0.0)

    def encode(self) -> dict[str, Any]:
        """Return plain data: by command, and each controller in turn."""
        peaks = {command: self.peak_mb(command) for command in self.settled_mb}
        growth = [peaks[command] / mb for command, mb in self.settled_mb.items()]
        return {
            "settled_mb": self.settled_mb,
            "peak_mb": peaks,
            "growth": round(max(growth), 3) if growth else None,
            "controllers": [
                f"{life.command} from {life.first_done} to {life.last_done} done: {life.peak_mb} MB"
                for life in self._lives.values()
            ],
        }


class Soak:
    """The search, the disturbances, and the looks at both."""

    def __init__(self, folder: Path, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._chance = random.Random(plan.seed)
        folder.mkdir(parents=True, exist_ok=True)
        self._counters = Counters(folder)
        shape = Shape(
            population=plan.population,
            generations=-(-plan.evaluations // plan.population),
            seed=plan.seed,
            seconds=plan.seconds,
        )
        self.search = Search(
            folder / "search",
            shape,
            "slurm",
            environment=self._counters.environment,
            settings=_SETTINGS.format(plan.poll_s),
        )
        self._memory = Memory(plan.settled)
        self._done: set[str] = set()
        self._read_bytes = 0
        self._counts: Counter[str] = Counter()
        self._unplanned: list[str] = []
        self._allocation: Allocation | None = None
        self._planned_end = False
        self._start_at_s = 0.0
        self._returns: dict[str, float] = {}

    def run(self, limit_s: float) -> dict[str, Any]:
        """Run to the search's end, or to the limit; return what was seen and how it is judged."""
        begin_s = time.monotonic()
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        due_s = {
            self._restart_slurmctld: begin_s + self._plan.restart_s,
            self._fail_a_node: begin_s + self._plan.node_s,
            self._renew: begin_s + self._plan.renew_s,
        }
        periods_s = (self._plan.restart_s, self._plan.node_s, self._plan.renew_s)
        every_s = dict(zip(due_s, periods_s, strict=True))
        told_s = begin_s
        with self._cleaned_up():
            while time.monotonic() - begin_s < limit_s and not self._is_finished():
                for act, at_s in due_s.items():
                    if time.monotonic() >= at_s:
                        due_s[act] = time.monotonic() + every_s[act]
                        act()
                self._bring_nodes_back()
                self._look()
                if time.monotonic() - told_s > 60:
                    told_s = time.monotonic()
                    self._tell(told_s - begin_s)
                time.sleep(0.5)
        seconds = time.monotonic() - begin_s
        self._tell(seconds)
        counted = self._counters.read()
        seen = {
            "began": began,
            "seconds": round(seconds),
            "plan": asdict(self._plan),
            "disturbed": dict(self._counts),
            "unplanned_ends": self._unplanned,
            "queries": counted.by_command,
            "queries_a_minute": round(per_minute(counted, seconds), 2),
            "most_queries_in_a_minute": counted.most_in_a_minute,
            **self._memory.encode(),
        }
        return seen | judge(self.search, self._plan, seen)

    def _is_finished(self) -> bool:
        """Whether the controller has ended well; one that ended otherwise is started again."""
        allocation = self._allocation
        if allocation is None:
            if time.monotonic() >= self._start_at_s:
                self._allocation = Allocation(self.search, self._counts["controllers"])
                self._counts["controllers"] += 1
                self._planned_end = False
            return False
        code = allocation.exit_code
        if code is None:
            return False
        if self.search.exists and self.search.state().status is RunStatus.FINISHED:
            return True
        if allocation.found_slurm_silent:
            # As `resume` says at once; who runs it tries again.
            self._counts["starts while slurmctld was away"] += 1
        elif not self._planned_end:
            self._unplanned.append(f"{allocation.kind}: exit code {code}: {allocation.words}")
            self._say(f"a controller ended: {self._unplanned[-1]}")
        self._allocation = None
        self._start_at_s = time.monotonic() + _AGAIN_S
        return False

    def _restart_slurmctld(self) -> None:
        slurmbox("stop", "slurmctld")
        time.sleep(self._chance.uniform(0.0, 5.0))
        slurmbox("start", "slurmctld")
        self._counts["slurmctld restarted"] += 1

    def _fail_a_node(self) -> None:
        nodes = subprocess.check_output(["sinfo", "-hN", "-p", "gpu", "-o", "%N"], text=True)
        node = self._chance.choice(sorted(set(nodes.split())))
        held = node == node_of_controller()
        slurmbox("kill-node", node)
        if held:
            self._expect_end()
            self._counts["controllers on that node"] += 1
        self._returns[node] = time.monotonic() + self._plan.node_back_s
        self._counts["nodes failed"] += 1

    def _bring_nodes_back(self) -> None:
        for node, at_s in list(self._returns.items()):
            if time.monotonic() >= at_s:
                slurmbox("start-node", node)
                del self._returns[node]

    def _renew(self) -> None:
        if self._allocation is None or self._allocation.exit_code is not None:
            return
        self._allocation.end(self._chance.choice(("TERM", "KILL")))
        self._expect_end()
        self._counts["allocations renewed"] += 1

    def _expect_end(self) -> None:
        """Wait for the client of a job that was ended; one that hangs is killed."""
        allocation = self._allocation
        assert allocation is not None
        end_s = time.monotonic() + _HANGS_S
        while allocation.exit_code is None and time.monotonic() < end_s:
            self._look()
            time.sleep(0.2)
        if allocation.exit_code is None:
            allocation.leave()
            self._counts["clients that hung"] += 1
        self._planned_end = True

    def _look(self) -> None:
        with self.search.log.open("rb") as stream:
            stream.seek(self._read_bytes)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.decode().splitlines():
            evaluation, _, _, what = line.split(" ", 3)
            if what == "end completed":
                self._done.add(evaluation)
        holder = read_holder(self.search.run_folder) if self.search.exists else None
        if holder is not None:
            self._memory.note(holder.pid, len(self._done))

    def _tell(self, seconds: float) -> None:
        queries = len(self._counters.read().times_s)
        self._say(
            f"{seconds / 60:.0f} min: {len(self._done)} done, {dict(self._counts)}, "
            f"{queries} queries, {self._memory.peak_mb('resume'):.1f} MB"
        )

    @contextmanager
    def _cleaned_up(self) -> Iterator[None]:
        """Leave no job and no client behind, and all daemons running."""
        try:
            yield
        finally:
            slurmbox("up")
            if self._allocation is not None:
                self._allocation.end("KILL")
                self._allocation.leave()
