"""The `confirm` command: the best of a search again, on fresh seeds."""

from typing import Annotated

from typer import Context, Option

from elmanctl.cli.context import JsonFlag, RunArgument, load_readable, run_to_change
from elmanctl.cli.controller import drive
from elmanctl.cli.inside import InsideFlag
from elmanctl.cli.output import counted, print_json, say
from elmanctl.cli.search_summary import print_summary, run_summary
from elmanctl.config import refuse_outside
from elmanctl.errors import UsageError
from elmanctl.ledger.records import RunStatus
from elmanctl.ledger.run_state import RunState
from elmanctl.search.confirmation import standing
from elmanctl.search.confirmation_plan import due_confirmations
from elmanctl.search.costs import effective_setting
from elmanctl.search.effective_settings import effective_settings
from elmanctl.settings import SearchSettings


def confirm(
    ctx: Context,
    run: RunArgument = None,
    top: Annotated[
        int | None,
        Option(help="Best configurations to train again; default: the run's, or 3", min=1),
    ] = None,
    seeds: Annotated[
        int | None, Option(help="Fresh seeds for each of them; default: the run's, or 3", min=1)
    ] = None,
    inside: InsideFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Train the best of a search again on fresh seeds

    Of many noisy losses the lowest flatters its configuration. The best are ranked by their mean
    over seeds that the search did not use. A search does this at its end by itself; this adds
    configurations or seeds, or confirms a search that ended without. Of a search that is not at
    its end it confirms the best so far, and leaves it paused.

    \b
    Examples:
        elmanctl confirm e88-480m
        elmanctl confirm e88-480m --top 5 --seeds 5
    """
    paths = run_to_change(ctx, run)
    state = load_readable(paths)
    changes = {
        "search.confirm_top": _chosen(state, "confirm_top", top),
        "search.confirm_seeds": _chosen(state, "confirm_seeds", seeds),
    }
    refuse_outside(changes)
    _refuse_unconfirmable(state)
    settings = effective_settings(state, changes)
    if not standing(state).undecided and due_confirmations(state, settings) is None:
        say(_nothing_left(state, changes))
        if as_json:
            print_json(run_summary(paths, state))
        else:
            print_summary(paths, state)
        return
    drive(paths, changes=changes, confirms_now=True, inside=inside, as_json=as_json)


def _chosen(state: RunState, name: str, asked: int | None) -> int:
    """Return the number of an option, else that of the run, else the default of the setting."""
    if asked is not None:
        return asked
    known: int | None = effective_setting(state, f"search.{name}")
    default: int = getattr(SearchSettings(), name)
    return known or default


def _refuse_unconfirmable(state: RunState) -> None:
    """Raise UsageError for a run whose best cannot be confirmed."""
    name = state.run["name"]
    if state.status is RunStatus.CANCELLED:
        raise UsageError(
            f"the run `{name}` was cancelled",
            hint=f"start another one: `elmanctl search {state.run['model']}`",
        )
    if state.best() is None:
        raise UsageError(
            f"no evaluation of `{name}` is completed, so there is nothing to confirm",
            hint=f"see why with `elmanctl status {name} --state failed`",
        )


def _nothing_left(state: RunState, changes: dict[str, int]) -> str:
    top = counted(changes["search.confirm_top"], "configuration")
    seeds = counted(changes["search.confirm_seeds"], "fresh seed")
    text = f"nothing to confirm: what {top} on {seeds} take has been trained"
    failed = standing(state).failed
    if not failed:
        return text
    return f"{text}; {counted(len(failed), 'training')} failed, see `elmanctl requeue --help`"
