"""Classify a corpus of labelled logs and compare with the labels.

    python benchmarks/classify_logs.py CORPUS.jsonl.gz

Each line of the corpus is a JSON object with text, label (the study's or a kind of
verdict), alt_labels and path.  Prints accuracy,
recall of each class, the confusion table and every miss; exits with 1 when a log is called diverged
that is not, or completed that is.
"""

import gzip
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from elmanctl.verdicts import classify_log

KINDS = {
    "ok": "completed",
    "diverged": "diverged",
    "invalid_config": "invalid",
    "crashed_oom": "oom",
    "crashed_cuda": "cuda_error",
    "crashed_python": "python_error",
    "harness_error": "environment",
    "disk_full": "disk_full",
    "killed": "killed",
    "truncated": "lost",
    "empty": "lost",
    "parent_log": "undetermined",
}


def main() -> int:
    """Print the comparison."""
    with gzip.open(Path(sys.argv[1]), "rt", encoding="utf-8") as stream:
        records: list[dict[str, Any]] = [json.loads(line) for line in stream]
    began = time.perf_counter()
    verdicts = [classify_log(record["text"]) for record in records]
    took = time.perf_counter() - began
    table: Counter[tuple[str, str]] = Counter()
    right: Counter[str] = Counter()
    misses = []
    forbidden = 0
    for record, verdict in zip(records, verdicts, strict=True):
        label, kind = record["label"], str(verdict.kind)
        table[label, kind] += 1
        if kind in {KINDS.get(name, name) for name in (label, *record["alt_labels"])}:
            right[label] += 1
            continue
        told = "; ".join(f"{quote.line}: {quote.text[:120]}" for quote in verdict.evidence)
        misses.append(f"{record['path']}: {label}, called {kind} ({told})")
        forbidden += kind == "diverged" or (label == "diverged" and kind == "completed")
    print_table(table, right)
    print(f"\n{sum(right.values())} of {len(records)} right, {took:.1f} s, {forbidden} forbidden")
    for miss in misses:
        print(f"  {miss}")
    return 1 if forbidden else 0


def print_table(table: Counter[tuple[str, str]], right: Counter[str]) -> None:
    """Print how often each label was called what, and the share that was right."""
    kinds = sorted({kind for _, kind in table})
    print(f"{'label':<16}{'logs':>6}{'recall':>8}  " + " ".join(kinds))
    for label in (*KINDS, *sorted({name for name, _ in table} - set(KINDS))):
        count = sum(n for (name, _), n in table.items() if name == label)
        if not count:
            continue
        cells = " ".join(f"{table[label, kind]:>{len(kind)}}" for kind in kinds)
        print(f"{label:<16}{count:>6}{right[label] / count:>8.3f}  {cells}")


if __name__ == "__main__":
    sys.exit(main())
