"""Models on the command line: levels, variants, backends, and searches that are refused."""

import pytest

from elmanctl.models.backends import BACKENDS
from tests.cli.test_commands import document
from tests.command_line import QuickCommandLine


@pytest.mark.torch
def test_model_is_shown_with_its_backends_and_its_audit(quick: QuickCommandLine) -> None:
    found = document(quick("models", "mom-e88", "--json"))
    assert found["model"] == "mom-e88"
    spaces = {space["name"]: space for space in found["spaces"]}
    assert spaces["3d"]["audit"]["top_k"] == "output"
    assert spaces["3d"]["axes"]["top_k"]["at_most"] == "n_heads"
    backends = document(quick("models", "fla-gdn", "--json"))["backends"]
    assert {row["name"]: row["fault"] is None for row in backends}["torch"]
    assert all(row["fix"] for row in backends if row["fault"])


@pytest.mark.torch
def test_doctor_says_what_is_missing_and_what_helps(quick: QuickCommandLine) -> None:
    findings = document(quick("doctor", "--json"))["findings"]
    assert {row["name"] for row in findings if row["part"] == "backend"} == set(BACKENDS)
    assert all((row["fix"] is None) == row["is_fine"] for row in findings)
    torch = next(row for row in findings if row["part"] == "backend" and row["name"] == "torch")
    assert torch["is_fine"] and torch["detail"] == "usable, for all models"
    text = quick("doctor")
    assert text.returncode == 0 and text.stdout.startswith("PART\tNAME\tOK\tDETAIL\n")
    assert all(row["fix"] in text.stderr for row in findings if row["fix"])


def test_level_says_what_settings_would(quick: QuickCommandLine) -> None:
    spelled = document(quick("params", "E75h7n24", "dim=64", "depth=1", "--json"))
    fields = ("dim=64", "depth=1", "n_heads=7", "n_state=24")
    assert spelled == document(quick("params", "e75", *fields, "--json"))
    found = quick("params", "E75h7n24", "dim=64", "depth=1", "n_heads=8")
    assert found.returncode == 2 and "level `E75h7n24` says 7" in found.stderr


def test_model_of_the_study_is_counted_by_its_own_names(quick: QuickCommandLine) -> None:
    words = ("params", "llama", "dim=1536", "depth=13", "n_heads=8")
    found = document(quick(*words, "--variant", "study-2026-01", "--json"))
    assert (found["model"], found["parameters"]) == ("transformer", 286_715_904)
    assert found["state_size"] == {"layer": 2 * 8 * 64 * 512, "model": 13 * 2 * 8 * 64 * 512}
    assert found["flops_per_token"]["training"] == 3 * found["flops_per_token"]["forward"]
    refused = quick(*words)
    assert refused.returncode == 3
    assert "`transformer`" in refused.stderr and "study-2026-01" in refused.stderr


def test_dim_is_solved_for_the_model_that_ran_then(quick: QuickCommandLine) -> None:
    words = ("calc-dim", "llama", "--params", "287M", "depth=13", "n_heads=8")
    found = document(quick(*words, "--variant", "study-2026-01", "--json"))
    assert (found["dim"], found["parameters"]) == (1536, 286_715_904)


DRY = ("search", "--dry-run", "--params", "480M", "--train-minutes", "10")


def test_level_and_fields_hold_axes_fixed(quick: QuickCommandLine) -> None:
    found = quick(*DRY, "E88n32", "use_gate=false", "--space", "sweep")
    assert found.returncode == 0
    assert "e88n32-480m" in found.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["e88", "--space", "sweep"], 2, "one search for each value of `n_state`: 16, 32"),
        (
            ["e88", "--backend", "fla"],
            2,
            "e88 has no backend `fla`; it has: auto, triton, gluon, torch",
        ),
        (["gru", "reset_after=false", "--backend", "cudnn"], 2, "cuDNN does not support"),
        pytest.param(
            ["fla-gdn", "variant=study-2026-01"],
            2,
            "moving `n_heads` changes neither",
            marks=pytest.mark.torch,
        ),
        (["E75h7x24"], 2, "did you mean `e75h7n24`?"),
        (["E88h98", "n_heads=83"], 2, "level `E88h98` says 98"),
        (["mamba2", "headdim=64"], 2, "mamba2 has no setting `headdim`"),
    ],
)
def test_search_that_would_not_be_what_was_asked_is_refused(
    words: list[str], code: int, message: str, quick: QuickCommandLine
) -> None:
    found = quick(*DRY, *words)
    assert found.returncode == code
    assert message in found.stderr


@pytest.mark.torch
def test_backend_that_cannot_run_here_is_refused_with_the_fix(quick: QuickCommandLine) -> None:
    import torch

    if torch.cuda.is_available():
        # The same refusal, for a reason that a machine with a GPU has as well.
        found = quick("eval", "e88", "dim=16", "--backend", "mamba-ssm", "--preset", "tiny")
        assert found.returncode == 2
        return
    found = quick(
        "eval", "mamba2", "dim=64", "depth=1", "--backend", "mamba-ssm", "--preset", "tiny"
    )
    assert found.returncode == 4
    assert "backend `mamba-ssm` cannot run here" in found.stderr and "hint: " in found.stderr


@pytest.mark.torch
@pytest.mark.parametrize(
    ("words", "family"),
    [
        (["E75h2n8", "dim=32", "depth=1"], "e75"),
        (["llama", "dim=64", "depth=1", "variant=study-2026-01"], "transformer"),
    ],
)
def test_single_evaluation_takes_a_level_and_a_spelling_of_the_study(
    words: list[str], family: str, quick: QuickCommandLine
) -> None:
    done = quick("eval", *words, "--preset", "tiny", "--train-steps", "2")
    assert done.returncode == 0, done.stderr
    assert "backend       torch" in done.stdout
    named = f"elmanctl models {family}"
    assert f"with `{named}`\n" in done.stderr
    # What a hint names can be done.
    assert quick(*named.split()[1:]).returncode == 0
