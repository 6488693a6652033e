"""The comparison of optimizers on recorded searches, on a search that is made up."""

import gzip
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from elmanctl.replay.functions import FunctionSource
from elmanctl.replay.runner import Simulations, Task
from elmanctl.replay.simulation import Trace
from elmanctl.space.axis import Axis

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SPACE = {
    "n_heads": {"lo": 32.0, "hi": 96.0, "type": "int"},
    "dim": {"lo": 1000.0, "hi": 2048.0, "type": "int_mult128"},
    "headdim": {"lo": 32.0, "hi": 128.0, "type": "int_pow2"},
    "n_state": {"lo": 16.0, "hi": 64.0, "type": "e88_n_state"},
    "use_gate": {"lo": 0.0, "hi": 1.0, "type": "binary"},
    "dropout": {"lo": 0.0, "hi": 0.3, "type": "float"},
    "lr": {"lo": 1e-5, "hi": 1e-3, "type": "log"},
}


def made_up() -> dict[str, Any]:
    """A recorded search with repeats, a failure and a skipped point; smooth in three axes."""
    draw = np.random.default_rng(3)
    evaluations: list[dict[str, Any]] = []
    for number in range(60):
        params = {
            "n_heads": int(draw.integers(32, 97)),
            "dim": int(draw.integers(8, 17)) * 128,
            "headdim": int(2 ** draw.integers(5, 8)),
            "n_state": int(draw.integers(1, 5)) * 16,
            "use_gate": int(draw.integers(0, 2)),
            "dropout": float(draw.uniform(0, 0.3)),
            "lr": float(10 ** draw.uniform(-5, -3)),
        }
        loss = 1 + (params["n_heads"] - 50) ** 2 / 900 + (np.log10(params["lr"]) + 4) ** 2 / 3
        for _ in range(2 if number < 5 else 1):
            status = "diverged" if number == 20 else "skipped" if number == 30 else "loss"
            value = float(loss + params["use_gate"] / 5 + draw.normal(0, 0.01))
            evaluations.append({"params": params, "loss": value, "status": status})
    return {"path": "x/cmaes_3d/a", "model": "e88", "space": SPACE, "complete": True} | {
        "evals": evaluations
    }


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    """A file with the made-up search, and with two of which nothing is to be learnt."""
    path = tmp_path / "histories.jsonl.gz"
    searches = [made_up() | {"complete": False}, made_up() | {"evals": []}, made_up()]
    path.write_bytes(gzip.compress("".join(json.dumps(s) + "\n" for s in searches).encode()))
    return path


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("optimizers")


def test_axes_and_points_of_the_study_become_those_of_elmanctl(
    script: ModuleType, histories: Path
) -> None:
    (found,) = script.read_histories(histories)
    kinds = {axis.name: axis.kind for axis in found.axes}
    assert list(kinds.values()) == ["int", "int", "pow2", "choice", "bool", "float", "log"]
    assert found.axes[1] == Axis(name="dim", kind="int", low=1000, high=2048, multiple_of=128)
    assert found.name == "e88_3d" and len(found.losses) == 63 and len(found.invalid) == 1
    params = made_up()["evals"][7]["params"]
    values = [axis.value(x) for axis, x in zip(found.axes, found.losses[7][0], strict=True)]
    assert values == pytest.approx(list(params.values()))
    assert found.noise() is not None


def test_table_compares_every_optimizer_with_the_build_before(
    histories: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "optimizers.py", str(histories), "--kind", "recorded"]
    command += ["--optimizer", "random", "--seeds", "3", "--budgets", "30", "120"]
    command += ["--until", "random=30:2", "--cache", str(tmp_path / "cache.jsonl")]
    command += ["--values", str(tmp_path / "values.json")]
    done = subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| e88_3d | trees | 7 | 63 |" in done.stdout
    ratios = done.stdout.partition("Mean regret by")[2].partition("Regret of the point")[0]
    rows = [line.split(" | ") for line in ratios.splitlines()[4:] if line]
    assert [row[0] for row in rows] == ["| cma", "| study", "| random"]
    assert rows[0][1:] == ["6", "1", "1 |"] and rows[1][1] == "6"
    assert rows[2][1] == "4" and rows[2][2][0].isdigit() and rows[2][3] == "– |"
    # A search is there once, also where it answers for a smaller budget.
    lines = (tmp_path / "cache.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines})
    values = json.loads((tmp_path / "values.json").read_text(encoding="utf-8"))
    assert {row["optimizer"] for row in values} == {"cma", "study", "random"}
    assert all(row["low"] <= row["median"] <= row["high"] for row in values)


def test_evaluations_until_the_regret_of_another_are_found(script: ModuleType) -> None:
    simulations = Simulations(sources={"cliff": FunctionSource(name="cliff")}, procedures={})

    def traces(optimizer: str, *handed: tuple[int, float]) -> dict[Task, Trace]:
        task = Task(source="cliff", optimizer=optimizer, seed=1, budget=120, population=8)
        return {
            task: Trace(handed=handed, trained=120, failed=0, generations=15, cpu_ms=1.0),
        }

    before = traces("cma", (1, 0.9), (110, 0.2))
    assert script.reached(simulations, before, before).evaluations == 110
    assert script.reached(simulations, traces("a", (1, 0.9), (44, 0.2)), before).evaluations == 44
    found = script.reached(simulations, traces("b", (1, 0.9), (44, 0.3)), before)
    assert found.evaluations is None and found.high is None
