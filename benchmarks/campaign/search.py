"""One search with stand-in workers: starting its controllers, and judging what came of it."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.state import load_run

ROOT = Path(__file__).parents[2]

# No life of a controller in a campaign takes longer.
PATIENCE_S = 300.0

_T = TypeVar("_T")


class Fault(Exception):
    """Something that the product promises and that did not hold."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A search: its size, its seed, and what its trainings are like.

    `faults` is the share of configurations that fail, `seconds` the least and the most time that
    one training takes.
    """

    population: int
    generations: int
    seed: int
    faults: float = 0.0
    seconds: tuple[float, float] = (0.0, 2.0)

    @property
    def name(self) -> str:
        """A name for people and for folders."""
        return f"{self.generations}x{self.population}-seed{self.seed}"


class Search:
    """The folder of one search and the processes that drive it.

    `checkout` is whose code the controllers run; the stand-in workers stay those of the first.
    """

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        executor: str,
        *,
        environment: Mapping[str, str] | None = None,
        settings: str | None = None,
        checkout: Path = ROOT,
    ) -> None:
        folder = folder.resolve()
        self.folder = folder
        self.shape = shape
        self.executor = executor
        self.run_folder = folder / "runs" / "run"
        self.log = folder / "workers.log"
        self.checkout = checkout
        self._worker = checkout / "benchmarks" / "campaign" / "worker"
        self._outputs: dict[int, Path] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        (folder / "elman.toml").write_text(settings or SETTINGS, encoding="utf-8")
        corpus = folder / "corpus.bytes"
        text = Path(sysconfig.get_path("stdlib"), "turtle.py").read_bytes()
        # Many short documents, of which some are held out.
        corpus.write_bytes(text.replace(b"\n\n", b"\x1e"))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("ELMAN_")} | {
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": self._python_path(),
            "STANDIN_LOG": str(self.log),
            "STANDIN_FAULTS": str(shape.faults),
            "STANDIN_SECONDS": "{},{}".format(*shape.seconds),
            **(environment or {}),
        }

    def _python_path(self) -> str:
        return f"{self.checkout}{os.pathsep}{self._worker}"

    @property
    def exists(self) -> bool:
        """Whether there is a ledger: before that, `search` is what goes on."""
        return (self.run_folder / "ledger.jsonl").exists()

    def next_arguments(self) -> list[str]:
        """Return the command that takes the search further."""
        if self.exists:
            return ["resume", "run"]
        if self.run_folder.exists():
            # A `search` that died before its first event left a folder in which nothing stands;
            # the command would name it and ask to remove it.
            subprocess.run(["rm", "-r", str(self.run_folder)], check=True)
        shape = self.shape
        return [
            *("search", "e88", "--preset", "tiny", "--yes", "--name", "run"),
            *("--generations", str(shape.generations), "--population", str(shape.population)),
            *("--seed", str(shape.seed), "--data", str(self.folder / "corpus.bytes")),
            *(["--local"] if self.executor == "local" else []),
        ]

    def start(
        self, arguments: Sequence[str] | None = None, *, options: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a controller, with `options` of dying.py, in a session of its own."""
        words = list(self.next_arguments() if arguments is None else arguments)
        dying = self.checkout / "benchmarks" / "campaign" / "dying.py"
        program = [str(dying), *options, "--"] if options else ["-m", "elmanctl"]
        # The checkout may be another one by now.
        code = {"PYTHONPATH": self._python_path()}
        path = self.folder / f"controller-{len(self._outputs):03}.log"
        with path.open("wb") as output:
            output.write(f"{' '.join([*options, *words])}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [sys.executable, *program, *words],
                cwd=self.folder,
                env=self.environment | code,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._outputs[process.pid] = path
        return process

    def finish(self, timeout_s: float = PATIENCE_S) -> None:
        """Drive the search to its end; raise Fault if that does not end well."""
        process = self.start()
        self.expect(process, 0, timeout_s)

    def expect(
        self, process: subprocess.Popen[bytes], wanted: int, timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait for a controller's end; raise Fault when its exit code is another one."""
        code = self.wait(process, timeout_s)
        if code != wanted:
            raise Fault(f"a controller ended with exit code {code}\n{self.words(process)}")

    def wait(self, process: subprocess.Popen[bytes], timeout_s: float = PATIENCE_S) -> int:
        """Return a controller's exit code, negative for a signal; kill it if it takes too long."""
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Fault(f"not ended after {timeout_s:.0f} s\n{self.words(process)}") from None

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill one controller, and nothing that it started."""
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def words(self, process: subprocess.Popen[bytes]) -> str:
        """Return the last words of a controller."""
        return self._outputs[process.pid].read_bytes()[-1500:].decode(errors="replace")

    def state(self) -> RunState:
        """Return the run's state as its ledger tells it."""
        return load_run(self.run_folder).state

    def trainings(self) -> list[tuple[str, int, str, str]]:
        """Return (evaluation, attempt, job, what happened) as the workers wrote them."""
        rows = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            evaluation, attempt, job, what = line.split(" ", 3)
            rows.append((evaluation, int(attempt), job, what))
        return rows


def wait_for(look: Callable[[], _T | None], what: str, timeout_s: float = 120.0) -> _T:
    """Return what `look` finds as soon as it finds something; raise Fault if it never does."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise Fault(f"waited {timeout_s:.0f} s for {what}")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A disturbed search against an undisturbed one of the same seed.

    `lost` counts evaluations that are missing, ended in another state, or count as completed
    though no worker finished them; `duplicated` trainings that were done again without need.
    """

    evaluations: int
    lost: int
    duplicated: int
    same: bool
    why: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, nothing was done twice, and the points are the same."""
        return self.same and self.lost == 0 and self.duplicated == 0


def judge(search: Search, reference: Search, *, more_attempts: bool = False) -> Judgement:
    """Compare a search with its undisturbed twin, by ledger and by the workers' own log.

    With `more_attempts` an evaluation may have been tried more often than in the twin, as after
    the loss of a node: then no attempt may train twice and no evaluation complete twice.
    """
    seen, wanted = search.state(), reference.state()
    done = Counter(e for e, _, _, what in search.trainings() if what == "end completed")
    twin = Counter(e for e, _, _, what in reference.trainings() if what == "end completed")
    lost = sorted(
        name
        for name, evaluation in wanted.evaluations.items()
        if name not in seen.evaluations
        or seen.evaluations[name].state is not evaluation.state
        or done[name] < twin[name]
    )
    repeated = _repeated(search, reference, more_attempts) + list((done - twin).elements())
    same = _sequence(seen) == _sequence(wanted) and seen.status is RunStatus.FINISHED
    why = [f"lost: {lost}"] if lost else []
    why += [f"trained again: {repeated}"] if repeated else []
    why += [] if same else [f"points or told values differ, status {seen.status}"]
    return Judgement(
        evaluations=len(seen.evaluations),
        lost=len(lost),
        duplicated=len(repeated),
        same=same,
        why="; ".join(why),
    )


def judge_alone(search: Search) -> Judgement:
    """Judge an asynchronous search, whose points depend on when its trainings ended.

    Each place is decided, each completed evaluation was trained to its end once and reported once,
    and no attempt began twice.
    """
    state, rows = search.state(), search.trainings()
    done = Counter(e for e, _, _, what in rows if what == "end completed")
    starts = Counter((e, n) for e, n, _, what in rows if what == "start")
    completed = {e.id for e in state.evaluations.values() if e.state is State.COMPLETED}
    places = search.shape.population * search.shape.generations
    searched = [e for e in state.evaluations.values() if e.confirms is None]
    asked = sum(e.replaces is None for e in searched)
    lost = [name for name in completed if not done[name] and not state.evaluations[name].answer]
    lost += [e.id for e in searched if e.id in completed and e.id not in state.reported]
    lost += [e.id for e in state.evaluations.values() if not e.state.is_finished]
    repeated = [f"{e}/{n}" for (e, n), count in starts.items() if count > 1]
    repeated += [name for name, count in done.items() if count > 1]
    same = asked == places and state.status is RunStatus.FINISHED
    why = [f"lost: {lost}"] if lost else []
    why += [f"trained again: {repeated}"] if repeated else []
    why += [] if same else [f"{asked} places of {places} were asked, status {state.status}"]
    return Judgement(
        evaluations=len(state.evaluations),
        lost=len(lost),
        duplicated=len(repeated),
        same=same,
        why="; ".join(why),
    )


def _repeated(search: Search, reference: Search, more_attempts: bool) -> list[str]:
    starts = Counter((e, n) for e, n, _, what in search.trainings() if what == "start")
    if more_attempts:
        return [f"{e}/{n}" for (e, n), count in starts.items() if count > 1]
    twin = Counter((e, n) for e, n, _, what in reference.trainings() if what == "start")
    return [f"{e}/{n}" for e, n in (starts - twin).elements()]


def _sequence(state: RunState) -> object:
    """Everything that the optimizer was asked and told, in order."""
    asked = [(e.id, e.generation, e.point, e.loss, e.replaces) for e in state.evaluations.values()]
    return asked, {generation: list(told) for generation, told in state.told.items()}


class References:
    """Undisturbed searches on this machine, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Shape, Search] = {}

    def of(self, shape: Shape) -> Search:
        """Return the undisturbed twin of every search of this shape."""
        if shape not in self._known:
            quick = Shape(
                population=shape.population,
                generations=shape.generations,
                seed=shape.seed,
                faults=shape.faults,
                seconds=(0.0, 0.1),
            )
            search = Search(self._folder / f"{shape.name}-faults{shape.faults}", quick, "local")
            search.finish()
            self._known[shape] = search
        return self._known[shape]


SETTINGS = """\
[train]
heartbeat_s = 0.5

[slurm]
partition = "gpu"
mem_gb = 0.3
poll_s = 1.0

[local]
workers = 4

[retry]
replacements = 8
breaker = 1000

[disk]
floor_gb = 0.0
"""
