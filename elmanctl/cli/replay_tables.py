"""Tables of a replay: each objective by itself, and all of them beside one optimizer."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from elmanctl.cli.output import Column, columns, is_terminal, print_json, print_line, print_table
from elmanctl.replay.rows import Overall, Row


def print_tables(rows: Sequence[Row], total: Sequence[Overall], *, as_json: bool) -> None:
    """Print a row for each objective, optimizer and budget, then one for all objectives."""
    if as_json:
        print_json({"rows": [_plain(row) for row in rows], "overall": [_plain(o) for o in total]})
        return
    print_table(
        [
            *columns("OBJECTIVE", "OPTIMIZER"),
            *columns("BUDGET", right=True),
            *columns("SEARCHES", right=True, dispensable=3),
            *columns("MEDIAN", "Q1", "Q3", right=True),
            *columns("REGRET", right=True, dispensable=1),
            *columns("WASTED", right=True, dispensable=2),
            *columns("ANSWERED", "REDRAWN", "CPU_MS", right=True, dispensable=4),
        ],
        [
            [
                *(row.source, row.optimizer, str(row.budget), str(row.searches)),
                *(_number(value, ".4f") for value in (row.median, row.low, row.high)),
                *map(_number, (row.regret, row.wasted, row.answered, row.refused, row.cpu_ms)),
            ]
            for row in rows
        ],
    )
    print_line()
    print_table(
        [
            Column("OPTIMIZER"),
            *columns("BUDGET", "SEARCHES", "REGRET", "RATIO", "P", right=True),
        ],
        [
            [
                *(each.optimizer, str(each.budget), str(each.pairs)),
                *map(_number, (each.regret, each.ratio, each.p)),
            ]
            for each in total
        ],
    )


def _number(value: float | None, form: str = ".3g") -> str | None:
    """Format a number: briefly on a terminal, with all its digits elsewhere."""
    if value is None or math.isnan(value):
        return None
    return f"{value:{form}}" if is_terminal() else repr(value)


def _plain(record: Row | Overall) -> dict[str, object]:
    """Return a record as JSON has it: null for a number that there is not."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(record).items()
    }
