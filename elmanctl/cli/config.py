"""The `config` command: the effective settings, their origins, and the policy table."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from elmanctl.cli.completion import presets
from elmanctl.cli.context import JsonFlag, resolve_settings
from elmanctl.cli.output import Column, print_json, print_line, print_table, warn
from elmanctl.verdicts.policy import shown_rules


def config(
    ctx: typer.Context,
    show_origin: Annotated[
        bool, typer.Option("--show-origin", help="Show where each value comes from")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(help="As `search --preset` would see them", autocompletion=presets),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the effective settings, their origins, and the policy for each verdict

    \b
    Examples:
        elmanctl config --show-origin
    """
    resolved = resolve_settings(ctx, {}, preset)
    rows = [
        {
            "key": f"{section}.{key}",
            "value": value,
            "from": resolved.origins.get(f"{section}.{key}", "default"),
        }
        for section, table in resolved.settings.encode().items()
        for key, value in table.items()
    ]
    policy = shown_rules(resolved.settings.retry)
    if resolved.sbatch is not None:
        for line in (
            *resolved.sbatch.unused,
            *(fault.message for fault in resolved.sbatch.refused),
        ):
            warn(line)
    if as_json:
        print_json({"settings": rows, "policy": policy})
        return
    columns = [Column("KEY"), Column("VALUE")]
    columns += [Column("FROM")] if show_origin else []
    print_table(columns, [_config_cells(row, show_origin=show_origin) for row in rows])
    print_line("")
    names = ("VERDICT", "CASE", "FEEDBACK", "RETRIES", "CHANGE", "COUNTS AS")
    print_table(
        [Column(name, right=name == "RETRIES") for name in names],
        [
            [
                *(row["verdict"], row["case"], row["told"]),
                *(str(row["again"]), row["change"], row["group"]),
            ]
            for row in policy
        ],
    )


def _config_cells(row: Mapping[str, Any], *, show_origin: bool) -> list[str | None]:
    value = row["value"]
    text = None if value is None else str(list(value) if isinstance(value, tuple) else value)
    if isinstance(value, bool):
        # The spelling of elman.toml.
        text = str(value).lower()
    return [row["key"], text, *([row["from"]] if show_origin else [])]
