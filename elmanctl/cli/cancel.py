"""The `cancel` command: cancel evaluations or a whole run, then check that their jobs ended."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from typer import Context, Option

from elmanctl.cli import context
from elmanctl.cli.output import columns, confirm, counted, print_json, print_table
from elmanctl.cli.run_client import act_on_run
from elmanctl.errors import PartialFailure, UsageError
from elmanctl.ledger.records import Evaluation
from elmanctl.schedulers.lanes import slurm_job
from elmanctl.search.actions import to_cancel
from elmanctl.search.cancelled_jobs import Now
from elmanctl.search.requeue import last_kind
from elmanctl.search.selection import select_named


def cancel(
    ctx: Context,
    names: context.RunAndEvaluations = None,
    run: context.RunOption = None,
    everything: Annotated[bool, Option("--all", help="Cancel the whole run for good")] = False,
    dry_run: context.DryRunFlag = False,
    yes: context.YesFlag = False,
    as_json: context.JsonFlag = False,
) -> None:
    """Cancel evaluations or a whole run

    Ends the jobs and closes their evaluations as cancelled; nothing is reported to the optimizer.
    Then polls the scheduler: if jobs still exist they are listed, and the exit code is 5.

    \b
    Examples:
        elmanctl cancel g003-e01 g003-e02
        elmanctl cancel e88-480m --all
    """
    run, evaluations = context.split_names(ctx, run, names or [])
    if everything and evaluations:
        raise UsageError(
            f"`--all` takes the whole name of a run and no evaluations, not `{evaluations[0]}`",
            hint="`elmanctl status` lists the runs",
        )
    paths = context.run_to_change(ctx, run, whole_name=everything)
    state = context.load_readable(paths)
    if not (everything or evaluations):
        raise UsageError(
            "name evaluations to cancel, or pass `--all`",
            hint=f"`elmanctl cancel {state.run['name']} --all` ends the whole run for good",
        )
    chosen = to_cancel(state) if everything else select_named(state, evaluations)
    if dry_run:
        _print_plan(chosen, as_json=as_json)
        return
    question = f"cancel {counted(len(chosen), 'evaluation')} of {state.run['name']}?"
    if everything and not confirm(question, yes=yes):
        return
    answer = act_on_run(paths, "cancel", {"all": everything, "evaluations": [e.id for e in chosen]})
    if as_json:
        print_json(answer)
    else:
        keys = ("evaluation", "job", "result", "now")
        rows = [[row[key] for key in keys] for row in answer["cancelled"]]
        print_table(columns("EVAL", "JOB", "RESULT", "JOB NOW"), rows)
    _check_jobs_ended(answer)


def _check_jobs_ended(answer: Mapping[str, Any]) -> None:
    """Raise PartialFailure when cancelled jobs still exist, or may."""
    error = f": {answer['error']}" if answer.get("error") else ""
    there = answer["still_there"]
    if there:
        jobs = ", ".join(f"{row['job']} {row['now']}" for row in there)
        raise PartialFailure(
            "the evaluations are closed, but "
            f"{len(there)} of their jobs still exist: {jobs}{error}",
            hint=_remedy([str(row["job"]) for row in there]),
        )
    lost = [row["evaluation"] for row in answer["cancelled"] if row["now"] == Now.UNKNOWN]
    if lost:
        why = answer["unknown"] or "the scheduler did not say"
        raise PartialFailure(
            "the evaluations are closed, but it is unknown whether the jobs of "
            f"{', '.join(lost)} have ended: {why}{error}",
            hint="check with `squeue --me`, and end them with scancel",
        )


def _remedy(jobs: Sequence[str]) -> str:
    if any(slurm_job(job) != job for job in jobs):
        return "cancel them again: scancel would end the other attempts of their jobs, too"
    return f"end them with `scancel {' '.join(jobs)}`"


def _print_plan(chosen: list[Evaluation], *, as_json: bool) -> None:
    rows = [(e.id, e.state.value, last_kind(e), len(e.attempts)) for e in chosen]
    if as_json:
        keys = ("evaluation", "state", "was", "attempts")
        print_json({"evaluations": [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    print_table(columns("EVAL", "STATE", "WAS", "ATTEMPTS"), [list(map(str, row)) for row in rows])
