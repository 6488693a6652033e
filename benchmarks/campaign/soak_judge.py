"""Whether a soak held what is promised, and its part of docs/reliability.md."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from campaign.search import Search
from elmanctl.ledger.records import RunStatus, State

if TYPE_CHECKING:
    from campaign.soak import Plan

BEGIN = "<!-- made by benchmarks/soak.py: begin -->"
END = "<!-- made by benchmarks/soak.py: end -->"
MOST_GROWTH = 1.2


def judge(search: Search, plan: "Plan", seen: dict[str, Any]) -> dict[str, Any]:
    """Return counts by the workers' own log and the ledger, and every promise that was broken."""
    state = search.state()
    completed = Counter(e for e, _, _, what in search.trainings() if what == "end completed")
    starts = Counter((e, n) for e, n, _, what in search.trainings() if what == "start")
    told = {e.id for e in state.evaluations.values() if e.state is State.COMPLETED}
    numbers = {
        "evaluations": len(state.evaluations),
        "completed": len(told),
        "attempts": sum(len(e.attempts) for e in state.evaluations.values()),
        "without_result": sorted(set(state.evaluations) - set(completed)),
        "trained_twice": sorted(e for e, count in completed.items() if count > 1),
        "attempts_twice": sorted(f"{e}/{n}" for (e, n), count in starts.items() if count > 1),
        "verdicts": dict(
            Counter(
                str(a.verdict.kind) if a.verdict else "none"
                for e in state.evaluations.values()
                for a in e.attempts
            )
        ),
    }
    verify = subprocess.run(
        [sys.executable, "-m", "elmanctl", "ledger", "verify", "run"],
        cwd=search.folder,
        env=search.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    checks = {
        f"status {state.status}": state.status is RunStatus.FINISHED,
        f"{len(told)} of {plan.evaluations} completed": len(told) >= plan.evaluations,
        f"without a result: {numbers['without_result']}": not numbers["without_result"],
        f"trained twice: {numbers['trained_twice']}": not numbers["trained_twice"],
        f"attempts begun twice: {numbers['attempts_twice']}": not numbers["attempts_twice"],
        f"completed by the ledger, not by a worker: {sorted(told - set(completed))}": told
        <= set(completed),
        f"`ledger verify`: {verify.stdout}{verify.stderr}": verify.returncode == 0,
        f"memory grew to {seen['growth']} times": plan.settled > plan.evaluations
        or (seen["growth"] or MOST_GROWTH) < MOST_GROWTH,
        f"{seen['queries_a_minute']} queries a minute": seen["queries_a_minute"]
        <= plan.queries_a_minute,
        f"controllers ended by themselves: {seen['unplanned_ends']}": not seen["unplanned_ends"],
    }
    return numbers | {"broken": [words for words, holds in checks.items() if not holds]}


def rewrite(page: Path, data: dict[str, Any]) -> None:
    """Replace what stands between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{page} has no place for the table"
    page.write_text(f"{before}{BEGIN}\n{generated(data)}\n{END}{after}", encoding="utf-8")


def generated(data: dict[str, Any]) -> str:
    """Return the generated part: what it was made with, and what came of it."""
    about, plan, disturbed = data["about"], data["plan"], data["disturbed"]
    rows = [
        ("Duration", f"{data['seconds'] / 60:.0f} min"),
        ("Limit on submitted jobs, the controller's own among them", plan["submit_limit"]),
        *((what.capitalize(), count) for what, count in sorted(disturbed.items())),
        ("Evaluations", data["evaluations"]),
        ("Evaluations completed", data["completed"]),
        ("Attempts", data["attempts"]),
        ("Verdicts", ", ".join(f"{n} {kind}" for kind, n in sorted(data["verdicts"].items()))),
        ("Evaluations without a result", len(data["without_result"])),
        ("Evaluations trained twice", len(data["trained_twice"])),
        ("Controllers that ended by themselves", len(data["unplanned_ends"])),
        *(
            (
                f"Peak memory of `{command}` at the end, and after {plan['settled']} evaluations",
                f"{data['peak_mb'][command]} MB, {settled_mb} MB",
            )
            for command, settled_mb in data["settled_mb"].items()
        ),
        ("Queries of the scheduler", ", ".join(f"{n} {c}" for c, n in data["queries"].items())),
        ("Queries a minute", data["queries_a_minute"]),
        ("Most queries within a minute", data["most_queries_in_a_minute"]),
        ("Broken", "; ".join(data["broken"]) or "nothing"),
    ]
    return "\n".join(
        [
            f"Commit {about['commit']}, {data['began'][:10]}; {about['machine']}; "
            f"{about['versions']['slurm']}.",
            "",
            "| What | |",
            "| --- | ---: |",
            *(f"| {what} | {value} |" for what, value in rows),
        ]
    )
