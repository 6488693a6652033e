"""The comparison of asynchronous and generational searches on simulated GPUs."""

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from elmanctl.replay.functions import FunctionSource
from elmanctl.replay.objective import Objective
from elmanctl.search.optimizers.port import Point, Result

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("asynchrony")


@pytest.fixture
def objective() -> Objective:
    """A function without invalid points."""
    return FunctionSource(name="quadratic").at(1)


class Listed:
    """An optimizer that asks listed points, then the last of them, and keeps what it is told."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = list(points)
        self.asked: list[Point] = []
        self.reports: list[list[Result]] = []
        self.most_pending = 0

    def ask(self, count: int, is_valid: Callable[[Point], bool]) -> list[Point]:
        """Return the next points."""
        first = len(self.asked)
        found = [self._points[min(n, len(self._points) - 1)] for n in range(first, first + count)]
        self.asked += found
        told = sum(map(len, self.reports))
        self.most_pending = max(self.most_pending, len(self.asked) - told)
        return found

    def report(self, results: Sequence[Result]) -> None:
        """Keep results."""
        self.reports.append(list(results))

    def replay(self, points: Sequence[Point], refused: int) -> None:
        """Do nothing."""


def points_of(objective: Objective, count: int) -> list[Point]:
    """Return points along the diagonal of the space, which train different configurations."""
    ranges = [axis.coordinate for axis in objective.axes]
    share = [(n + 0.5) / count for n in range(count)]
    return [tuple(c.low + s * (c.high - c.low) for c in ranges) for s in share]


def test_asynchronous_search_reports_each_point_alone_and_asks_one_at_once(
    script: ModuleType, objective: Objective
) -> None:
    asking = Listed(points_of(objective, 40))
    course = script.asynchronous(objective, asking, 3, 40)
    assert asking.asked == points_of(objective, 40)
    assert all(len(results) == 1 for results in asking.reports)
    assert sorted(point for ((point, _),) in asking.reports) == sorted(asking.asked)
    assert [point for ((point, _),) in asking.reports] != asking.asked
    assert asking.most_pending == script.GPUS
    assert course.ended == sorted(course.ended) and len(course.ended) == 40
    values = objective.surface.values(np.array(asking.asked))
    true = dict(zip(asking.asked, values, strict=True))
    apart = [abs(value - true[point]) for ((point, value),) in asking.reports]
    ranked_last = [each for each in apart if each > 5 * objective.noise]
    # One in twenty fails.
    assert 0 < len(ranked_last) < 8


def test_searches_of_a_pair_have_run_times_in_common(
    script: ModuleType, objective: Objective
) -> None:
    points = points_of(objective, 120)
    generational, asynchronous = (
        script.MODES[mode](objective, Listed(points), 3, 120)
        for mode in ("generational", "asynchronous")
    )
    # What starts first ends alike; then no GPU waits for the slowest of eight.
    assert asynchronous.ended[0] == generational.ended[0]
    assert all(asynchronous.end_of(n) <= generational.end_of(n) for n in range(1, 121))
    assert asynchronous.end_of(120) < 0.75 * generational.end_of(120)
    assert generational.end_of(130) == generational.ended[-1]


@pytest.mark.parametrize("mode", ["generational", "asynchronous"])
def test_search_that_asks_for_repeats_alone_comes_to_its_end(
    script: ModuleType, objective: Objective, mode: str
) -> None:
    (point,) = points_of(objective, 1)
    asking = Listed([point])
    course = script.MODES[mode](objective, asking, 3, 40)
    results = [result for results in asking.reports for result in results]
    assert len(course.ended) == 1
    assert len(results) == len(asking.asked) > 100
    assert {value for _, value in results} == {results[0][1]}


def test_share_is_that_after_which_the_average_regret_is_as_low(script: ModuleType) -> None:
    def pair(reached: float) -> object:
        regrets = [0.1 if share >= reached else 0.9 for share in script.SHARES]
        return script.Pair("a", goal=0.1, regrets=regrets, evaluations=1.0)

    pairs = [pair(0.3), pair(0.5), pair(0.8)]
    found = {name: column(pairs) for name, column in script.COLUMNS.items()}
    assert found == {"median regret": 0.5, "mean regret": 0.8, "median pair": 0.5}
    assert script.COLUMNS["mean regret"]([pair(math.inf)]) == math.inf


def test_table_has_a_row_for_each_number_of_evaluations_and_searches_are_kept(
    tmp_path: Path,
) -> None:
    kept = tmp_path / "cache.jsonl"
    command = [sys.executable, "asynchrony.py", "none.jsonl.gz", "--kind", "synthetic"]
    command += ["--optimizer", "random", "--objective", "cliff", "--objective", "steps"]
    command += ["--seeds", "2", "--cache", str(kept)]
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        lines = kept.read_text(encoding="utf-8").splitlines()
        assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 2 * 2 * 3
        # Half a line, as of a process that was killed, is no search.
        kept.write_text("\n".join(lines) + '\n{"key": "', encoding="utf-8")
    assert outputs[0] == outputs[1]
    rows = [line.split(" | ") for line in outputs[0].splitlines()[2:]]
    assert [row[:4] for row in rows] == [
        ["| `random`", "synthetic", "4", str(mark)] for mark in (30, 60, 120)
    ]
    assert all(0.5 < float(row[-1].removesuffix(" |")) < 0.9 for row in rows)
