"""The summary of a search at its end: the best evaluation, the cost, the next command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elmanctl import clock
from elmanctl.cli import rows
from elmanctl.cli.costs import cost_data, describe_cost, describe_waste
from elmanctl.cli.output import hint, print_line, shown_count
from elmanctl.folders import working_folder
from elmanctl.ledger.records import Evaluation, RunStatus, State
from elmanctl.search.session import Session


def run_summary(session: Session) -> dict[str, Any]:
    """Return the summary of a search as plain data."""
    state = session.state
    best = state.best()
    return {
        "run": state.run["name"],
        "status": state.status.value,
        "evaluations": {kind.value: count for kind, count in state.counts().items()},
        "refused_share": state.refused_share,
        "answered": state.answered,
        "cost": cost_data(state, has_controller=False, now=clock.now()),
        "best": None
        if best is None
        else {
            "evaluation": best.id,
            "loss": best.loss,
            "config": best.hyperparameters,
            "parameters": best.parameters,
        },
        "unigram_nats": state.run["data"]["unigram_nats"],
        **rows.origin_data(state.run),
        "ledger": str(session.paths.ledger),
    }


def print_summary(session: Session) -> None:
    """Print the summary of a search and a hint at the next command."""
    state = session.state
    counts = state.counts()
    print_line(
        f"{state.run['name']} {state.status}: {counts[State.COMPLETED]} completed, "
        f"{counts[State.FAILED]} failed, {counts[State.CANCELLED]} cancelled"
    )
    print_line(f"search       {rows.start_line(state.run)}")
    if state.refused_share:
        print_line(f"points       {state.refused_share:.0%} were infeasible and redrawn at no cost")
    cost = cost_data(state, has_controller=False, now=clock.now())
    for label, text in (
        ("cost", describe_cost(state, cost)),
        ("waste", describe_waste(state, cost)),
    ):
        if text:
            print_line(f"{label:<12} {text}")
    best = state.best()
    if best is not None and best.loss is not None:
        entropy = float(state.run["data"]["unigram_nats"])
        values = best.hyperparameters
        shown = "  ".join(
            f"{key}={rows.describe_config(values[key])}"
            for key in rows.searched_names(state.run)
            if key in values
        )
        print_line(f"best         {best.id}")
        window = _result(best).get("loss_window_steps")
        print_line(f"  loss       {best.loss:.4f} nats/byte, mean of the last {window} steps")
        side = "below" if best.loss < entropy else "above"
        print_line(
            f"  unigram    {entropy:.4f} nats/byte; the loss is "
            f"{abs(entropy - best.loss):.4f} {side}"
        )
        print_line(f"  corpus     {rows.corpus_line(state.run)}")
        print_line(f"  config     {shown}")
        print_line(f"  parameters {shown_count(best.parameters)} (counted in the trained model)")
    print_line(f"ledger       {_relative(session.paths.ledger)}")
    name = state.run["name"]
    if best is None:
        hint(f"see why with `elmanctl status {name} --state failed`")
        return
    if state.status is RunStatus.CANCELLED:
        hint(f"see `elmanctl show {name} best`")
        return
    more = f"elmanctl resume {name} --generations {state.generations + 2}"
    hint(f"see `elmanctl show {name} best`; `{more}` adds two generations")


def _relative(path: Path) -> Path:
    """Return a path relative to the working folder, if it is below it."""
    here = working_folder()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _result(evaluation: Evaluation) -> Mapping[str, object]:
    last = evaluation.last_attempt
    return last.result if last is not None and last.result is not None else {}
