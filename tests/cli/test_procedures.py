"""Stop rules, sweeps and the procedures of a study on the command line, before anything runs."""

import pytest

from tests.cli.test_commands import document
from tests.command_line import QuickCommandLine

DRY = ("search", "e88", "--dry-run", "--local", "--params", "480M", "--train-minutes", "10")


@pytest.mark.torch
def test_sweep_alone_takes_the_values_of_the_space(quick: QuickCommandLine) -> None:
    found = document(quick(*DRY, "--space", "sweep", "--sweep", "n_state", "--json"))
    assert found["space"]["sweep"] == {"n_state": [16, 32]}
    assert "n_state" not in found["space"]["axes"] and "n_state" not in found["space"]["fixed"]
    assert set(found["audit"]) == {"n_heads", "depth", "lr", "n_state"}
    text = quick(*DRY, "--space", "3d", "--sweep", "n_state=16,48", "--sweep", "use_gate")
    assert text.returncode == 2 and "a sweep over `use_gate` needs its values" in text.stderr
    text = quick(*DRY, "--space", "3d", "--sweep", "n_state=16,48", "--evaluations", "100")
    assert "in turns for n_state = 16, 48" in text.stderr and "ends after 100 evalu" in text.stderr


@pytest.mark.torch
def test_preset_of_the_study_says_what_it_does(quick: QuickCommandLine) -> None:
    words = ("search", "e88", "--dry-run", "--local", "--preset", "study")
    found = quick(*words)
    assert found.returncode == 0
    assert "starts at n_heads=96 n_state=48 depth=26 (the middle of the space)" in found.stderr
    assert "ends when 2 generations in a row do not improve the best loss by 0.01" in found.stderr
    assert "warning: a failed evaluation is told to the optimizer as a loss of 10" in found.stderr
    best = document(quick(*words, "--start-from-best", "--json"))
    assert (best["sigma"], best["start"]["values"]["n_heads"]) == (0.15, 98)
    assert best["start"]["source"].startswith("E88 v4 search of January 2026")


def test_default_of_an_optimizer_has_its_name_as_origin(quick: QuickCommandLine) -> None:
    found = document(quick("config", "--json", "--preset", "study"))
    settings = {row["key"]: (row["value"], row["from"]) for row in found["settings"]}
    assert settings["search.patience"] == (2, "optimizer study")
    assert settings["search.tolerance"] == (0.0625, "preset study")


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--sweep", "n_state=16"], "needs two or more different values", "`n_state=16` without"),
        (["--sweep", "n_state="], "`n_state=` is not of the form", "`--sweep n_state=16,32`"),
        (["--sweep", "=16,32"], "`=16,32` is not of the form", "`--sweep n_state=16,32`"),
        (
            ["--sweep", "n_state=16,32", "--sweep", "n_state=48,64"],
            "`--sweep n_state` is given twice",
            "all its values once",
        ),
        (["n_state=16", "--sweep", "n_state=16,32"], "is swept and also a constant", "leave one"),
        (["--sweep", "n_state=16,33"], "n_state", None),
        (["--sweep", "n_stat=16,32"], "n_stat", None),
        (["--sweep", "n_state=16,fast"], "n_state", None),
        (["--space", "sweep"], "one search for each value of `n_state`", "`--sweep n_state`"),
        (["--evaluations", "200"], "15 generations of 8 have 120", "`--generations 25`"),
        (["--set", "search.min_improvement=0.1"], "means nothing without", "`--patience 3`"),
        (
            ["--optimizer", "lhs-cma", "--start-from-best"],
            "points that fill the space",
            "leave out",
        ),
        (
            ["--optimizer", "lhs-cma", "--evaluations", "60"],
            "is 64, which leaves nothing of 60 evaluations",
            "search.lhs_points=15",
        ),
        (["--optimizer", "study", "--sweep", "n_state"], "`study` has no sweep", "run of its own"),
    ],
)
def test_procedure_that_cannot_be_is_refused_with_a_hint(
    words: list[str], message: str, hint: str | None, quick: QuickCommandLine
) -> None:
    found = quick(*DRY, *words)
    assert found.returncode in (1, 2)
    assert message in found.stderr and "Traceback" not in found.stderr
    assert hint is None or hint in found.stderr
