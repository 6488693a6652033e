"""What cannot be done is refused in one line, with the next thing to try, and changes nothing."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Snapshot
from tests.command_line import CommandLine, QuickCommandLine

LOCAL = ("search", "e88", "--local", "--preset", "tiny", "--yes")


def assert_refused(
    done: subprocess.CompletedProcess[str], code: int, message: str, hint: str | None = None
) -> None:
    """Assert a one-line error on stderr, this hint, nothing on stdout, and the exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(hints) <= 1, done.stderr
    assert hint is None or hint in "".join(hints), done.stderr
    # Beside them at most empty lines.
    assert {line for line in lines if line.strip()} == {*errors, *hints}
    assert "Traceback" not in done.stderr


Case = tuple[tuple[str, ...], int, str, str | None]

WITHOUT_FILES: dict[str, Case] = {
    "unknown model": (
        ("search", "mamba3", "--local", "--preset", "tiny", "--yes"),
        *(3, "there is no model `mamba3`", "did you mean `mamba2`?"),
    ),
    "unknown state size": (
        ("params", "e88", "dim=64", "depth=1", "n_heads=2", "n_state=33"),
        *(2, "n_state=33 is not supported by the torch backend; nearest supported: 32", None),
    ),
    "misspelled field": (
        ("params", "e88", "dim=64", "depth=1", "n_head=2", "n_state=32"),
        *(2, "no setting `n_head`", "did you mean `n_heads`?"),
    ),
    "several nodes on one machine": (
        (*LOCAL, "--set", "train.nodes=2"),
        *(2, "`train.nodes` is 2, and this machine is one node", "set `train.nodes` to 1"),
    ),
    "several nodes in the foreground": (
        (
            *("eval", "e88", "dim=16", "depth=1", "n_heads=2", "n_state=8", "--preset", "tiny"),
            *("--set", "train.nodes=2"),
        ),
        *(2, "`train.nodes` is 2, and this machine is one node", "set `train.nodes` to 1"),
    ),
    "batch that its ranks cannot share": (
        (*LOCAL, "--set", "train.gpus=3"),
        *(2, "cannot be shared by 3 GPUs", "as many sequences of a step"),
    ),
    "every setting of a model missing": (
        ("params", "e88"),
        *(2, "e88 needs the settings `dim`, `depth`, `n_heads` and `n_state`", None),
    ),
    "model of a budget without budget and settings": (
        ("calc-dim", "e88", "n_heads=x", "foo=1"),
        2,
        "no parameter budget is set; e88 has no setting `foo`; e88 needs the settings `depth` and "
        "`n_state`; e88: `n_heads` must be a whole number, not 'x'",
        "pass e.g. `--params 480M`; it has level, dim,",
    ),
    "words of several sorts": (
        ("params", "e88", "a", "b=1", "b=2", "lr=3"),
        *(2, "`a` is not of the form key=value; `b` is given twice; `lr` does not", "leave it out"),
    ),
    "evaluation of nothing": (
        ("eval", "e88", "lr=x"),
        *(2, "`lr` is a number, not `x`; no training budget is set; e88 needs the settings", None),
    ),
    "search of nothing": (
        ("search", "e88"),
        2,
        "no training budget is set; neither a parameter budget nor `dim` is set",
        "pass `--train-minutes 10`, `--train-steps N`, `--train-tokens N` or `--train-flops N`; "
        "pass `--params 480M`",
    ),
    "budget that no dim meets": ((*LOCAL, "--params", "1K"), 2, "no dim that is a multiple", None),
    "parameters that are no number": ((*LOCAL, "--params", "many"), 2, "`many`", "480M"),
    "neither budget nor dim": (
        ("search", "e88", "--local", "--train-steps", "5", "--yes"),
        *(2, "neither a parameter budget nor `dim` is set", "--params"),
    ),
    "no training budget": (
        ("search", "e88", "--local", "--params", "480M", "--yes"),
        *(2, "no training budget is set", "--train-minutes"),
    ),
    "two training budgets": (
        (*LOCAL, "--train-steps", "5", "--train-tokens", "5"),
        *(2, "exclude each other", "keep one"),
    ),
    "missing corpus": (
        (*LOCAL, "--data", "absent.bytes"),
        *(3, "no such corpus file", "elmanctl data pack"),
    ),
    "unknown preset": (
        ("search", "e88", "--local", "--preset", "tiniest", "--yes"),
        *(3, "no preset named `tiniest`", "did you mean `tiny`?"),
    ),
    "unknown space": ((*LOCAL, "--space", "5d"), 3, "no search space named `5d`", None),
    "unknown template": (
        ("search", "e88", "--preset", "tiny", "--template", "h10", "--yes"),
        *(3, "no resource template named `h10`", "did you mean `h100`?"),
    ),
    "population too small": ((*LOCAL, "--population", "3"), 2, "at least 4", "4 to 10000"),
    "numbers beyond sense": (
        (*LOCAL, "--tolerance", "5", "--sigma", "99"),
        2,
        "`search.tolerance` must be at most 0.5, not 5.0; `the command line`: `search.sigma` must "
        "be at most 1, not 99.0",
        "`search.tolerance` is 0 to 0.5; `search.sigma` is above 0, at most 1",
    ),
    "tolerance of a dim": (
        ("calc-dim", "e88", "--params", "1M", "--tolerance", "5", "depth=1", "n_heads=2"),
        *(2, "`search.tolerance` must be at most 0.5, not 5.0", "0 to 0.5"),
    ),
    "learning rate of an evaluation": (
        ("eval", "e88", "dim=16", "depth=1", "n_heads=2", "lr=99", "--preset", "tiny"),
        *(2, "`train.lr` must be at most 10, not 99", "above 0"),
    ),
    "GPUs without --local": (
        ("search", "e88", "--preset", "tiny", "--gpus", "0,1"),
        *(2, "go with `--local`", "--local"),
    ),
    "GPUs that are no numbers": ((*LOCAL, "--gpus", "0,one"), 2, "`--gpus`", None),
    "impossible name": ((*LOCAL, "--name", "../elsewhere"), 2, "cannot be named", None),
    "unknown option": ((*LOCAL, "--nope"), 2, "--nope", "elmanctl search -h"),
    "unknown command": (("statsu",), 2, "statsu", "elmanctl -h"),
    "no runs at all": (("show", "best"), 3, "no runs", "elmanctl search"),
    "no configuration file": (
        ("--config", "absent.toml", "status"),
        *(3, "no such configuration file", None),
    ),
}


@pytest.mark.parametrize("name", WITHOUT_FILES)
def test_in_an_empty_folder_it_is_refused_and_nothing_is_written(
    name: str, quick: QuickCommandLine, snapshot: Snapshot
) -> None:
    arguments, code, message, hint = WITHOUT_FILES[name]
    assert_refused(quick(*arguments), code, message, hint)
    assert snapshot() == {}


@pytest.mark.torch
@pytest.mark.parametrize(
    "more", [["--gpus", "77"], ["--gpus", "0,1"], ["--dry-run", "--gpus", "7"]]
)
def test_gpu_that_is_not_there_is_refused_before_a_run_exists(
    more: list[str], quick: QuickCommandLine, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "77" not in more:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert_refused(quick(*LOCAL, *more), 4, f"no GPU {more[-1].partition(',')[0]}")
    assert snapshot() == {}
    # Names are taken as they are.
    assert quick(*LOCAL, "--gpus", "GPU-8932f937", "--dry-run").returncode == 0


def test_device_that_is_not_there_is_refused_before_a_folder_is_made(
    quick: QuickCommandLine, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    model = ("dim=32", "depth=1", "n_heads=2", "n_state=8")
    done = quick("eval", "e88", *model, "--train-steps", "1", "--device", "cuda")
    assert_refused(done, 4, "no GPU for device `cuda`", "`auto`")
    assert snapshot() == {}


WRONG_SETTINGS: dict[str, tuple[str, str, str | None]] = {
    "key": (
        "[search]\npopulaton = 4\n",
        "`elman.toml` line 2: unknown key `search.populaton`",
        "did you mean `search.population`?",
    ),
    "section": (
        "\n[serach]\n",
        "`elman.toml` line 2: unknown section `serach`",
        "did you mean `search`?",
    ),
    "state size": (
        "[search.axes]\nn_state = { kind = 'choice', values = [16, 33] }\n",
        "axis `n_state` at 33: n_state=33 is not supported",
        "take it out of the axis",
    ),
    "axis": (
        "[search.axes]\nn_headz = { kind = 'int', low = 1, high = 4 }\n",
        "no setting `n_headz`",
        "did you mean `n_heads`?",
    ),
    "things of several sorts": (
        "[serach]\n[search]\npopulaton = 4\nsigma = 'x'\n[train]\nminutes = 1\nsteps = 2\n",
        "`elman.toml` line 1: unknown section `serach`; `elman.toml` line 7: `train.minutes` and "
        "`train.steps` exclude each other; `elman.toml` line 3: unknown key `search.populaton`; "
        "`elman.toml` line 4: `search.sigma` must be a number, not 'x'",
        "did you mean `search`?; keep one training budget: train.minutes, train.steps, "
        "train.tokens, train.flops, train.converge; did you mean `search.population`?",
    ),
    "axes": (
        "[search.axes]\na = { kind = 'int', lo = 1 }\nb = { kind = 'pow3' }\n",
        "axis `a` of kind int has no `lo`; axis `a` of kind int lacks `low`; axis `a` of kind int "
        "lacks `high`; axis `b`: unknown kind `pow3`",
        "did you mean `pow2`?",
    ),
    "micro-batch": ("[train]\nmicro_batch = 3\n", "does not divide", None),
    "workers": ("[local]\nworkers = 0\n", "`local.workers` must be at least 1, not 0", None),
    "learning rate": ("[train]\nlr = -1.0\n", "`train.lr` must be above 0", None),
    "device": ("[train]\ndevice = 'cdua'\n", "`train.device` must be one of", None),
}


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_wrong_setting_is_refused_before_anything_starts(
    name: str, quick: QuickCommandLine, snapshot: Snapshot, corpus: Path
) -> None:
    text, message, hint = WRONG_SETTINGS[name]
    (quick.folder / "elman.toml").write_text(text, encoding="utf-8")
    before = snapshot()
    # Settings of the preset stand above the file, and these do not set what the file does.
    done = quick(
        *("search", "e88", "--local", "--space", "tiny", "--params", "100K", "--tolerance", "0.1"),
        *("--train-steps", "5", "--data", str(corpus), "--yes"),
    )
    assert_refused(done, 2, message, hint)
    assert snapshot() == before


def test_machine_without_slurm_is_told_of_the_local_way(
    quick: QuickCommandLine, snapshot: Snapshot, corpus: Path
) -> None:
    search = ("search", "e88", "--preset", "tiny", "--data", str(corpus), "--yes")
    done = quick(*search, PATH=str(quick.folder / "nowhere"))
    assert_refused(done, 4, "no `sbatch` on this machine", "--local")
    assert snapshot() == {}


@pytest.mark.torch
def test_search_that_nobody_can_confirm_is_not_started(
    quick: QuickCommandLine, snapshot: Snapshot, corpus: Path
) -> None:
    done = quick(*LOCAL[:-1], "--data", str(corpus))
    assert_refused(done, 2, "confirmation required", "--yes")
    assert snapshot() == {}


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("status", "finnished"), 3, "no run named `finnished`", "did you mean `finished`?"),
        (("resume", "nothing"), 3, "no run named `nothing`", "elmanctl status"),
        (("show", "finished", "g000-e99"), 3, "no evaluation `g000-e99`", "did you mean"),
        (("show", "finished", "9.9"), 3, "no evaluation `9.9`", None),
        (("logs", "finished", "g001-e00", "--attempt", "7"), 3, "no attempt 7", "1 attempt"),
        (("logs", "interrupted", "g001-e01"), 3, "no log at", None),
        (("status", "finished", "--state", "runing"), 2, "`runing`", "did you mean `running`?"),
        (("requeue", "--run", "finished"), 2, "name the evaluations", None),
        (("requeue", "g000-e00", "--run", "finished"), 2, "g000-e00 is completed", None),
        (("cancel", "--run", "finished", "--all"), 2, "confirmation required", "--yes"),
        (("clean", "finished", "--kind", "dust", "--yes"), 2, "`dust`", "metrics"),
        (
            ("clean", "finished", "--keep-best", "0", "--keep-last", "0"),
            2,
            "confirmation required",
            "--yes",
        ),
        (("cancel", "--run", "finished", "--all", "--yes"), 2, "is finished", None),
        (("requeue", "--failed", "--run", "interrupted"), 2, "confirmation required", "--yes"),
        (("requeue", "--failed", "--kind", "omm", "--run", "interrupted"), 2, "`omm`", "`oom`"),
        (("resume", "finished", "--generations", "2"), 2, "2 generations", None),
        (("resume", "finished", "--generations", "1000000"), 2, "at most 100000", "1 to"),
        (("resume", "finished", "--set", "retry.oom=-1"), 2, "`retry.oom` must be at least 0", ""),
        (("resume", "finished", "--set", "retry.oom=9999"), 2, "must be at most 1000", "0 to 1000"),
        (("resume", "finished", "--set", "train.lr=0.1"), 2, "stays as it is", "changeable"),
        (("resume", "finished", "--set", "slurm.partitoin=a"), 2, "unknown key", "slurm.partition"),
        (("search", "e88", "--preset", "tiny", "--name", "finished"), 2, "exists", "resume"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_a_run_cannot_do_is_refused_and_leaves_it_as_it_was(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    hint: str | None,
    quick_with_runs: QuickCommandLine,
    snapshot: Snapshot,
) -> None:
    before = snapshot()
    assert_refused(quick_with_runs(*arguments), code, message, hint)
    assert snapshot() == before


def damage_middle(ledger: Path) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"data"', b'"dada"', 1)
    ledger.write_bytes(b"".join(lines))


@pytest.mark.parametrize("command", ["status", "resume", "cancel --all --yes --run", "clean --yes"])
def test_ledger_that_is_damaged_in_the_middle_is_named_with_its_line(
    command: str, quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    damage_middle(quick_with_runs.folder / "runs" / "finished" / "ledger.jsonl")
    before = snapshot()
    done = quick_with_runs(*command.split(), "finished")
    assert_refused(
        done, 1, "ledger.jsonl line 5: the checksum does not match", "nothing was changed"
    )
    assert snapshot() == before


def test_damaged_run_does_not_hide_the_others(with_runs: CommandLine) -> None:
    damage_middle(with_runs.folder / "runs" / "finished" / "ledger.jsonl")
    done = with_runs("status")
    assert done.returncode == 0
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "RUN",
        "interrupted-search",
    ]
    assert done.stderr.startswith("warning: finished: ")


Cut = Callable[[bytes], bytes]
CUTS: dict[str, Cut] = {
    "in the middle of a line": lambda raw: raw[:-30],
    "just before a newline": lambda raw: raw[:-1],
    "with nulls of a lost block": lambda raw: raw + b"\0" * 100,
}


@pytest.mark.parametrize("name", CUTS)
def test_ledger_that_was_cut_short_is_shown_with_one_warning_at_most(
    name: str, quick_with_runs: QuickCommandLine, snapshot: Snapshot
) -> None:
    ledger = quick_with_runs.folder / "runs" / "finished" / "ledger.jsonl"
    ledger.write_bytes(CUTS[name](ledger.read_bytes()))
    before = snapshot()
    done = quick_with_runs("status", "finished", "--all")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 9
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == (0 if name == "just before a newline" else 1)
    assert all("a torn last line" in warning for warning in warnings)
    assert snapshot() == before


def test_folder_without_a_ledger_is_no_run(with_runs: CommandLine) -> None:
    shutil.copytree(with_runs.folder / "runs" / "finished", with_runs.folder / "runs" / "copied")
    (with_runs.folder / "runs" / "copied" / "ledger.jsonl").unlink()
    assert_refused(with_runs("status", "copied"), 3, "no run named `copied`")
