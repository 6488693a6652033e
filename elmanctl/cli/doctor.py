"""`doctor`: what this machine has, and what to do about the rest."""

from dataclasses import asdict
from pathlib import Path

import typer

from elmanctl.cli.context import JsonFlag, resolve_settings
from elmanctl.cli.output import Column, hint, print_json, print_table
from elmanctl.doctor import examine


def doctor(ctx: typer.Context, as_json: JsonFlag = False) -> None:
    """Check what this machine has: packages, model backends, Slurm, disk

    Nothing is changed.  What is missing may not be needed: a login node trains nothing, and a
    workstation has no Slurm.

    \b
    Examples:
        elmanctl doctor
        elmanctl doctor --json
    """
    settings = resolve_settings(ctx, {}).settings
    runs = Path(settings.paths.runs).expanduser().resolve()
    findings = examine(runs, settings.disk.floor_gb)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
        return
    print_table(
        [
            Column(name="PART"),
            Column(name="NAME"),
            Column(name="OK"),
            Column(name="DETAIL", wraps=True),
        ],
        [[f.part, f.name, "yes" if f.is_fine else "no", f.detail] for f in findings],
    )
    for finding in findings:
        if finding.fix:
            hint(f"{finding.name}: {finding.fix}")
