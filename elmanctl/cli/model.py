"""`models`, `params` and `calc-dim`: commands about models, without training."""

from collections.abc import Mapping
from typing import Annotated

from typer import Argument, Option

from elmanctl.cli import output
from elmanctl.cli.assignments import model_fields
from elmanctl.cli.completion import model_names, one_of
from elmanctl.cli.context import (
    JsonFlag,
)
from elmanctl.config import refuse_outside
from elmanctl.errors import Faults, UsageError
from elmanctl.models.backends import BACKENDS, unavailable_on_all_devices
from elmanctl.models.config import DOCUMENTED, VARIANTS
from elmanctl.models.params import (
    count_parameters,
    flops_per_token,
    parameter_breakdown,
    parse_count,
    solve_dim,
    state_size,
)
from elmanctl.models.registry import FAMILIES, Family, decode_config, find_family, resolve_level
from elmanctl.space.audit import audit_space
from elmanctl.space.space import SearchSpace, shipped_space, space_names

VariantOption = Annotated[
    str,
    Option(
        help="documented, or study-2026-01: as it ran in the study",
        autocompletion=one_of(VARIANTS),
    ),
]
LevelArgument = Annotated[
    str, Argument(help="Model, e.g. e88 or E75h7n24", autocompletion=model_names)
]
Assignments = Annotated[
    list[str] | None, Argument(help="Fields of the configuration, e.g. dim=512 depth=4")
]


def models(
    model: Annotated[
        str | None,
        Argument(help="One model; default: list all", autocompletion=model_names),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List models and their searchable parameters

    \b
    Examples:
        elmanctl models
        elmanctl models e88
    """
    if model is None:
        rows = [
            {"model": f.name, "summary": f.summary, "backends": list(f.backends)}
            for f in FAMILIES.values()
        ]
        if as_json:
            output.print_json({"models": rows})
            return
        columns = [
            output.Column("MODEL"),
            output.Column("SUMMARY", wraps=True),
            output.Column("BACKENDS", dispensable=1),
        ]
        cells = [[f.name, f.summary, ", ".join(f.backends)] for f in FAMILIES.values()]
        output.print_table(columns, cells)
        return
    family = find_family(model)
    spaces = [shipped_space(family.name, space) for space in space_names(family.name)]
    effects = {space.name: audit_space(space) for space in spaces}
    if as_json:
        output.print_json(
            {
                "model": family.name,
                "backends": _backend_rows(family),
                "spaces": [
                    {
                        **space.encode(),
                        "summary": space.summary,
                        "best": dict(space.best),
                        "best_source": space.best_source,
                        "audit": effects[space.name],
                    }
                    for space in spaces
                ],
            }
        )
        return
    output.say(f"{family.name}: {family.summary}; level: {family.grammar.describe()}")
    output.print_table(
        [
            output.Column("BACKEND"),
            output.Column("RUNS HERE", wraps=True),
            output.Column("SUPPORTS", wraps=True),
        ],
        [[row["name"], row["fault"] or "yes", row["limits"]] for row in _backend_rows(family)],
    )
    output.print_table(
        [
            *output.columns("SPACE", "PARAMETER"),
            output.Column("KIND", dispensable=2),
            output.Column("RANGE", wraps=True),
            output.Column("BEST", right=True, dispensable=1),
            output.Column("CHANGES"),
        ],
        [row for space in spaces for row in _axis_rows(space, effects[space.name])],
    )
    for space in spaces:
        if space.best_source:
            output.say(f"best of {space.name}: {space.best_source}")


def params(
    level: LevelArgument,
    assignments: Assignments = None,
    variant: VariantOption = DOCUMENTED,
    seq_len: Annotated[int, Option(help="Sequence length for FLOPs", min=1)] = 512,
    as_json: JsonFlag = False,
) -> None:
    """Count parameters, state and FLOPs of one configuration

    The count is exact: it equals that of the model that a worker builds.

    \b
    Examples:
        elmanctl params e88 dim=1920 depth=17 n_heads=83 n_state=32
        elmanctl params E75h8n32 dim=2048 depth=20
        elmanctl params llama dim=1536 depth=13 n_heads=8 --variant study-2026-01
    """
    decoded = decode_config(level, model_fields(assignments), variant)
    name, config = decoded.level, decoded.encode()
    parts = parameter_breakdown(name, config)
    total = sum(parts.values())
    sizes = {
        "state of a layer": state_size(name, config, seq_len=seq_len),
        "state of the model": state_size(name, config, seq_len=seq_len, of="model"),
        "forward FLOPs per token": flops_per_token(name, config, seq_len=seq_len),
        "training FLOPs per token": flops_per_token(name, config, seq_len=seq_len, training=True),
    }
    if as_json:
        layer, model, forward, training = sizes.values()
        output.print_json(
            {
                "model": name,
                "parameters": total,
                "parts": parts,
                "state_size": {"layer": layer, "model": model},
                "flops_per_token": {"forward": forward, "training": training},
                "seq_len": seq_len,
                "config": config,
            }
        )
        return
    rows = [*parts.items(), ("parameters", total), *sizes.items()]
    output.print_table(
        [output.Column("PART"), output.Column("COUNT", right=True)],
        [[part, output.shown_count(number)] for part, number in rows],
    )


def calc_dim(
    level: LevelArgument,
    assignments: Assignments = None,
    params: Annotated[str | None, Option(help="Parameter budget, e.g. 480M; required")] = None,
    multiple_of: Annotated[int, Option(help="dim is a multiple of this", min=1)] = 128,
    tolerance: Annotated[float, Option(help="Largest relative distance")] = 0.02,
    variant: VariantOption = DOCUMENTED,
    as_json: JsonFlag = False,
) -> None:
    """Find the dim that meets a parameter budget

    \b
    Examples:
        elmanctl calc-dim e88 --params 480M --multiple-of 64 depth=17 n_heads=83 n_state=32
    """
    faults = Faults()
    family, values = resolve_level(level, model_fields(assignments), variant)
    if "dim" in values:
        faults.add(UsageError("`dim` is what this command solves for", hint="leave it out"))
    target = 0
    with faults:
        if params is None:
            raise UsageError("no parameter budget is set", hint="pass e.g. `--params 480M`")
        target = parse_count(params)
    with faults:
        refuse_outside({"search.tolerance": tolerance, "search.multiple_of": multiple_of})
    for fault in family.load_config().faults({"dim": 1, **values}):
        faults.add(fault)
    faults.raise_any()
    dim = solve_dim(
        family.name, values, target=target, tolerance=tolerance, multiple_of=multiple_of
    )
    count = count_parameters(family.name, {**values, "dim": dim})
    if as_json:
        output.print_json({"model": family.name, "dim": dim, "parameters": count, "target": target})
        return
    off = (count - target) / target
    error = f"{off:+.3%}" if output.is_terminal() else f"{off:+.6f}"
    output.print_line(f"dim={dim} parameters={output.shown_count(count)} error={error}")


def _backend_rows(family: Family) -> list[dict[str, str | None]]:
    """Return the backends of a model, with why each cannot run here, its fix and its limits."""
    config_class = family.load_config()
    rows = []
    for name in family.backends:
        fault = unavailable_on_all_devices(BACKENDS[name])
        fix = BACKENDS[name].fix if fault else None
        limits = config_class.backend_limits(name) or "all sizes"
        rows.append({"name": name, "fault": fault, "fix": fix, "limits": limits})
    return rows


def _axis_rows(space: SearchSpace, effects: Mapping[str, str]) -> list[list[str | None]]:
    rows: list[list[str | None]] = []
    for axis in space.axes:
        best = str(space.best[axis.name]) if axis.name in space.best else None
        about = (axis.name, axis.kind, axis.describe())
        rows.append([space.name, *about, best, effects[axis.name]])
    return rows
