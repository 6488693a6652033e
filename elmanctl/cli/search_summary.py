"""The summary of a search at its end: the best evaluation, the cost, the next command."""

from dataclasses import asdict
from typing import Any

from elmanctl import clock
from elmanctl.cli import rows
from elmanctl.cli.confirmation import (
    confirmation_data,
    describe_confirmed,
    describe_estimate,
    describe_noise,
    estimate_data,
    how_to_confirm,
    print_confirmed,
)
from elmanctl.cli.costs import cost_data, describe_cost, describe_waste
from elmanctl.cli.output import counted, hint, print_line, shown_count
from elmanctl.cli.sweep_view import print_sweep, sweep_data
from elmanctl.folders import shown as shown_path
from elmanctl.ledger.records import RunStatus, State
from elmanctl.ledger.run_state import RunState
from elmanctl.run.paths import RunPaths
from elmanctl.search.confirmation import best_of, standing
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.kept_models import model_path
from elmanctl.search.sizing import Sizing, sizing_of
from elmanctl.search.stop_rules import wider_rule
from elmanctl.space.space import SearchSpace


def run_summary(paths: RunPaths, state: RunState) -> dict[str, Any]:
    """Return the summary of a search as plain data; its best is the winner, if one is confirmed."""
    shown = standing(state)
    best = best_of(state, shown)
    model = None if best is None else model_path(paths, state, best)
    return {
        "run": state.run["name"],
        "status": state.status.value,
        **({} if state.ended_by is None else {"ended_by": state.ended_by}),
        "evaluations": {kind.value: count for kind, count in state.counts().items()},
        "refused_share": state.refused_share,
        "answered": state.answered,
        "cost": cost_data(state, has_controller=False, now=clock.now()),
        "best": None
        if best is None
        else {
            "evaluation": best.id,
            "is_confirmed": shown.winner is not None,
            "loss": best.loss,
            "estimate": estimate_data(state),
            "config": best.hyperparameters,
            "parameters": best.parameters,
            "model_file": None if model is None else str(model),
        },
        **confirmation_data(state, shown),
        "noise": shown.noise and asdict(shown.noise),
        "sizing": None if (sizing := sizing_of(state)) is None else asdict(sizing),
        **sweep_data(state),
        "unigram_nats": state.run["data"]["unigram_nats"],
        **rows.origin_data(state.run),
        "ledger": str(paths.ledger),
    }


def print_summary(paths: RunPaths, state: RunState) -> None:
    """Print the summary of a search and a hint at the next command."""
    counts = state.counts()
    stopped = f"{counts[State.STOPPED]} stopped early, " if counts[State.STOPPED] else ""
    print_line(
        f"{state.run['name']} {state.status}: {counts[State.COMPLETED]} completed, {stopped}"
        f"{counts[State.FAILED]} failed, {counts[State.CANCELLED]} cancelled"
    )
    if state.ended_by is not None:
        print_line(f"ended        {state.ended_by}")
    print_line(f"search       {rows.start_line(state.run)}")
    if state.refused_share:
        fate = rows.fate_of_infeasible(state.run["optimizer"]["name"])
        print_line(f"points       {state.refused_share:.0%} were infeasible and {fate}")
    cost = cost_data(state, has_controller=False, now=clock.now())
    for label, text in (
        ("cost", describe_cost(state, cost)),
        ("waste", describe_waste(state, cost)),
        ("sizing", describe_sizing(sizing_of(state))),
    ):
        if text:
            print_line(f"{label:<12} {text}")
    _print_best(state)
    print_sweep(state)
    best = best_of(state, standing(state))
    model = None if best is None else model_path(paths, state, best)
    if model is not None:
        print_line(f"model        {shown_path(model)}")
    print_line(f"ledger       {shown_path(paths.ledger)}")
    name, best = state.run["name"], state.best()
    if best is None:
        hint(f"see why with `elmanctl status {name} --state failed`")
        return
    if state.status is RunStatus.CANCELLED:
        hint(f"see `elmanctl show {name} best`")
        return
    if standing(state).winner is None:
        hint(how_to_confirm(state))
    more = f"`elmanctl resume {name} --generations {state.generations + 2}` adds two generations"
    if state.ended_by is not None:
        branches = len(SearchSpace.decode(state.run["space"]).branches)
        wider = wider_rule(state, effective_settings(state).search, branches)
        more = f"`elmanctl resume {name} {wider}` goes on" if wider else ""
    if state.status is RunStatus.PAUSED:
        more = f"`elmanctl resume {name}` goes on with the search"
    hint("; ".join(filter(None, (f"see `elmanctl show {name} best`", more))))


def describe_sizing(sizing: Sizing | None) -> str | None:
    """Return one line on smaller requests that would have been enough; None if none is advised."""
    if sizing is None or not sizing.advised:
        return None
    used = [f"{sizing.longest_min:.3g} of {sizing.asked_min:g} min"]
    if sizing.largest_gb is not None and sizing.asked_gb is not None:
        used.append(f"{sizing.largest_gb:.2g} of {sizing.asked_gb:g} GB")
    advised = " ".join(f"--set {key}={value}" for key, value in sizing.advised.items())
    return (
        f"{counted(sizing.evaluations, 'evaluation')} took at most {' and '.join(used)}: "
        f"`{advised}` is enough"
    )


def _print_best(state: RunState) -> None:
    """Print the confirmed winner, or the evaluation of the lowest loss and that it is not one."""
    shown = standing(state)
    winner, best = shown.winner, best_of(state, shown)
    if best is None or best.loss is None:
        return
    entropy = float(state.run["data"]["unigram_nats"])
    values = best.hyperparameters
    config = "  ".join(
        f"{key}={rows.describe_config(values[key])}"
        for key in rows.searched_names(state.run)
        if key in values
    )
    print_line(f"best         {best.id}, {'confirmed' if winner else 'not confirmed'}")
    if winner is not None:
        print_line(f"  confirmed  {describe_confirmed(winner)}")
    print_line(f"  loss       {best.loss:.4f} nats/byte, {rows.loss_quantity(best)}")
    if winner is None and (estimate := estimate_data(state)) is not None:
        print_line(f"  estimate   {describe_estimate(estimate)}")
    side = "below" if best.loss < entropy else "above"
    print_line(
        f"  unigram    {entropy:.4f} nats/byte; the loss is {abs(entropy - best.loss):.4f} {side}"
    )
    print_line(f"  corpus     {rows.corpus_line(state.run)}")
    print_line(f"  config     {config}")
    print_line(f"  parameters {shown_count(best.parameters)} (counted in the trained model)")
    if shown.noise is not None:
        print_line(f"noise        {describe_noise(shown.noise)}")
    if len(shown.confirmed) > 1:
        print_confirmed(shown.confirmed, shown.noise)
