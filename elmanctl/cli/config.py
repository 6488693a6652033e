"""The `config` command: the effective settings, their origins, and the policy table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from typer import Context, Option

from elmanctl.cli.completion import presets, protocols
from elmanctl.cli.context import JsonFlag, resolve_settings
from elmanctl.cli.output import Column, columns, print_json, print_line, print_table, warn
from elmanctl.settings import flat
from elmanctl.verdicts.policy import shown_rules


def config(
    ctx: Context,
    show_origin: Annotated[
        bool, Option("--show-origin", help="Show where each value comes from")
    ] = False,
    preset: Annotated[
        str | None,
        Option(help="As `search --preset` would see them", autocompletion=presets),
    ] = None,
    protocol: Annotated[
        str | None,
        Option(help="As `search --protocol` would see them", autocompletion=protocols),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the effective settings, their origins, and the policy for each verdict

    \b
    Examples:
        elmanctl config --show-origin
        elmanctl config --protocol study-2026-01
    """
    resolved = resolve_settings(ctx, {"train.protocol": protocol}, preset)
    rows = [
        {"key": key, "value": value, "from": resolved.origins.get(key, "default")}
        for key, value in flat(asdict(resolved.settings))
    ]
    policy: Sequence[Mapping[str, object]] = shown_rules(resolved.settings.retry)
    if resolved.sbatch is not None:
        refused = [fault.message for fault in resolved.sbatch.refused]
        for line in (*resolved.sbatch.unused, *refused):
            warn(line)
    if as_json:
        print_json({"settings": rows, "policy": policy})
        return
    names = ["KEY", "VALUE", *(["FROM"] if show_origin else [])]
    cells = [[row["key"], _format_value(row["value"]), row["from"]] for row in rows]
    print_table(columns(*names), [row[: len(names)] for row in cells])
    print_line("")
    keys = ("verdict", "case", "told", "again", "change", "group")
    print_table(
        [
            *columns("VERDICT", "CASE", "FEEDBACK"),
            Column("RETRIES", right=True),
            *columns("CHANGE", "COUNTS AS"),
        ],
        [[None if row[key] is None else str(row[key]) for key in keys] for row in policy],
    )


def _format_value(value: Any) -> str | None:
    if isinstance(value, bool):
        # The spelling of elman.toml.
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return None if value is None else str(value)
