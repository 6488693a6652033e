"""Branches of a sweep, as a table and plain data that several commands show."""

from collections.abc import Mapping
from typing import Any

from elmanctl.cli.output import Column, columns, counted, format_loss, print_table
from elmanctl.cli.rows import describe_config
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState
from elmanctl.search.branches import BranchResult, branch_results


def sweep_data(state: RunState) -> dict[str, Any]:
    """Return the key `sweep` with the branches, best first; nothing for a run without a sweep."""
    branches = [
        {
            "values": dict(each.values),
            "generations": each.generations,
            "trained": each.trained,
            "best": None if each.best is None else each.best.id,
            "best_loss": None if each.best is None else each.best.loss,
        }
        for each in branch_results(state)
    ]
    return {"sweep": branches} if branches else {}


def print_sweep(state: RunState) -> None:
    """Print the branches of a sweep, best first, each with its best evaluation; or nothing."""
    branches = branch_results(state)
    if not branches:
        return
    print_table(
        [
            *columns("SWEEP"),
            *columns("GENERATIONS", "TRAINED", right=True, dispensable=1),
            *columns("BEST LOSS", right=True),
            Column("BEST", may_be_empty=True),
        ],
        [
            [
                describe_values(each.values),
                *(str(each.generations), str(each.trained)),
                format_loss(None if each.best is None else each.best.loss),
                None if each.best is None else each.best.id,
            ]
            for each in branches
        ],
    )


def sweep_lines(state: RunState) -> list[str]:
    """Return a labelled line for each branch of a sweep, best first, for the head of `status`."""
    return [
        f"  sweep   {describe_values(each.values)}: {_best(each)}, "
        f"{counted(each.generations, 'generation')}"
        for each in branch_results(state)
    ]


def branch_lines(state: RunState, chosen: Evaluation) -> list[str]:
    """Return a line on the branch of a sweep that an evaluation belongs to; none without one."""
    values = chosen.hyperparameters
    return [
        f"  sweep       {describe_values(each.values)}: {_best(each)}"
        for each in branch_results(state)
        if all(values.get(name) == value for name, value in each.values.items())
    ]


def _best(each: BranchResult) -> str:
    if each.best is None:
        return "no loss yet"
    return f"best {format_loss(each.best.loss)} ({each.best.id})"


def branch_of(state: RunState, generation: int) -> str:
    """Return the swept values of a generation, as an addition to its name; empty without any."""
    swept, members = state.run["space"].get("sweep", ()), state.generation_members(generation)
    values = {name: members[0].hyperparameters.get(name) for name in swept if members}
    return f" {describe_values(values)}" if values else ""


def describe_values(values: Mapping[str, object]) -> str:
    """Format the swept values of a branch."""
    return " ".join(f"{name}={describe_config(value)}" for name, value in values.items())
