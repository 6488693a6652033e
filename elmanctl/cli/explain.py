"""The `explain` command: what happened to one evaluation and why, in order; it writes nothing."""

from pathlib import Path

from typer import Context

from elmanctl import clock
from elmanctl.cli.context import JsonFlag
from elmanctl.cli.output import print_json, print_line
from elmanctl.cli.show import EvaluationArgument, RunOrEvaluation, find_shown, log_path
from elmanctl.codec import encode
from elmanctl.folders import shown
from elmanctl.ledger.contents import read_events
from elmanctl.ledger.records import Evaluation
from elmanctl.run.paths import RunPaths
from elmanctl.search.explanation import Step
from elmanctl.search.explanation import explain as steps_of
from elmanctl.search.recipe import as_command, recipe_of


def explain(
    ctx: Context,
    run_or_evaluation: RunOrEvaluation,
    evaluation: EvaluationArgument = None,
    as_json: JsonFlag = False,
) -> None:
    """Explain what happened to one evaluation, in order

    Why its point was asked, what each attempt was given and how it ended, with the evidence; what
    followed by the policy, and what the optimizer learned; its files, and the command that trains
    it again. Everything is from the ledger; times are local.

    \b
    Examples:
        elmanctl explain g012-e03
        elmanctl explain e88-480m g012-e03
        elmanctl explain e88-480m/g012-e03
    """
    paths, state, found = find_shown(ctx, run_or_evaluation, evaluation)
    steps = steps_of(state, read_events(paths.ledger).events, found)
    files = _files(paths, found)
    command = as_command(recipe_of(state, found))
    if as_json:
        print_json(
            {
                "run": state.run["name"],
                "evaluation": found.id,
                "state": found.state.value,
                "steps": [encode(step) for step in steps],
                "files": {str(path): there for path, there in files.items()},
                "command": command,
            }
        )
        return
    print_line(f"{found.id} of {state.run['name']}: {found.state}")
    _print_steps(steps)
    print_line("files")
    for path, is_there in files.items():
        print_line(f"  {shown(path)}{'' if is_there else ' (not there)'}")
    print_line("train it again")
    print_line(f"  {command}")


def _print_steps(steps: list[Step]) -> None:
    day = None
    for step in steps:
        moment = clock.from_text(step.at).astimezone()
        if moment.date() != day:
            day = moment.date()
            print_line(f"{day:%Y-%m-%d}")
        print_line(f"  {moment:%H:%M:%S} {step.what}")
        for why in step.why:
            for line in why.splitlines():
                print_line(f"           {line}")


def _files(paths: RunPaths, found: Evaluation) -> dict[Path, bool]:
    """Return the folder and the log of each attempt, and whether they are there."""
    named = []
    for attempt in found.attempts:
        named.append(paths.attempt(found.id, attempt.number).folder)
        if attempt.job_id is not None:
            named.append(log_path(paths, attempt))
    return {path: path.exists() for path in named}
