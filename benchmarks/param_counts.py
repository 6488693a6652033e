"""Compare parameter counts with those that the study's runs printed.

    python benchmarks/param_counts.py COUNTS.csv

The table has a row per configuration, with the columns level, dim, depth, config (JSON), params and
formula_exact.  Rows with formula_exact 1 whose level belongs to a family are compared; the others
have no known configuration.  The exit code is 1 if any count differs or cannot be computed.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl.errors import ElmanError, NotFound
from elmanctl.models.config import STUDY
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import find_family
from elmanctl.models.study import translate


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A configuration, and the parameter count that its run printed."""

    level: str
    config: dict[str, Any]
    expected: int
    is_complete: bool

    def family(self) -> str | None:
        """Return the family of the level, or None if it belongs to none."""
        try:
            return find_family(translate(self.level, {})[0]).name
        except NotFound:
            return None

    def count(self) -> int | str:
        """Return our count, or an error message."""
        try:
            return count_parameters(self.level, self.config, STUDY)
        except (ElmanError, ImportError) as exc:
            return f"{type(exc).__name__}: {exc}"


def read_rows(path: Path) -> list[Row]:
    """Read all rows; runs whose command line is lost have an incomplete configuration."""
    with path.open(newline="") as file:
        return [
            Row(
                level=row["level"],
                config={name: int(row[name]) for name in ("dim", "depth") if row[name]}
                | json.loads(row["config"]),
                expected=int(row["params"]),
                is_complete=row["formula_exact"] == "1",
            )
            for row in csv.DictReader(file)
        ]


def main() -> int:
    """Print counts of reproduced rows and each mismatch; return the exit code."""
    parser = argparse.ArgumentParser(description="Compare parameter counts with the study's.")
    parser.add_argument("table", type=Path, metavar="COUNTS.csv")
    total: Counter[str] = Counter()
    reproduced: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    unknown = 0
    for row in read_rows(parser.parse_args().table):
        family = row.family()
        if family is None:
            outside[row.level] += 1
        elif not row.is_complete:
            unknown += 1
        else:
            total[family] += 1
            got = row.count()
            reproduced[family] += got == row.expected
            if got != row.expected:
                print(f"mismatch: {row.level} {json.dumps(row.config)}: {row.expected}, not {got}")
    for family, rows in total.most_common():
        print(f"{family:12} {reproduced[family]:5} of {rows}")
    print(f"{'total':12} {reproduced.total():5} of {total.total()}")
    print(f"not compared: {unknown} rows without a configuration, ", end="")
    print(f"{outside.total()} rows of {len(outside)} levels outside all families")
    return 0 if total and reproduced == total else 1


if __name__ == "__main__":
    sys.exit(main())
