"""The `best` command: the best configuration of a search, to be pasted where it is needed."""

from collections.abc import Callable
from typing import Annotated

from typer import Context, Option

from elmanctl.cli.completion import one_of
from elmanctl.cli.context import JsonFlag, ReadRunArgument, chosen_run, load_readable
from elmanctl.cli.output import print_json, print_line, say
from elmanctl.codec import encode
from elmanctl.errors import NotFound, UsageError
from elmanctl.search.confirmation import best_of, standing
from elmanctl.search.recipe import Recipe, as_command, as_python, as_toml, recipe_of

_FORMS: dict[str, Callable[[Recipe], str]] = {
    "command": as_command,
    "toml": as_toml,
    "python": as_python,
}


def best(
    ctx: Context,
    run: ReadRunArgument = None,
    form: Annotated[
        str,
        Option("--as", help="command, toml or python", autocompletion=one_of(tuple(_FORMS))),
    ] = "command",
    as_json: JsonFlag = False,
) -> None:
    """Print the best configuration of a search, to paste

    It is the confirmed winner, or else the one that is estimated to be the best. Numbers have all
    their digits, and what is the default is left out: of the model's family, and of the protocol
    for its training. On standard output is nothing else.

    \b
    Examples:
        elmanctl best
        elmanctl best e88-480m --as toml > elman.toml
        elmanctl best e88-480m --as python
    """
    if form not in _FORMS:
        raise UsageError(f"`--as` is {', '.join(_FORMS)}, not `{form}`")
    paths = chosen_run(ctx, run)
    state = load_readable(paths)
    shown = standing(state)
    found = best_of(state, shown)
    if found is None or found.loss is None:
        raise NotFound(
            f"no evaluation of `{state.run['name']}` is completed",
            hint=f"see why with `elmanctl status {state.run['name']}`",
        )
    recipe = recipe_of(state, found)
    if as_json:
        data = {**encode(recipe), "loss": found.loss, "is_confirmed": shown.winner is not None}
        print_json(data)
        return
    fact = "confirmed" if shown.winner is not None else "not confirmed"
    say(f"{recipe.evaluation}, {fact}: loss {found.loss!r}, {found.parameters:,} parameters")
    print_line(_FORMS[form](recipe))
