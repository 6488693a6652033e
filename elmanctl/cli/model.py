"""`models`, `params`, `calc-dim` and `eval`: one model at a time, without a search."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from elmanctl.cli.context import JsonFlag, resolve_settings
from elmanctl.cli.output import Column, hint, print_json, print_line, print_table, say
from elmanctl.errors import UsageError
from elmanctl.models.params import (
    count_parameters,
    format_count,
    parameter_breakdown,
    parse_count,
    solve_dim,
)
from elmanctl.models.registry import FAMILIES, decode_config, find_family
from elmanctl.search.space import SearchSpace, load_space, space_names

Assignments = Annotated[
    list[str] | None, typer.Argument(help="Fields of the configuration, e.g. dim=512 depth=4")
]


def models(
    model: Annotated[str | None, typer.Argument(help="One model; default a list of all")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List models and their searchable parameters

    \b
    Examples:
        elmanctl models
        elmanctl models e88
    """
    if model is None:
        rows = [{"model": f.name, "summary": f.summary} for f in FAMILIES.values()]
        if as_json:
            print_json({"models": rows})
            return
        columns = [Column(name="MODEL"), Column(name="SUMMARY")]
        print_table(columns, [[r["model"], r["summary"]] for r in rows])
        return
    name = find_family(model).name
    spaces = [load_space(name, space, axes={}, fixed={}) for space in space_names(name)]
    if as_json:
        print_json({"model": name, "spaces": [space.encode() for space in spaces]})
        return
    print_table(
        [
            Column(name="SPACE"),
            Column(name="PARAMETER"),
            Column(name="KIND"),
            Column(name="RANGE"),
            Column(name="BEST", right=True),
        ],
        [row for space in spaces for row in _axis_rows(space)],
    )


def params(
    level: Annotated[str, typer.Argument(help="Model, e.g. e88")],
    assignments: Assignments = None,
    as_json: JsonFlag = False,
) -> None:
    """Count the parameters of one configuration

    The count is exact: it equals that of the model which a worker builds.

    \b
    Examples:
        elmanctl params e88 dim=1920 depth=17 n_heads=83 n_state=32
    """
    family = find_family(level)
    config = decode_config(family.name, _model_fields(assignments)).encode()
    parts = parameter_breakdown(family.name, config)
    total = count_parameters(family.name, config)
    if as_json:
        print_json({"model": family.name, "parameters": total, "parts": parts, "config": config})
        return
    print_table(
        [Column(name="PART"), Column(name="PARAMETERS", right=True)],
        [*([name, f"{count:,}"] for name, count in parts.items()), ["total", f"{total:,}"]],
    )


def calc_dim(
    level: Annotated[str, typer.Argument(help="Model, e.g. e88")],
    assignments: Assignments = None,
    params: Annotated[str, typer.Option(help="Parameter budget, e.g. 480M")] = ...,  # type: ignore[assignment]
    multiple_of: Annotated[int, typer.Option(help="dim is a multiple of this", min=1)] = 128,
    tolerance: Annotated[float, typer.Option(help="Largest relative distance")] = 0.02,
    as_json: JsonFlag = False,
) -> None:
    """Find the dim that meets a parameter budget

    \b
    Examples:
        elmanctl calc-dim e88 --params 480M --multiple-of 64 depth=17 n_heads=83 n_state=32
    """
    family = find_family(level)
    values = _model_fields(assignments)
    if "dim" in values:
        raise UsageError("`dim` is what this command finds", hint="leave it out")
    target = parse_count(params)
    dim = solve_dim(
        family.name, values, target=target, tolerance=tolerance, multiple_of=multiple_of
    )
    count = count_parameters(family.name, {**values, "dim": dim})
    if as_json:
        print_json({"model": family.name, "dim": dim, "parameters": count, "target": target})
        return
    print_line(f"dim={dim} parameters={count:,} error={(count - target) / target:+.3%}")


def evaluate(
    ctx: typer.Context,
    level: Annotated[str, typer.Argument(help="Model, e.g. e88")],
    assignments: Annotated[
        list[str] | None, typer.Argument(help="Fields of the model and lr, e.g. dim=64 lr=1e-2")
    ] = None,
    train_minutes: Annotated[float | None, typer.Option(help="Training time in minutes")] = None,
    train_steps: Annotated[int | None, typer.Option(help="Training steps")] = None,
    train_tokens: Annotated[int | None, typer.Option(help="Training bytes")] = None,
    data: Annotated[str | None, typer.Option(help="Corpus: a file of bytes")] = None,
    preset: Annotated[str | None, typer.Option(help="Named settings, e.g. tiny")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training run")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to keep it in")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train and score one configuration, here and now

    The worker's own path, in the foreground, without Slurm and without a search.

    \b
    Examples:
        elmanctl eval e88 dim=64 depth=2 n_heads=4 n_state=16 lr=1e-2 --preset tiny
    """
    from elmanctl.search.single import evaluate_once

    flags = {
        "train.minutes": train_minutes,
        "train.steps": train_steps,
        "train.tokens": train_tokens,
        "train.device": device,
        "train.seed": seed,
        "data.path": data,
    }
    settings = resolve_settings(ctx, flags, preset).settings
    fields = _model_fields(assignments, with_lr=True)
    result, folder = evaluate_once(level, fields, settings, out=out)
    if as_json:
        print_json({"folder": str(folder), **result})
        return
    say(f"kept in {folder}")
    for key in ("loss", "steps", "tokens", "tokens_per_s", "parameters", "device", "precision"):
        print_line(f"{key:<12} {result.get(key)}")
    count = format_count(int(result["parameters"]))
    name = find_family(level).name
    hint(
        f"search models of this size: `elmanctl search {name} --params {count} --train-minutes 10`"
    )


def _axis_rows(space: SearchSpace) -> list[list[str | None]]:
    rows: list[list[str | None]] = []
    for axis in space.axes:
        best = space.best.get(axis.name)
        shown = None if best is None else str(best)
        rows.append([space.name, axis.name, axis.kind, axis.describe(), shown])
    return rows


def _model_fields(assignments: list[str] | None, *, with_lr: bool = False) -> dict[str, Any]:
    """Read `key=value` words, values as TOML or else as text; raise UsageError for others."""
    values: dict[str, Any] = {}
    for word in assignments or []:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UsageError(f"`{word}` is not of the form key=value", hint="e.g. `dim=512`")
        if key in values:
            raise UsageError(f"`{key}` is given twice")
        if key == "lr" and not with_lr:
            raise UsageError("`lr` does not change the number of parameters", hint="leave it out")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values
