"""Train tiny models with the code of an older commit and with this checkout's, and compare losses.

    python benchmarks/same_losses.py 81ad23f [--steps N] [MODEL...]

The older code trains each model by `elmanctl eval`, with 32 sequences a step.  This checkout trains
it under `--protocol study-2026-01 --set train.sampler=windows`, whose rule gives as many to a small
model, and once more from the spec that the older code left.  Loss and gradient norm of every step
must be the same, bit for bit, on one thread of the CPU.  The older commit must know `eval`.  Exits
with 1 when any number differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from controller_turn import unpack

ROOT = Path(__file__).parents[1]

MODELS: dict[str, Mapping[str, Any]] = {
    "e88": {"dim": 48, "depth": 2, "n_heads": 4, "n_state": 8},
    "e90": {"dim": 48, "depth": 1, "n_heads": 3, "k_fast": 4, "k_slow": 8},
    "e75": {"dim": 48, "depth": 2, "n_heads": 4, "n_state": 8},
    "e87": {"dim": 48, "depth": 2, "n_blocks": 4, "top_k": 2, "n_state": 8},
    "mom-e88": {"dim": 48, "depth": 1, "n_heads": 6, "top_k": 3, "n_state": 8},
    "mamba2": {"dim": 32, "depth": 2, "d_state": 8, "head_dim": 32},
    "fla-gdn": {"dim": 32, "depth": 2, "n_heads": 2},
    "transformer": {"dim": 48, "depth": 2, "n_heads": 3, "head_dim": 16},
    "mingru": {"dim": 64, "depth": 2, "expansion": 1.5},
    "minlstm": {"dim": 64, "depth": 2, "expansion": 1.5},
    "gru": {"dim": 64, "depth": 1},
    "lstm": {"dim": 64, "depth": 2},
    "e1": {"dim": 64, "depth": 2},
    "e0": {"dim": 64, "depth": 2},
    "e42": {"dim": 64, "depth": 2},
}

COMMON = {"seq_len": 32, "lr": 0.01, "grad_clip": 0.5, "device": "cpu", "threads": 1}
PROTOCOL = ("--protocol", "study-2026-01", "--set", "train.sampler=windows")

_FROM_SPEC = (
    "import sys; from elmanctl.jobs.evaluation import evaluate_attempt as e; e(sys.argv[1])"
)


def run(tree: Path, folder: Path, words: Sequence[str]) -> None:
    """Run Python on the code of a tree, in a folder."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} in {tree}:\n{done.stderr}")


def evaluate(tree: Path, folder: Path, level: str, steps: int, more: Sequence[str]) -> Path:
    """Train a model by `elmanctl eval`, and return where its files are."""
    fields = [f"{name}={value}" for name, value in MODELS[level].items()]
    out = folder / level
    options = ["--train-steps", str(steps), "--seed", "7", "--out", str(out), *more]
    run(tree, folder, ["-m", "elmanctl", "eval", level, *fields, *options])
    return out


def losses(folder: Path) -> list[tuple[float, float]]:
    """Return loss and gradient norm of each step."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(step["loss"], step["grad_norm"]) for step in map(json.loads, lines)]


def main() -> int:
    """Train with both and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    good = True
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        older = unpack(asked.commit, scratch / "code")
        before, after = scratch / "before", scratch / "after"
        before.mkdir()
        after.mkdir()
        # The older command line has no `--set`.
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**COMMON, "batch": 32}.items()]
        text = "\n".join(["[train]", *lines, ""])
        (before / "elman.toml").write_text(text, encoding="utf-8")
        common = [word for key in COMMON for word in ("--set", f"train.{key}={COMMON[key]}")]
        print(f"| Model | Last loss, {asked.commit} | Under the protocol | From the same spec |")
        print("| --- | ---: | --- | --- |")
        for level in asked.models:
            first = evaluate(older, before, level, asked.steps, [])
            second = evaluate(ROOT, after, level, asked.steps, [*PROTOCOL, *common])
            third = scratch / f"spec-{level}"
            third.mkdir()
            shutil.copy(first / "spec.json", third)
            run(ROOT, after, ["-c", _FROM_SPEC, str(third)])
            expected = losses(first)
            same = [losses(each) == expected for each in (second, third)]
            good = good and all(same) and len(expected) == asked.steps
            words = ["same bits" if each else "OTHER" for each in same]
            print(f"| {level} | {expected[-1][0]!r} | {' | '.join(words)} |", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
