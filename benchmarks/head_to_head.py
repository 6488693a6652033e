"""Train the study's best configurations of eight families in turn, and compare them in one table.

    benchmarks/head_to_head.sh [CORPUS] [--minutes N] [--out FOLDER] [--only FAMILY]... [--tiny]

Each family gets the same minutes of training under protocol `fair`, by `elmanctl eval` in a process
of its own.  The families are those of the study whose best configuration a search has found and
that have a fast implementation.  Before anything is trained every size is counted: one that is off
by more than 1 % is refused.  A family that fails has a row that says why, and the others go on; the
exit code is then 1.  `--tiny` takes the same way with models of about 60,000 parameters and a few
steps, on a CPU.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from elmanctl.models.params import count_parameters  # noqa: E402

Configuration = Mapping[str, Any]

# Those of study_best.toml.  Where that is not of 480M parameters, `dim` alone was changed if a
# multiple of 32 gives them, otherwise the depth or the heads too, as little as possible.
AT_480M: Mapping[str, Configuration] = {
    "e88": {"dim": 2176, "depth": 14, "n_heads": 98, "n_state": 32, "gate_activation": "silu"},
    "e90": {
        **{"dim": 2944, "depth": 13, "n_heads": 114, "k_fast": 8, "k_slow": 16},
        "gate_activation": "silu",
    },
    "mom-e88": {
        **{"dim": 3840, "depth": 12, "n_heads": 40, "top_k": 8, "n_state": 64},
        "gate_activation": "silu",
    },
    "mamba2": {"dim": 1856, "depth": 23, "d_state": 64, "expand": 2},
    "fla-gdn": {"dim": 1920, "depth": 17, "n_heads": 23, "expansion": 2.0},
    "transformer": {"dim": 1664, "depth": 13, "n_heads": 8, "expansion": 4.0},
    "mingru": {"dim": 4128, "depth": 14, "expansion": 1.0},
    "minlstm": {"dim": 2272, "depth": 31, "expansion": 1.0},
}
TINY: Mapping[str, Configuration] = {
    "e88": {"dim": 104, "depth": 2, "n_heads": 4, "n_state": 8},
    "e90": {"dim": 96, "depth": 2, "n_heads": 3, "k_fast": 4, "k_slow": 8},
    "mom-e88": {"dim": 88, "depth": 2, "n_heads": 6, "top_k": 3, "n_state": 8},
    "mamba2": {"dim": 48, "depth": 3, "d_state": 8, "head_dim": 32},
    "fla-gdn": {"dim": 56, "depth": 2, "n_heads": 2},
    "transformer": {"dim": 48, "depth": 2, "n_heads": 2, "head_dim": 16},
    "mingru": {"dim": 96, "depth": 2, "expansion": 1.0},
    "minlstm": {"dim": 80, "depth": 2, "expansion": 1.0},
}

LEAST_MINUTES = 2.0
# Compilation, warm-up and validations come on top of the training time.
MARGIN_MIN = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size that all models have to have, and the largest relative distance from it."""

    configurations: Mapping[str, Configuration]
    parameters: int
    tolerance: float
    options: tuple[str, ...] = ()


REAL = Size(configurations=AT_480M, parameters=480_000_000, tolerance=0.01)
SMALL = Size(
    configurations=TINY,
    parameters=60_000,
    tolerance=0.1,
    options=(
        *("--set", "train.batch=4", "--set", "train.seq_len=64", "--set", "train.val_windows=16"),
        *("--set", "train.threads=1"),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one family: the numbers of its result, or why there are none."""

    family: str
    configuration: str
    parameters: int
    loss: float | None = None
    loss_se: float | None = None
    tokens_per_s: float | None = None
    steps: int | None = None
    tokens: int | None = None
    flops: float | None = None
    peak_memory_bytes: int | None = None
    micro_batch: int | None = None
    backend: str | None = None
    device_name: str | None = None
    fingerprint: str | None = None
    failure: str | None = None


def misfits(size: Size, families: Sequence[str]) -> list[str]:
    """Return which configurations are not of the size, with their counts."""
    found = []
    for family in families:
        count = count_parameters(family, size.configurations[family])
        if abs(count / size.parameters - 1) > size.tolerance:
            found.append(
                f"{family} has {count:,} parameters, not {size.parameters:,} "
                f"within {size.tolerance:.0%}"
            )
    return found


def train(family: str, size: Size, options: argparse.Namespace, folder: Path) -> Row:
    """Train one family in a process of its own and return its row."""
    configuration = size.configurations[family]
    fields = [f"{key}={value}" for key, value in configuration.items()]
    # Steps of the tiny size, since the CPU of a test may be slow.
    budget = ["--train-steps", "6"] if options.tiny else ["--train-minutes", str(options.minutes)]
    command = [
        *(sys.executable, "-P", "-m", "elmanctl", "eval", family, *fields, *budget),
        *("--protocol", "fair", "--seed", str(options.seed), "--device", options.device),
        *(() if options.corpus is None else ("--data", str(options.corpus))),
        *(*size.options, "--out", str(folder / family), "--json"),
    ]
    log = folder / f"{family}.log"
    limit_s = 60 * (MARGIN_MIN + options.minutes)
    try:
        with log.open("w", encoding="utf-8") as stream:
            subprocess.run(
                command, stdout=subprocess.DEVNULL, stderr=stream, check=False, timeout=limit_s
            )
        failure = failure_of(folder / family, log)
    except subprocess.TimeoutExpired:
        failure = f"not done after {limit_s / 60:.0f} min"
    except OSError as exc:
        failure = str(exc)
    row = Row(
        family=family,
        configuration=" ".join(fields),
        parameters=count_parameters(family, configuration),
        failure=failure,
    )
    return row if failure else _filled(row, read_result(folder / family))


def failure_of(folder: Path, log: Path) -> str | None:
    """Return why an evaluation has no loss, None if it has one."""
    result = read_result(folder)
    verdict = result.get("verdict", {})
    if verdict.get("kind") == "completed":
        return None
    if verdict:
        text = str(verdict["evidence"][0]["text"]).partition("\n")[0]
        return f"{verdict['kind']}: {text}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or [line for line in lines if line.strip()] or ["it left no result"])[-1]


def read_result(folder: Path) -> dict[str, Any]:
    """Return the result of an evaluation, an empty one if it left none."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _filled(row: Row, result: Mapping[str, Any]) -> Row:
    names = (
        *("loss", "tokens_per_s", "steps", "tokens", "flops", "peak_memory_bytes", "micro_batch"),
        *("backend", "device_name", "fingerprint", "parameters"),
    )
    values = {name: result.get(name) for name in names}
    return Row(**asdict(row) | values | {"loss_se": result.get("val_loss_se")})


def markdown(rows: Sequence[Row], about: str) -> str:
    """Return the table, the lowest loss first and failures last, each with its reason."""
    ranked = sorted(rows, key=lambda row: (row.loss is None, row.loss or 0.0))
    head = (
        *("family", "configuration", "parameters", "held-out loss", "±", "tok/s", "tokens"),
        *("FLOPs", "peak memory, GB", "micro-batch", "backend"),
    )
    lines = [about, "", f"| {' | '.join(head)} |", "| --- | --- |" + " ---: |" * 8 + " --- |"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in ranked]
    failed = [row for row in ranked if row.failure]
    if failed:
        lines += ["", *(f"- {row.family}: {row.failure}" for row in failed)]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    named = [row.family, row.configuration, f"{row.parameters:,}"]
    if row.loss is None:
        return [*named, "failed", *[""] * 7]
    return [
        *named,
        f"{row.loss:.4f}",
        "" if row.loss_se is None else f"{row.loss_se:.4f}",
        "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}",
        f"{row.tokens:,}",
        "" if row.flops is None else f"{row.flops:.3g}",
        "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e9:.2f}",
        str(row.micro_batch),
        str(row.backend),
    ]


def card_name(device: str) -> str:
    """Return the name of the GPU for a folder, `cpu` without one.

    A process of its own asks, so that none but the trainings hold memory of the GPU.
    """
    code = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    command = [sys.executable, "-c", code]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    name = asked.stdout.strip()
    if device == "cuda" and not name:
        raise SystemExit("head_to_head: torch sees no GPU; `--tiny` tries everything on the CPU")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") if device == "cuda" else "cpu"


def compare(folder: Path, rows: Sequence[Row]) -> str:
    """Return what `elmanctl compare` says of the trainings that have a loss."""
    done = [str(folder / row.family) for row in rows if row.failure is None]
    if len(done) < 2:
        return ""
    command = [sys.executable, "-P", "-m", "elmanctl", "compare", *done]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout if found.returncode == 0 else found.stderr


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; exits with 2 for those that make no sense."""
    parser = argparse.ArgumentParser(
        prog="head_to_head", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", nargs="?", type=Path, help="a file of bytes; or the built-in one")
    parser.add_argument("--minutes", type=float, default=LEAST_MINUTES, help="of each training")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--only", action="append", choices=AT_480M, help="a family; repeatable")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cuda, or cpu with --tiny")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--tiny", action="store_true", help="tiny models for a few steps")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cpu" if options.tiny else "cuda")
    if not options.tiny and not options.minutes >= LEAST_MINUTES:
        parser.error(f"--minutes must be at least {LEAST_MINUTES:g}, not {options.minutes:g}")
    options.corpus = options.corpus and options.corpus.resolve()
    if options.corpus is not None and not options.corpus.is_file():
        parser.error(f"there is no file {options.corpus}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write `results.json`, `results.md` and `compare.txt`, and print the table."""
    options = parse(arguments)
    size = SMALL if options.tiny else REAL
    families = options.only or list(size.configurations)
    wrong = misfits(size, families)
    for text in wrong:
        print(f"head_to_head: error: {text}", file=sys.stderr)
    if wrong:
        return 1
    card, began = card_name(options.device), time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    folder = options.out or ROOT / "benchmarks" / "results" / "head_to_head" / f"{card}-{began}"
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    budget = "6 steps" if options.tiny else f"{options.minutes:g} minutes"
    corpus = "the built-in corpus" if options.corpus is None else options.corpus.name
    about = f"{card}: {budget} each on {corpus}, protocol fair, seed {options.seed}."
    rows: list[Row] = []
    for family in families:
        print(f"head_to_head: {family}, {len(rows) + 1} of {len(families)}", file=sys.stderr)
        rows.append(train(family, size, options, folder))
        if rows[-1].failure:
            print(f"head_to_head: {family} FAILED: {rows[-1].failure}", file=sys.stderr)
        # After each, so that an interruption loses nothing that is done.
        found = {"about": about, "rows": [asdict(row) for row in rows]}
        (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (folder / "results.md").write_text(markdown(rows, about), encoding="utf-8")
    (folder / "compare.txt").write_text(compare(folder, rows), encoding="utf-8")
    print(markdown(rows, about), end="")
    print(f"head_to_head: results in {folder}", file=sys.stderr)
    return 1 if any(row.failure for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
