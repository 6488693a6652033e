"""The verdicts met on a real cluster: kept as JSON, and as a table of docs/reliability.md."""

import json
from pathlib import Path
from typing import Any

from campaign.record import about_this_machine, release

VERSION = 1
BEGIN = "<!-- made by benchmarks/verdicts_on_cluster.py: begin -->"
END = "<!-- made by benchmarks/verdicts_on_cluster.py: end -->"


def keep(path: Path, rows: list[dict[str, Any]], *, accounting: bool) -> dict[str, Any]:
    """Add rows to a file, in place of those of the same cases on the same release; return all."""
    about = about_this_machine()
    new = [
        {"accounting": accounting, "commit": about["commit"], "slurm": about["versions"]["slurm"]}
        | row
        for row in rows
    ]
    known = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []
    renewed = {_key(row) for row in new}
    left = [row for row in known if _key(row) not in renewed]
    data = {"version": VERSION, **about, "cases": left + new}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return data


def rewrite(page: Path, data: dict[str, Any]) -> None:
    """Replace what stands between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{page} has no place for the table"
    page.write_text(f"{before}{BEGIN}\n{generated(data)}\n{END}{after}", encoding="utf-8")


def generated(data: dict[str, Any]) -> str:
    """Return the generated part: what it was made with, and a line for each case."""
    rows = data["cases"]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    slurms = ", ".join(dict.fromkeys(row["slurm"] for row in rows))
    places = sorted({(row["slurm"], not row["accounting"]) for row in rows})
    heads = [f"{release(slurm)}{', no accounting' if silent else ''}" for slurm, silent in places]
    lines = [
        f"Commit {commits}, {data['date']}; {data['machine']}; {slurms}.",
        "",
        f"| What was done to the job | Verdict | {' | '.join(heads)} |",
        f"| --- | --- |{' --- |' * len(heads)}",
    ]
    for name in dict.fromkeys(row["case"] for row in rows):
        of_case = {
            (row["slurm"], not row["accounting"]): row for row in rows if row["case"] == name
        }
        one = next(iter(of_case.values()))
        cells = [_cell(of_case.get(place)) for place in places]
        lines.append(f"| {one['done']} | `{one['expected']}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[str, bool, str]:
    """Return what there is one row of: a case on one release, with accounting or without."""
    return row["case"], row["accounting"], release(row["slurm"])


def _cell(row: dict[str, Any] | None) -> str:
    """Return what came of a case: how sure, or the verdict that it should not have got."""
    if row is None:
        return ""
    words = [row["confidence"], *([row["cause"]] if row["cause"] else [])]
    return ", ".join(words) if row["holds"] else f"**`{row['verdict']}`**, {', '.join(words)}"
