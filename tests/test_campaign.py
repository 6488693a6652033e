"""What the campaign of benchmarks/reliability.py promises without a run of it."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from elmanctl.jobs.evaluation import _Evaluation, evaluate_attempt
from elmanctl.ledger.files import encode_json
from elmanctl.run.paths import RunPaths
from elmanctl.run.spec import AttemptSpec
from elmanctl.verdicts.signature import normalised

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package of the campaign, importable for one test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "campaign" / "worker"))
    return importlib.import_module("campaign")


def test_the_stand_in_is_called_as_the_training_it_replaces(campaign: ModuleType) -> None:
    standin = importlib.import_module("standin")
    replaced = inspect.signature(_Evaluation._train).parameters
    assert list(inspect.signature(standin._train).parameters) == list(replaced)


def test_the_stand_in_reads_what_a_worker_is_asked(
    campaign: ModuleType,
    make_spec: Callable[..., AttemptSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standin = importlib.import_module("standin")
    monkeypatch.setattr(_Evaluation, "_train", standin._train)
    log = tmp_path / "workers.log"
    for name, value in (("LOG", str(log)), ("FAULTS", "0"), ("SECONDS", "0,0")):
        monkeypatch.setenv(f"STANDIN_{name}", value)
    paths = RunPaths(tmp_path).attempt("g000-e00", 1)
    paths.folder.mkdir(parents=True)
    paths.spec.write_bytes(encode_json(make_spec().encode()))
    result = evaluate_attempt(str(paths.folder))
    assert result["loss"] == standin.plan("e88", {}, 1e-2, 3, 0.0).loss
    assert log.read_text(encoding="utf-8").splitlines()[-1].endswith("end completed")


def test_the_stand_in_needs_no_torch(
    make_spec: Callable[..., AttemptSpec], tmp_path: Path, environment: dict[str, str]
) -> None:
    """Else a job of it takes as long as one that trains."""
    paths = RunPaths(tmp_path).attempt("g000-e00", 1)
    paths.folder.mkdir(parents=True)
    paths.spec.write_bytes(encode_json(make_spec().encode()))
    variables = {"LOG": str(tmp_path / "workers.log"), "FAULTS": "0", "SECONDS": "0,0"}
    code = (
        "import sys, standin; from elmanctl.jobs.evaluation import evaluate_attempt; "
        "standin.install(); evaluate_attempt(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    worker = BENCHMARKS / "campaign" / "worker"
    path = f"{environment['PYTHONPATH']}{os.pathsep}{worker}"
    subprocess.run(
        [sys.executable, "-c", code, str(paths.folder)],
        env={
            **environment,
            "PYTHONPATH": path,
            **{f"STANDIN_{name}": value for name, value in variables.items()},
        },
        check=True,
    )
    assert paths.result.exists()


def test_stand_ins_fail_in_words_of_their_own(campaign: ModuleType) -> None:
    standin = importlib.import_module("standin")
    told = {normalised(standin.plan("e88", {"dim": dim}, 0.01, 1, 1.0).words) for dim in range(100)}
    assert len(told) == 100


def test_a_fault_is_in_the_results_and_in_the_table(campaign: ModuleType, tmp_path: Path) -> None:
    parts = importlib.import_module("campaign.parts")
    record = importlib.import_module("campaign.record")
    report = importlib.import_module("campaign.report")
    shape = importlib.import_module("campaign.search").Shape(population=4, generations=1, seed=1)
    path = tmp_path / "results.json"
    results = record.Results(path, go_on=False)
    told: list[str] = []
    campaign = parts.Campaign(tmp_path, results, seed=1, say=told.append)
    kinds = Counter({"at a random instant": 3})
    campaign._fault("kills", "local", 0, shape, 0.0, kinds, ValueError("damaged\nin line 3"))

    (kept,) = json.loads(path.read_text(encoding="utf-8"))["trials"]
    assert kept["times"] == 3
    assert "damaged" in kept["fault"]
    assert campaign.faults
    table = report.generated(record.Results(path, go_on=True))
    (row,) = [line for line in table.splitlines() if "killed by SIGKILL" in line]
    assert [cell.strip() for cell in row.split("|")][-4:-2] == ["0 of 1", "1"]
    assert "- kills, one machine, search 0: ValueError" in table


def test_campaigns_at_one_time_add_to_one_file(campaign: ModuleType, tmp_path: Path) -> None:
    record = importlib.import_module("campaign.record")
    path = tmp_path / "results.json"
    one, other = (record.Results(path, go_on=True) for _ in range(2))
    for results, executor in ((one, "slurm"), (other, "local"), (one, "slurm")):
        results.add(_trial(record, executor))
    assert [t.executor for t in record.Results(path, go_on=True).trials] == [
        *("slurm", "local", "slurm")
    ]


def test_releases_of_slurm_stand_side_by_side(campaign: ModuleType, tmp_path: Path) -> None:
    record = importlib.import_module("campaign.record")
    report = importlib.import_module("campaign.report")
    path = tmp_path / "results.json"
    results = record.Results(path, go_on=False)
    for slurm in ("slurm-wlm 22.05.8", "slurm-wlm 24.11.5"):
        trial: Any = _trial(record, "slurm")
        results.add(replace(trial, slurm=slurm))
    # What was kept before there were several: the release stands above, once.
    data = json.loads(path.read_text(encoding="utf-8"))
    data["versions"]["slurm"] = data["trials"][0].pop("slurm")
    path.write_text(json.dumps(data), encoding="utf-8")

    table = report.generated(record.Results(path, go_on=True))
    rows = [line.split(" | ")[1] for line in table.splitlines() if "killed by SIGKILL" in line]
    assert rows == ["Slurm 22.05", "Slurm 24.11"]
    assert "slurm slurm-wlm 22.05.8 and slurm-wlm 24.11.5." in table


def test_verdicts_of_releases_stand_side_by_side(campaign: ModuleType, tmp_path: Path) -> None:
    table = importlib.import_module("campaign.verdict_table")
    row = {
        "case": "killed", "done": "`kill -9`", "expected": "killed", "verdict": "killed",
        "confidence": "likely", "cause": None, "holds": True,
    }  # fmt: skip
    cases = [
        row | {"accounting": accounting, "commit": "abc", "slurm": slurm}
        for slurm in ("slurm-wlm 24.11.5", "slurm-wlm 22.05.8")
        for accounting in (True, False)
    ]
    cases[0] |= {"verdict": "lost", "holds": False}
    text = table.generated({"cases": cases, "date": "2026-01-01", "machine": "one"})
    head, _, line = text.splitlines()[-3:]
    assert [cell.strip() for cell in head.split("|")[3:-1]] == [
        *("Slurm 22.05", "Slurm 22.05, no accounting"),
        *("Slurm 24.11", "Slurm 24.11, no accounting"),
    ]
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [
        *("likely", "likely", "**`lost`**, likely", "likely")
    ]
    assert len({table._key(case) for case in cases}) == 4


def test_trials_of_another_product_are_not_continued(campaign: ModuleType, tmp_path: Path) -> None:
    record = importlib.import_module("campaign.record")
    path = tmp_path / "results.json"
    record.Results(path, go_on=False).add(_trial(record, "local"))
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**data, "product": "other"}), encoding="utf-8")
    with pytest.raises(record.OtherCode):
        record.Results(path, go_on=True)


def test_a_full_campaign_aims_eight_kills_at_every_instant(campaign: ModuleType) -> None:
    kills = importlib.import_module("campaign.kills")
    on_slurm, on_one_machine = (kills.aims(name, 100) for name in ("slurm", "local"))
    both = on_slurm + on_one_machine
    assert set(kills.SBATCH) <= set(on_slurm)
    assert min(both.values()) >= 4
    assert all(count >= 8 for kind, count in both.items() if not kind.startswith("worker"))
    # The others come by the clock.
    assert on_slurm.total() < 66
    assert on_one_machine.total() < 66


def _trial(record: ModuleType, executor: str) -> object:
    return record.Trial(
        part="kills", executor=executor, number=0, shape="1x1-seed1", times=1, kinds={},
        evaluations=1, lost=0, duplicated=0, same=True, seconds=1.0,
    )  # fmt: skip
