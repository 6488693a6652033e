"""Runner: simulates many searches, in this process or in several, and caches their traces.

A cached search is not simulated again.  Its key holds the objective, the settings of the search and
the versions of the optimizer's libraries, but not the optimizer's own source.
Therefore the longest cached search of each optimizer is simulated once more: where it differs, all
of that optimizer are.
"""

import logging
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from types import ModuleType

from elmanctl.codec import encode
from elmanctl.errors import EnvironmentNotReady, UsageError
from elmanctl.replay.objective import Objective, Source
from elmanctl.replay.simulation import Trace, settings_of, simulate
from elmanctl.replay.trace_cache import TraceCache, key_of
from elmanctl.search.optimizers.registry import packages_of
from elmanctl.settings import SearchSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One search to simulate, on the objective that the source of this name has for the seed."""

    source: str
    optimizer: str
    seed: int
    budget: int
    population: int
    sigma: float | None = None

    @property
    def settings(self) -> SearchSettings:
        """The settings of the search; its first step size is the optimizer's own if not given."""
        return settings_of(
            self.optimizer,
            population=self.population,
            sigma=self.sigma,
            seed=self.seed,
            budget=self.budget,
        )


# Simulates one search on an objective.
Procedure = Callable[[Task, Objective], Trace]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulations:
    """Sources by name, and procedures for the optimizers that the registry has not."""

    sources: Mapping[str, Source]
    procedures: Mapping[str, Procedure]

    def simulate(self, task: Task) -> Trace:
        """Return the trace of a search; one that fails says why, so that others go on.

        Raises UsageError and EnvironmentNotReady: every other search would end so.
        """
        try:
            procedure = self.procedures.get(task.optimizer, _by_registry)
            return procedure(task, self.sources[task.source].at(task.seed))
        except (UsageError, EnvironmentNotReady):
            raise
        except Exception as exc:
            logger.info("a simulated search failed: %s", task, exc_info=True)
            error = f"{type(exc).__name__}: {exc}"
            return Trace(handed=(), trained=0, failed=0, generations=0, cpu_ms=0.0, error=error)

    def key(self, task: Task) -> str:
        """Return the key of a search in a cache."""
        is_own = task.optimizer in self.procedures
        packages = () if is_own else packages_of(task.optimizer)
        return key_of(
            {
                "objective": self.sources[task.source].at(task.seed).fingerprint,
                "packages": {name: _version(name) for name in packages},
                "search": str(task) if is_own else encode(task.settings),
            }
        )


def tasks_of(
    sources: Sequence[str],
    optimizers: Sequence[str],
    *,
    seeds: int,
    budgets: Sequence[int],
    population: int,
    sigma: float | None = None,
) -> list[Task]:
    """Return every search of a comparison: each optimizer gets the same seeds, from 1."""
    return [
        Task(
            source=source,
            optimizer=optimizer,
            seed=seed,
            budget=budget,
            population=population,
            sigma=sigma,
        )
        for budget in budgets
        for source in sources
        for optimizer in optimizers
        for seed in range(1, seeds + 1)
    ]


def run_tasks(
    simulations: Simulations, tasks: Sequence[Task], cache: TraceCache, *, processes: int
) -> Iterator[tuple[Task, Trace]]:
    """Yield every search with its trace as it ends; those in the cache come first."""
    keys = {task: simulations.key(task) for task in tasks}
    stale = _stale(simulations, keys, cache)
    cached = {
        task: trace
        for task, key in keys.items()
        if task.optimizer not in stale and (trace := cache.get(key)) is not None
    }
    yield from cached.items()
    waiting = [task for task in keys if task not in cached]
    for task, trace in _simulated(simulations, waiting, processes):
        if trace.error is None:
            cache.add(keys[task], _about(task), trace)
        yield task, trace


def _simulated(
    simulations: Simulations, waiting: Sequence[Task], processes: int
) -> Iterator[tuple[Task, Trace]]:
    if processes == 1 or len(waiting) <= 1:
        for task in waiting:
            yield task, simulations.simulate(task)
        return
    # Not forked: libraries for arrays have threads of their own.
    context = multiprocessing.get_context("spawn")
    count = min(processes, len(waiting))
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(simulations,))
    try:
        with _without_main():
            futures = {pool.submit(_simulate, task): task for task in waiting}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as exc:
        raise EnvironmentNotReady(
            "a process of the replay was ended from outside",
            hint="where memory is short, use fewer `--processes`; `--cache` keeps what is done",
        ) from exc
    finally:
        pool.shutdown(cancel_futures=True)


def _stale(simulations: Simulations, keys: Mapping[Task, str], cache: TraceCache) -> frozenset[str]:
    """Return the optimizers whose longest cached search is not what they do now."""
    longest: dict[str, Task] = {}
    for task, key in keys.items():
        known = longest.get(task.optimizer)
        if cache.get(key) is not None and (known is None or task.budget > known.budget):
            longest[task.optimizer] = task
    found = set()
    for optimizer, task in longest.items():
        now, before = simulations.simulate(task), cache.get(keys[task])
        assert before is not None
        if replace(now, cpu_ms=before.cpu_ms) != before:
            logger.warning("cached searches of %s are not what it does now", optimizer)
            found.add(optimizer)
    return frozenset(found)


def _by_registry(task: Task, objective: Objective) -> Trace:
    return simulate(objective, task.settings)


def _about(task: Task) -> dict[str, object]:
    return {
        "source": task.source,
        "optimizer": task.optimizer,
        "seed": task.seed,
        "budget": task.budget,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# What a process of the pool simulates with.
_own: list[Simulations] = []


def _begin(simulations: Simulations) -> None:
    # Ctrl-C in a terminal reaches every process; the first one has the say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _own[:] = [simulations]


@contextmanager
def _without_main() -> Iterator[None]:
    """Start processes that do not import the program's main file, which may run the program."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _simulate(task: Task) -> Trace:
    return _own[0].simulate(task)
