"""The option `--inside`: an executor in the allocation that a command was started in."""

from dataclasses import asdict
from typing import Annotated, Any

from typer import Option

from elmanctl import clock
from elmanctl.cli.output import counted
from elmanctl.errors import ConfigError, UsageError
from elmanctl.ledger.run_state import RunState
from elmanctl.ledger.spending import gpus_asked
from elmanctl.run.paths import RunPaths
from elmanctl.schedulers.inside_executor import InsideExecutor
from elmanctl.search.allocation_end import needed_s, shortage
from elmanctl.search.workload import attempt_resources
from elmanctl.settings import Settings

InsideFlag = Annotated[
    bool,
    Option(
        "--inside", help="Train in steps of the allocation that this is started in, not in jobs"
    ),
]


def inside_executor(
    paths: RunPaths, executor: str, settings: Settings, state: RunState | None = None
) -> InsideExecutor:
    """Return the executor of a run in the allocation around this process.

    Raises UsageError for a run on one machine, ConfigError for trainings over several nodes,
    EnvironmentNotReady outside of an allocation, in one without room for an evaluation, and in one
    that ends before a single evaluation would.
    """
    if executor == "local":
        raise UsageError(
            "`--inside` trains on the nodes of an allocation, and this search on one machine",
            hint="leave `--local` out; a run that began with it stays on its machine",
        )
    if settings.train.nodes > 1:
        raise ConfigError(
            f"`train.nodes` is {settings.train.nodes}, and a step of `--inside` is on one node",
            hint="set `train.nodes` to 1, or leave `--inside` out",
        )
    resources = attempt_resources(settings, executor, {})
    inside = InsideExecutor(paths, settings, resources, gpus=gpus_asked(resources))
    reason = shortage(inside.left_s, needed_s(state, resources))
    if reason is not None:
        raise UsageError(
            reason,
            hint="start it in a longer allocation; what an evaluation needs is its time limit "
            "until some have ended: `--set slurm.timeout_min=MINUTES`",
        )
    return inside


def describe_inside(inside: InsideExecutor) -> str:
    """Return what the allocation has for a search, as one line."""
    nodes = list(dict.fromkeys(slot.node for slot in inside.slots))
    on = ", ".join(nodes) if len(nodes) <= 4 else counted(len(nodes), "node")
    left = "" if inside.left_s is None else f", ends in {clock.format_rough(inside.left_s)}"
    slots = counted(len(inside.slots), "evaluation")
    return f"allocation {inside.allocation.job_id}: {slots} at a time on {on}{left}"


def inside_data(inside: InsideExecutor) -> dict[str, Any]:
    """Return the allocation and its slots as plain data."""
    return {
        "allocation": inside.allocation.job_id,
        "slots": [asdict(slot) for slot in inside.slots],
        "left_s": inside.left_s,
    }
