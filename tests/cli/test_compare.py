"""What `compare` prints of real trainings, and how it refuses what cannot be compared."""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from elmanctl.cli import output
from elmanctl.cli.compare import print_comparison
from elmanctl.cli.comparison_tables import print_rows
from elmanctl.cli.completion import compared_names
from elmanctl.errors import NotFound
from elmanctl.ledger.state import load_run
from elmanctl.models.params import flops_per_token, state_size
from elmanctl.run.paths import AttemptPaths
from elmanctl.search.compared_results import rows_of_folders
from elmanctl.search.comparison import compare_rows
from tests.cli.test_commands import document, succeeded
from tests.command_line import CommandLine, QuickCommandLine, rows_of

pytestmark = pytest.mark.torch

MODELS = {
    "e88": ("e88", "dim=16", "depth=1", "n_heads=2", "n_state=8", "lr=1e-2"),
    "gru": ("gru", "dim=16", "depth=1", "lr=1e-2"),
}
SEEDS = (1, 2)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, environment: dict[str, str]
) -> Iterator[Path]:
    """A folder with results of `eval`, two seeds each, one under another budget, and a search."""
    root = tmp_path_factory.mktemp("trained")
    (root / "elman.toml").write_text(f'[data]\npath = "{corpus}"\n', encoding="utf-8")
    tiny = ("--preset", "tiny", "--train-steps")
    with pytest.MonkeyPatch.context() as patch:
        quick = QuickCommandLine(CommandLine(folder=root, environment=environment), patch)
        for name, words in MODELS.items():
            for seed in SEEDS:
                out = f"runs/eval-{name}-{seed}"
                succeeded(quick("eval", *words, *tiny, "128", "--seed", str(seed), "--out", out))
        succeeded(quick("eval", *MODELS["gru"], *tiny, "3", "--out", "runs/eval-short"))
        succeeded(
            quick(
                *("search", "e88", "--local", "--yes", "--name", "searched", *tiny, "128"),
                *("--params", "20K", "--tolerance", "0.3", "--generations", "1"),
                *("--set", "search.confirm_top=1", "--set", "search.confirm_seeds=2"),
            )
        )
    yield root


@pytest.fixture
def user(
    trained: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> QuickCommandLine:
    """The command line in the folder with the results, which it does not change."""
    return QuickCommandLine(CommandLine(folder=trained, environment=environment), monkeypatch)


ALL = tuple(f"eval-{name}-{seed}" for name in MODELS for seed in SEEDS)


def result_in(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def test_results_of_other_seeds_are_one_row_with_its_spread(user: QuickCommandLine) -> None:
    (group,) = document(user("compare", *ALL, "--json"))["groups"]
    assert {row["item"] for row in group["rows"]} == {"eval-e88-1", "eval-gru-1"}
    for row in group["rows"]:
        results = [result_in(user.folder / f"runs/eval-{row['model']}-{seed}") for seed in SEEDS]
        losses = [each["val_loss"] for each in results]
        assert row["loss_nats_by_seed"] == dict(zip(("1", "2"), losses, strict=True))
        assert row["loss_nats"] == pytest.approx(sum(losses) / 2)
        # Of two values the standard error is half their distance.
        assert row["loss_se_nats"] == pytest.approx(abs(losses[0] - losses[1]) / 2)
        assert row["parameters"] == results[0]["parameters"]
        assert row["flops"] == results[0]["flops"] == row["flops_per_token"] * row["tokens"]
        config = {key: value for key, value in row["config"].items() if key != "lr"}
        assert row["state_elements_per_layer"] == state_size(row["model"], config)
        assert row["flops_per_token"] == flops_per_token(
            row["model"], config, seq_len=64, training=True
        )
    first, second = group["rows"]
    assert first["loss_nats"] < second["loss_nats"] and first["difference"] is None
    assert second["difference"]["nats"] == pytest.approx(second["loss_nats"] - first["loss_nats"])
    assert (second["difference"]["test"], second["difference"]["degrees_of_freedom"]) == (
        "paired t",
        1,
    )
    assert group["noise"]["degrees_of_freedom"] == 2


def test_seeds_of_one_configuration_are_shown_alone(user: QuickCommandLine) -> None:
    (row,) = rows_of(succeeded(user("compare", "eval-gru-1", "eval-gru-2")))["ITEM"]
    losses = [result_in(user.folder / f"runs/eval-gru-{seed}")["val_loss"] for seed in SEEDS]
    assert (row["SEEDS"], row["DIFF"]) == ("2", "")
    assert float(row["LOSS"]) == pytest.approx(sum(losses) / 2)


def test_names_that_can_be_compared_are_completed(user: QuickCommandLine) -> None:
    assert {*ALL, "searched", "eval-short"} == set(compared_names(""))
    assert compared_names("sea") == ["searched"]
    names = load_run(user.folder / "runs" / "searched").state.evaluations
    assert compared_names("searched/") == [f"searched/{name}" for name in names]
    assert compared_names("nothing/g") == []


def test_losses_at_equal_budgets_are_read_from_the_curves(user: QuickCommandLine) -> None:
    (group,) = document(user("compare", *ALL, "--json"))["groups"]
    tokens, flops = group["at_equal"]["tokens"], group["at_equal"]["flops"]
    # Validated after 64 and 128 steps of 8 sequences of 64 bytes.
    assert (tokens["from_tokens"], tokens["to_tokens"]) == (64 * 512, 128 * 512)
    assert [row["val_loss_nats"] for row in tokens["rows"]] == [
        row["loss_nats"] for row in group["rows"]
    ]
    each = {row["item"]: row["flops_per_token"] for row in group["rows"]}
    assert flops["from_flops"] == max(each.values()) * 64 * 512
    assert flops["to_flops"] == min(each.values()) * 128 * 512
    time = group["at_equal"]["time"]
    assert set(time) == {"from_s", "to_s", "rows", "missing"}


def test_table_of_a_pipe_is_exact_and_what_it_rests_on_is_on_stderr(user: QuickCommandLine) -> None:
    done = user("compare", *ALL, "runs/eval-short", "--at", "tokens")
    tables = rows_of(succeeded(done))
    assert set(tables) == {"ITEM", "AT"}
    rows = {row["ITEM"]: row for row in tables["ITEM"]}
    data = document(user("compare", *ALL, "runs/eval-short", "--json"))["groups"]
    for row in (row for group in data for row in group["rows"]):
        assert rows[row["item"]]["LOSS"] == str(row["loss_nats"])
        assert rows[row["item"]]["PARAMS"] == str(row["parameters"])
    assert {row["AT"] for row in tables["AT"]} == {"tokens"}
    assert {row["ITEM"] for row in tables["AT"]} == {"eval-e88-1", "eval-gru-1"}
    assert "pooled over 2 rows (2 degrees of freedom)" in done.stderr
    assert "paired t-test for " in done.stderr
    assert "tokens   all rows have measurements between 32768" in done.stderr


def test_row_under_another_protocol_is_marked_and_ranked_by_itself(user: QuickCommandLine) -> None:
    done = user("compare", *ALL, "eval-short")
    rows = {row["ITEM"]: row for row in rows_of(succeeded(done))["ITEM"]}
    assert rows["eval-short"]["DIFF"] == rows["eval-short"]["P"] == ""
    assert rows["eval-short"]["PROTOCOL"] != rows["eval-gru-1"]["PROTOCOL"]
    assert "* is not compared with the rows above" in done.stderr
    assert "differs from" in done.stderr and "in budget steps=3, not steps=128\n" in done.stderr


def test_run_is_compared_by_its_confirmations(user: QuickCommandLine) -> None:
    state = load_run(user.folder / "runs" / "searched").state
    best, other, *_ = state.ranked()
    losses = {str(each.seed): each.loss for each in state.confirmations_of(best.id)}
    assert len(losses) == 2
    words = ("compare", "searched", f"searched/{other.id}", *ALL)
    (group,) = document(user(*words, "--json"))["groups"]
    rows = {row["item"]: row for row in group["rows"]}
    assert rows[f"searched/{best.id}"]["loss_nats_by_seed"] == losses
    assert rows[f"searched/{best.id}"]["basis"] == "confirmations"
    # The ledger keeps the fingerprint alone; what follows from the settings is what was in force.
    written = user.folder / "runs" / "searched" / "evaluations" / best.id / "attempt-1"
    assert group["protocol"] == json.loads((written / "result.json").read_text())["protocol"]
    unconfirmed = rows[f"searched/{other.id}"]
    assert (unconfirmed["loss_nats"], unconfirmed["basis"]) == (other.loss, "evaluation")
    # One seed has the error of the protocol's noise, and no test.
    assert unconfirmed["difference"]["p"] is None and unconfirmed["difference"]["se_nats"] > 0
    told = user(*words).stderr
    assert (
        f"searched/{best.id}: 2 confirmations; the value for which its search chose it is left out"
    ) in told
    assert f"one seed, so no p: searched/{other.id}" in told


def test_run_without_confirmations_is_said_to_be_unconfirmed(
    user: QuickCommandLine, tmp_path: Path
) -> None:
    shutil.copytree(user.folder / "runs" / "searched", tmp_path / "cut")
    ledger = tmp_path / "cut" / "ledger.jsonl"
    before, asked, _ = ledger.read_text(encoding="utf-8").partition('"kind":"confirmation_asked"')
    assert asked
    ledger.write_text(before[: before.rindex("\n") + 1], encoding="utf-8")
    best = load_run(tmp_path / "cut").state.best()
    assert best is not None
    told = user("compare", str(tmp_path / "cut"), "eval-e88-1").stderr
    assert f"cut/{best.id}: unconfirmed, the lowest of 4 losses of its search" in told
    assert "`elmanctl confirm cut`" in told
    assert "unknown, as every row has one seed" in told


@pytest.mark.parametrize("width", [60, 200])
def test_table_fits_a_terminal_and_keeps_what_was_measured(
    width: int,
    user: QuickCommandLine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda stream=None: True)
    monkeypatch.setenv("COLUMNS", str(width))
    folders = [user.folder / "runs" / name for name in (*ALL, "eval-short")]
    print_rows(compare_rows(rows_of_folders(folders)))
    head, *rows = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len(head.rstrip()) <= width and all(len(row.rstrip()) <= width for row in rows[:3])
    assert {"ITEM", "LOSS", "DIFF", "P"} <= set(head.split())
    assert ("TOK/S" in head) is (width == 200)
    assert rows[0].count("±") == 1 and rows[1].count("±") == 2
    assert rows[2].startswith("eval-short *")


def test_winners_of_runs_are_compared_and_one_without_a_loss_is_warned_of(
    user: QuickCommandLine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("one", "two")
    for name in names:
        shutil.copytree(user.folder / "runs" / "searched", tmp_path / name)
    print_comparison([tmp_path / "one", tmp_path / "two", tmp_path / "nothing"])
    printed = capsys.readouterr()
    assert [row["ITEM"].split("/")[0] for row in rows_of(printed.out)["ITEM"]] == [*names]
    assert f"there is no ledger at {tmp_path / 'nothing'}" in printed.err


OLDER: Mapping[str, object] = {"objective": None, "validations": None, "bits_per_byte": None}


def test_result_of_an_older_version_is_compared_without_a_curve(
    user: QuickCommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "older"
    shutil.copytree(user.folder / "runs" / "eval-gru-1", folder)
    result = {key: value for key, value in result_in(folder).items() if key not in OLDER}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    done = user("compare", str(folder), "eval-e88-1", "eval-e88-2")
    rows = {row["ITEM"]: row for row in rows_of(succeeded(done))["ITEM"]}
    assert rows["older"]["BITS/BYTE"] == "" and rows["older"]["DIFF"] != ""
    assert "tokens, time, flops without a curve, as nothing was validated: older\n" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "told", "way_out"),
    [
        (("searched",), 2, "one item has nothing to be compared with", "name another run"),
        (("eval-gru-1", "eval-gru-1"), 2, "eval-gru-1 is named twice", ""),
        (("eval-gru-1", "eval-short"), 2, "no two of these 2 share a protocol", "one protocol"),
        (("eval-gru-1", "serched"), 3, "folder `serched`", "did you mean `searched`?"),
        (("runs/eval-gru-9", "searched"), 3, "`runs/eval-gru-9`", "`runs/eval-gru-"),
        (("eval-gru-1", "searched", "--at", "token"), 2, "`token`", "did you mean `tokens`?"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    words: tuple[str, ...], code: int, told: str, way_out: str, user: QuickCommandLine
) -> None:
    done = user("compare", *words)
    assert (done.returncode, done.stdout) == (code, "")
    first, *rest = done.stderr.splitlines()
    assert told in first and way_out in "".join(rest)


def test_folder_without_a_result_is_named(user: QuickCommandLine, tmp_path: Path) -> None:
    paths = AttemptPaths(tmp_path / "begun")
    paths.folder.mkdir()
    shutil.copy(AttemptPaths(user.folder / "runs" / "eval-gru-1").spec, paths.spec)
    with pytest.raises(NotFound, match=r"begun has no readable result.json"):
        rows_of_folders([paths.folder])
    failed = {"verdict": {"kind": "diverged", "evidence": []}}
    paths.result.write_text(json.dumps(failed), encoding="utf-8")
    done = user("compare", str(paths.folder), "eval-gru-1")
    assert done.returncode == 3
    assert f"the evaluation in {paths.folder} is diverged, so it has no loss" in done.stderr
