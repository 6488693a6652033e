"""Shell completion: the script of each shell, and the names that complete its words.

Names come from files alone; an unreadable file completes nothing and prints nothing.
"""

import logging
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Annotated

from typer import Argument, Context

from elmanctl import sources
from elmanctl.cli.output import print_line
from elmanctl.config import resolve, template_folders
from elmanctl.constants import COMPLETION_VARIABLE, PROGRAM
from elmanctl.errors import ElmanError, UsageError
from elmanctl.ledger.records import VerdictKind
from elmanctl.ledger.state import load_run
from elmanctl.models.backends import AUTO
from elmanctl.models.registry import FAMILIES, find_family
from elmanctl.run.paths import RunPaths
from elmanctl.search.selection import find_run, list_runs, list_single_evaluations
from elmanctl.settings import setting_help
from elmanctl.space.space import space_names

logger = logging.getLogger(__name__)

Completer = Callable[[str], list[str]]


def join_options(environ: MutableMapping[str, str]) -> None:
    """Join `--option=value`, which bash splits into three words, in its completion variables."""
    if not environ.get("COMP_CWORD", "").isdigit():
        return
    words, current = environ.get("COMP_WORDS", "").split("\n"), int(environ["COMP_CWORD"])
    kept, at = [], current
    for index, word in enumerate(words):
        is_sign = word == "=" and words[index - 1].startswith("--")
        if is_sign and index < current:
            at -= 1
        elif index != current or not is_sign:
            kept.append(word)
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(kept), str(at)


def one_of(known: Iterable[str]) -> Completer:
    """Return a completer for one word of a closed set."""
    words = list(known)

    def complete(incomplete: str) -> list[str]:
        return _starting(words, incomplete)

    return complete


def some_of(known: Iterable[str]) -> Completer:
    """Return a completer for the last word of a comma-separated list, each word once."""
    words = list(known)

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        left = [word for word in words if word not in before.split(",")]
        return [f"{before}{comma}{word}" for word in _starting(left, last)]

    return complete


verdict_kinds = some_of(kind.value for kind in VerdictKind)


def model_names(incomplete: str) -> list[str]:
    """Return the models whose names start with the word."""
    return _starting(FAMILIES, incomplete)


def presets(incomplete: str) -> list[str]:
    """Return the presets whose names start with the word."""
    return _starting(sources.tables("preset"), incomplete)


def protocols(incomplete: str) -> list[str]:
    """Return the protocols whose names start with the word."""
    return _starting(sources.tables("protocol"), incomplete)


def templates(incomplete: str) -> list[str]:
    """Return the resource templates whose names start with the word, the user's own included."""
    try:
        folders = template_folders(resolve({}).settings)
        return _starting(sources.template_names(folders), incomplete)
    except (ElmanError, OSError) as exc:
        logger.debug("nothing to complete: %s", exc)
        return []


def spaces(ctx: Context, incomplete: str) -> list[str]:
    """Return the search spaces of the model on the line, or of any model."""
    names = (space for model in _models_on(ctx) for space in space_names(model))
    return _starting(dict.fromkeys(names), incomplete)


def backends(ctx: Context, incomplete: str) -> list[str]:
    """Return the backends of the model on the line, or of any model."""
    names = (name for model in _models_on(ctx) for name in FAMILIES[model].backends)
    return _starting([AUTO, *dict.fromkeys(names)], incomplete)


def _models_on(ctx: Context) -> Iterable[str]:
    # While an option awaits its value, click has not parsed the arguments before it.
    words = ctx.params.get("models") or [ctx.params.get("model") or ctx.params.get("level")]
    levels = [word for word in (*words, *ctx.args) if word and "=" not in word]
    try:
        return [find_family(level).name for level in levels] or FAMILIES
    except ElmanError as exc:
        logger.debug("no such model: %s", exc.message)
        return FAMILIES


def setting_keys(incomplete: str) -> list[str]:
    """Return the setting keys that start with the word, with `=` for the value."""
    return _starting((f"{key}=" for key in setting_help()), incomplete)


def run_names(incomplete: str) -> list[str]:
    """Return the runs whose names start with the word, newest first."""
    try:
        return _starting((path.name for path in reversed(list_runs(_runs()))), incomplete)
    except ElmanError as exc:
        logger.debug("nothing to complete: %s", exc.message)
        return []


def run_names_and_settings(incomplete: str) -> list[str]:
    """Return the runs and the setting keys that start with the word."""
    return [*run_names(incomplete), *setting_keys(incomplete)]


def evaluation_names(ctx: Context, incomplete: str) -> list[str]:
    """Return the evaluations of the run on the line, or of the newest run, newest first."""
    try:
        named = ctx.params.get("run_or_evaluation") or ctx.params.get("run")
        folder = find_run(_runs(), named if named in run_names("") else None)
        evaluations = load_run(RunPaths(folder).folder).state.evaluations
    except (ElmanError, OSError) as exc:
        logger.debug("nothing to complete: %s", exc)
        return []
    return _starting(["best", *reversed(evaluations)], incomplete)


def run_or_evaluation_names(ctx: Context, incomplete: str) -> list[str]:
    """Return the runs, and the evaluations of the newest one."""
    return [*run_names(incomplete), *evaluation_names(ctx, incomplete)]


def compared_names(incomplete: str) -> list[str]:
    """Return what can be compared: runs, results of `eval`, and the evaluations of a named run."""
    run, slash, _ = incomplete.partition("/")
    try:
        if slash:
            evaluations = load_run(find_run(_runs(), run)).state.evaluations
            return _starting((f"{run}/{name}" for name in evaluations), incomplete)
        singles = [path.name for path in list_single_evaluations(_runs())]
    except (ElmanError, OSError) as exc:
        logger.debug("nothing to complete: %s", exc)
        return []
    return [*run_names(incomplete), *_starting(singles, incomplete)]


def _runs() -> Path:
    return Path(resolve({}).settings.paths.runs).expanduser()


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


_SHELLS = ("bash", "zsh", "fish")


def completion(
    shell: Annotated[str, Argument(help="bash, zsh or fish", autocompletion=one_of(_SHELLS))],
) -> None:
    """Print the shell completion script

    \b
    Examples:
        eval "$(elmanctl completion bash)"
        elmanctl completion fish > ~/.config/fish/completions/elmanctl.fish
    """
    from typer._completion_shared import get_completion_script

    if shell not in _SHELLS:
        raise UsageError(f"no completion for `{shell}`", hint="bash, zsh and fish are supported")
    print_line(
        get_completion_script(prog_name=PROGRAM, complete_var=COMPLETION_VARIABLE, shell=shell)
    )
