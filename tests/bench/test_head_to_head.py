"""benchmarks/head_to_head.sh: eight families of one size, a row for each, on a CPU."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from benchmarks import head_to_head
from benchmarks.head_to_head import AT_480M, REAL, SMALL, Row, main, markdown, misfits

ROOT = Path(__file__).parents[2]


def test_every_model_has_480_million_parameters_within_a_hundredth() -> None:
    assert len(AT_480M) == 8 and SMALL.configurations.keys() == AT_480M.keys()
    assert misfits(REAL, list(AT_480M)) == misfits(SMALL, list(AT_480M)) == []


def test_models_are_those_of_the_study_but_for_their_size() -> None:
    text = (ROOT / "benchmarks" / "study_best.toml").read_text(encoding="utf-8")
    best = tomllib.loads(text)
    for family, configuration in AT_480M.items():
        recorded = best[family]["config"] | best[family].get("trained", {})
        moved = {key for key, value in configuration.items() if recorded[key] != value}
        assert recorded.keys() == configuration.keys()
        assert moved <= {"dim", {"mamba2": "depth", "fla-gdn": "n_heads"}.get(family, "dim")}
        for key in moved - {"dim"}:
            assert configuration[key] == pytest.approx(recorded[key], rel=0.1)


def test_model_of_another_size_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {**AT_480M, "mingru": {**AT_480M["mingru"], "dim": 4224}}
    monkeypatch.setattr(
        head_to_head,
        "REAL",
        head_to_head.Size(configurations=changed, parameters=480_000_000, tolerance=0.01),
    )
    assert main(["--out", str(tmp_path / "out")]) == 1
    assert "mingru has 500,788,992 parameters, not 480,000,000 within 1%" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--minutes", "1"], "--minutes must be at least 2, not 1"),
        (["nowhere.bytes"], "there is no file"),
        (["--only", "gpt"], "invalid choice: 'gpt'"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert told in capsys.readouterr().err


def test_a_family_that_fails_has_a_row_and_the_others_go_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    # Nothing can be written there.
    (out / "mingru").write_text("in the way")
    families = ("mingru", "transformer")
    done = subprocess.run(
        [
            *(str(ROOT / "benchmarks" / "head_to_head.sh"), str(corpus), "--tiny"),
            *("--out", str(out)),
            *(word for family in families for word in ("--only", family)),
        ],
        env={
            **os.environ,
            **{"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    lost, won = json.loads((out / "results.json").read_text())["rows"]
    assert (lost["family"], won["family"]) == families
    assert lost["loss"] is None and "mingru" in lost["failure"]
    assert won["failure"] is None and won["tokens"] == 6 * 4 * 64 and won["loss_se"] > 0
    assert won["parameters"] == 61_680 and won["peak_memory_bytes"] > 0
    table = done.stdout.splitlines()
    assert done.stdout == (out / "results.md").read_text()
    beginning = "| transformer | dim=48 depth=2 n_heads=2 head_dim=16 | 61,680 | "
    assert f"{beginning}{won['loss']:.4f} |" in done.stdout
    assert [line for line in table if "| failed |" in line]
    assert table[-1] == f"- mingru: {lost['failure']}"
    assert f"mingru FAILED: {lost['failure']}" in done.stderr


def test_rows_are_in_the_order_of_their_losses() -> None:
    rows = [
        Row(family="b", configuration="", parameters=1, failure="oom: no memory"),
        Row(family="c", configuration="", parameters=1, loss=2.0, tokens=10),
        Row(family="a", configuration="", parameters=1, loss=1.0, tokens=10),
    ]
    lines = [line[:3] for line in markdown(rows, "about").splitlines()]
    assert lines[4:7] == ["| a", "| c", "| b"] and lines[-1] == "- b"
