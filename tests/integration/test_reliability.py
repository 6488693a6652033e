"""A sample of the campaign of docs/reliability.md, on a real cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_ten_kills_of_controllers_on_slurm_lose_and_repeat_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "reliability.py")),
            *("--quick", "--slurm", "--folder", str(tmp_path)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "reliability.json").read_text(encoding="utf-8"))
    trials = results["trials"]
    assert sum(trial["times"] for trial in trials) == 10
    # One of the ten at least came by the clock, and one inside a call.
    kinds = {kind for trial in trials for kind in trial["kinds"]}
    by_the_clock = {kind for kind in kinds if kind.startswith("at a random instant")}
    assert by_the_clock and kinds - by_the_clock
    for trial in trials:
        assert (trial["lost"], trial["duplicated"], trial["same"]) == (0, 0, True), trial


@pytest.mark.slurm
@pytest.mark.slow
def test_small_soak_breaks_no_promise(tmp_path: Path, environment: dict[str, str]) -> None:
    config = subprocess.check_output(["scontrol", "show", "config"], text=True)
    is_limited = "AccountingStorageEnforce = associations,limits" in config
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--no-table"),
            *("--folder", str(tmp_path / "soak"), "--results", str(tmp_path / "soak.json")),
            *("--evaluations", "8", "--population", "8", "--settled", "1000"),
            *("--seconds", "4", "6"),
            *("--submit-limit", "3" if is_limited else "0", "--poll-s", "5", "--hours", "0.2"),
            # A node's failure costs a minute until it is seen; test_slurm.py has one.
            *("--restart-s", "25", "--node-s", "1000", "--renew-s", "15"),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    # Those of the search, and the best two of them on two fresh seeds each.
    assert results["completed"] == 8 + 2 * 2
    disturbed = results["disturbed"]
    assert disturbed["allocations renewed"] >= 1
    assert disturbed["controllers"] >= 2
