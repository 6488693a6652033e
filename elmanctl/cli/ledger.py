"""The `ledger` commands: verify, repair and export the records of a run."""

from pathlib import Path
from typing import Annotated, Any

from typer import Context, Exit, Option

from elmanctl.cli import context, output
from elmanctl.errors import UsageError, os_errors_as
from elmanctl.search.repair import RepairPlan, plan_repair, repair_run
from elmanctl.search.verify import Verification, verify_run

app = context.command_group("ledger", "Verify, repair and export the records of a run")


@app.command("verify")
def verify(
    ctx: Context, run: context.ReadRunArgument = None, as_json: context.JsonFlag = False
) -> None:
    """Check that everything a run has on record is consistent

    Checks each line and its checksum, the order of events, the snapshot, and the files of
    submissions and attempts. Changes nothing. Exit code 1 if it finds a fault.

    \b
    Examples:
        elmanctl ledger verify
        elmanctl ledger verify e88-480m --json
    """
    paths = context.chosen_run(ctx, run)
    found = verify_run(paths)
    if as_json:
        output.print_json(_verification_data(paths.folder.name, found))
    else:
        _print_verification(paths.folder.name, found)
    if found.findings:
        raise Exit(1)


def _verification_data(name: str, found: Verification) -> dict[str, Any]:
    return {
        "run": name,
        "intact": not found.findings,
        "events": len(found.scan.events),
        "evaluations": len(found.scan.state.evaluations),
        "torn_bytes": found.scan.torn_bytes,
        "late_events": found.scan.stale,
        "findings": [
            {"file": each.file, "line": each.line, "text": each.text} for each in found.findings
        ],
    }


def _print_verification(name: str, found: Verification) -> None:
    scan = found.scan
    if found.findings:
        output.print_table(
            [
                output.Column("FILE"),
                output.Column("LINE", right=True),
                output.Column("FAULT", wraps=True),
            ],
            [(one.file, str(one.line) if one.line else None, one.text) for one in found.findings],
        )
    if scan.torn_bytes:
        output.say(f"a torn last line of {scan.torn_bytes} bytes is ignored; `resume` cuts it off")
    if scan.stale:
        output.say(f"{scan.stale} late events of a controller that had lost its lease are ignored")
    events = f"{len(scan.events)} events, {len(scan.state.evaluations)} evaluations"
    if not found.findings:
        output.print_line(f"{name}: intact, {events}")
        return
    output.say(f"{name}: {output.counted(len(found.findings), 'fault')}; {events} are intact")
    output.hint(f"preview a repair with `elmanctl ledger repair {name} --dry-run`")


@app.command("repair")
def repair(
    ctx: Context,
    run: context.RunArgument = None,
    yes: context.YesFlag = False,
    dry_run: context.DryRunFlag = False,
    as_json: context.JsonFlag = False,
) -> None:
    """Repair a damaged run

    Keeps the ledger up to its first damaged line and moves the original file aside. Refused while a
    controller is alive.

    \b
    Examples:
        elmanctl ledger repair e88-480m --dry-run
        elmanctl ledger repair e88-480m --yes
    """
    paths = context.run_to_change(ctx, run)
    name = paths.folder.name
    plan = plan_repair(paths)
    if not as_json:
        _print_plan(name, plan)
    if plan.is_needed and not dry_run:
        if not output.confirm(f"repair {name}?", yes=yes):
            return
        plan = repair_run(paths, output.say)
        output.hint(f"continue with `elmanctl resume {name}`")
    if as_json:
        output.print_json(_plan_data(name, plan, done=plan.is_needed and not dry_run))


def _plan_data(name: str, plan: RepairPlan, *, done: bool) -> dict[str, Any]:
    return {
        "run": name,
        "needed": plan.is_needed,
        "repaired": done,
        "damage": {"line": plan.fault.line, "text": plan.fault.text} if plan.fault else None,
        "torn_bytes": plan.torn_bytes,
        "lost_events": plan.lost_events,
        "lost_evaluations": list(plan.lost_evaluations),
        "lost_submissions": list(plan.lost_submissions),
        "looked_up_later": list(plan.adopted),
        "unknown_jobs": list(plan.job_names),
        "unknown_attempts": list(plan.orphans),
        "unknown_results": list(plan.results),
    }


def _print_plan(name: str, plan: RepairPlan) -> None:
    if not plan.is_needed:
        output.print_line(f"{name}: nothing to repair")
        return
    if plan.torn_bytes:
        output.print_line(
            f"an incomplete last line of {plan.torn_bytes} bytes is saved and cut off"
        )
    if plan.fault is None:
        return
    output.print_line(f"ledger.jsonl line {plan.fault.line}: {plan.fault.text}")
    output.print_line(
        f"everything before that line is kept; {plan.lost_events} intact events after it are lost"
    )
    for title, names in (
        ("lost evaluations", plan.lost_evaluations),
        ("lost submissions", plan.lost_submissions),
        ("submissions that `resume` will look up by job name", plan.adopted),
        ("orphaned attempt folders, moved aside", plan.orphans),
        ("orphaned attempts with a result", plan.results),
    ):
        if names:
            output.print_line(f"{title}: {', '.join(names)}")
    if plan.job_names:
        output.say("cancel these jobs if they are still running, so that nothing is trained twice:")
        for job_name in plan.job_names:
            output.say(f"  scancel --name={job_name}")


@app.command("export")
def export(
    ctx: Context,
    run: context.ReadRunArgument = None,
    as_csv: Annotated[bool, Option("--csv", help="Write CSV, one row per evaluation")] = False,
    out: Annotated[
        Path | None, Option("-o", "--out", help="File to write; default: standard output")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace an existing file")] = False,
) -> None:
    """Write every evaluation of a run as JSON or CSV

    \b
    Examples:
        elmanctl ledger export e88-480m > e88-480m.json
        elmanctl ledger export e88-480m --csv --out e88-480m.csv
    """
    # Imported late: no other command needs csv.
    from elmanctl.search.export import export_csv, export_json

    state = context.load_readable(context.chosen_run(ctx, run))
    parts = export_csv(state) if as_csv else export_json(state)
    if out is None:
        for part in parts:
            output.write_raw(part)
        return
    if out.exists() and not force:
        raise UsageError(f"{out} exists", hint="pass `--force` to replace it")
    opened = os_errors_as(UsageError, f"cannot write {out}")
    with opened, out.open("w", encoding="utf-8", newline="") as file:
        file.writelines(parts)
    output.say(f"wrote {len(state.evaluations)} evaluations to {out}")
