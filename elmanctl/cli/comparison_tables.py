"""Tables of a comparison, and the lines below them that say what a number rests on."""

from collections.abc import Iterator, Mapping, Sequence

from elmanctl.cli import output
from elmanctl.cli.comparison_data import INTERPOLATION
from elmanctl.cli.output import Column, columns
from elmanctl.models.params import format_count
from elmanctl.search.comparison import EqualBudget, Group, RankedRow, Row
from elmanctl.search.difference import Difference, Sample
from elmanctl.search.learning_curve import Measure

Cells = list[str | None]


def print_rows(groups: Sequence[Group]) -> None:
    """Print the rows of all groups, each group ranked by itself, and what they rest on."""
    output.print_table(
        [
            Column("ITEM"),
            Column("MODEL", dispensable=5),
            Column("SEEDS", right=True, dispensable=4),
            *_loss_columns(),
            Column("BITS/BYTE", right=True, dispensable=6),
            *_difference_columns(),
            Column("PARAMS", right=True, dispensable=3),
            Column("STATE", right=True, dispensable=8, may_be_empty=True),
            Column("TOK/S", right=True, dispensable=7, may_be_empty=True),
            Column("FLOPS/TOK", right=True, dispensable=9, may_be_empty=True),
            Column("FLOPS", right=True, dispensable=9, may_be_empty=True),
            *columns("STEPS", "TOKENS", right=True, dispensable=10),
            Column("PROTOCOL", dispensable=11),
        ],
        [
            [*_row_cells(each, mark), group.fingerprint]
            for mark, group in _marked(groups)
            for each in group.rows
        ],
    )
    for mark, group in _marked(groups):
        for line in _lines(group, mark, groups[0].fingerprint):
            _print_below(line)


def print_equal_budgets(groups: Sequence[Group]) -> None:
    """Print the held-out losses at equal budgets of the groups that have several rows."""
    compared = [(mark, group) for mark, group in _marked(groups) if len(group.rows) > 1]
    rows = [
        _equal_budget_cells(found, each, mark)
        for mark, group in compared
        for found in group.equal_budgets
        for each in found.rows
    ]
    if rows:
        if output.is_terminal():
            output.print_line()
        output.print_table(
            [
                Column("AT"),
                Column("BUDGET", right=True, dispensable=4),
                Column("ITEM"),
                *_loss_columns(),
                *_difference_columns(),
            ],
            rows,
        )
    if rows:
        _print_below(_labelled("curves", "", f"a loss between two measurements is {INTERPOLATION}"))
    for mark, group in compared:
        for label, text in _ranges(group):
            _print_below(_labelled(label, mark, text))


def _marked(groups: Sequence[Group]) -> list[tuple[str, Group]]:
    """Return the groups with the marks of their rows: none for the first, then *, ** and so on."""
    return [("*" * index, group) for index, group in enumerate(groups)]


def _loss_columns() -> list[Column]:
    return [Column("LOSS", right=True), *([] if output.is_terminal() else columns("SE"))]


def _difference_columns() -> list[Column]:
    return [
        Column("DIFF", right=True),
        *([] if output.is_terminal() else columns("DIFF_SE")),
        Column("P", right=True, dispensable=1),
        Column("NOISE", dispensable=2, may_be_empty=True),
    ]


def _row_cells(ranked: RankedRow, mark: str) -> Cells:
    row = ranked.row
    return [
        _named(row.item, mark),
        row.model,
        str(ranked.sample.n),
        *_loss_cells(ranked.sample),
        _number(row.mean("bits_per_byte"), ".4f"),
        *_difference_cells(ranked.difference),
        format_count(row.parameters) if output.is_terminal() else str(row.parameters),
        _count(row.state_elements_per_layer),
        _number(row.mean("tokens_per_s"), ",.0f"),
        _number(row.flops_per_token, ".3g"),
        _number(row.flops, ".3g"),
        _count(row.mean("steps")),
        _count(row.mean("tokens")),
    ]


def _equal_budget_cells(found: EqualBudget, ranked: RankedRow, mark: str) -> Cells:
    return [
        found.measure,
        _budget(found.measure, found.high),
        _named(ranked.row.item, mark),
        *_loss_cells(ranked.sample),
        *_difference_cells(ranked.difference),
    ]


def _named(item: str, mark: str) -> str:
    """Return an item with its mark; elsewhere than on a terminal the protocol's column tells."""
    return f"{item} {mark}" if mark and output.is_terminal() else item


def _loss_cells(sample: Sample) -> Cells:
    if not output.is_terminal():
        return [str(sample.mean), None if sample.se is None else str(sample.se)]
    error = "" if sample.se is None else f" ± {sample.se:.4f}"
    return [f"{sample.mean:.4f}{error}"]


def _difference_cells(found: Difference | None) -> Cells:
    if found is None:
        return [None] * (3 if output.is_terminal() else 4)
    noise = {True: "within", False: "beyond", None: None}[found.is_within_noise]
    if not output.is_terminal():
        numbers = (found.nats, found.se, found.p)
        return [*(None if number is None else str(number) for number in numbers), noise]
    error = "" if found.se is None else f" ± {found.se:.4f}"
    p = None if found.p is None else "<0.001" if found.p < 0.001 else f"{found.p:.2g}"
    return [f"{found.nats:+.4f}{error}", p, noise]


def _number(number: float | None, form: str) -> str | None:
    """Format a number: briefly on a terminal, exactly elsewhere."""
    if number is None:
        return None
    return f"{number:{form}}" if output.is_terminal() else str(number)


def _count(number: float | None) -> str | None:
    """Format a whole number, or the mean of some."""
    if number is not None and number == int(number):
        return output.shown_count(int(number))
    return _number(number, ",.1f")


def _budget(measure: Measure, budget: float | None) -> str | None:
    if measure == "tokens":
        return _count(budget)
    return _number(budget, ".1f" if measure == "time" else ".3g")


def _print_below(line: str) -> None:
    """Print a line about a table: below it on a terminal, on stderr where only data is wanted."""
    if output.is_terminal():
        output.print_line(line)
    else:
        output.say(line)


def _lines(group: Group, mark: str, first: str) -> Iterator[str]:
    """Yield what the rows of a group rest on."""
    if mark:
        parts = [
            f"{each.field} {_value(each.value)}, not {_value(each.first)}"
            for each in group.differing
        ]
        yield (
            f"{mark} is not compared with the rows above: protocol {group.fingerprint} differs "
            f"from {first} in {'; '.join(parts) or 'what is not on record'}"
        )
    for label, text in _findings(group):
        yield _labelled(label, mark, text)


def _findings(group: Group) -> Iterator[tuple[str, str]]:
    yield from _noise(group)
    tests: dict[str, list[str]] = {}
    for each in group.rows:
        if each.difference is not None and each.difference.test is not None:
            tests.setdefault(each.difference.test, []).append(each.row.item)
    if tests:
        named = [f"{test}-test for {', '.join(items)}" for test, items in tests.items()]
        yield "p", f"{'; '.join(named)}; not corrected for the number of rows"
    single = [each.row.item for each in group.rows if each.sample.n == 1]
    if single and len(group.rows) > 1:
        yield "seeds", f"one seed, so no p: {', '.join(single)}"
    for each in group.rows:
        yield from (("losses", text) for text in _basis(each.row))
    if len(group.devices) > 1:
        yield "device", f"speed and time are of unlike devices: {', '.join(group.devices)}"


def _noise(group: Group) -> Iterator[tuple[str, str]]:
    if len(group.rows) == 1 and group.noise is None:
        return
    if group.noise is None:
        yield "noise", "unknown, as every row has one seed; differences may be noise"
        return
    over = output.counted(group.noise.configurations, "row")
    yield (
        "noise",
        f"sd {group.noise.sd:.4f} nats over seeds, pooled over {over} "
        f"({group.noise.degrees} degrees of freedom); ± is a standard error",
    )
    within = [
        each.row.item
        for each in group.rows
        if each.difference is not None and each.difference.is_within_noise
    ]
    if within:
        yield (
            "noise",
            f"within noise of the first, the 95% interval of the difference includes 0: "
            f"{', '.join(within)}",
        )


def _basis(row: Row) -> Iterator[str]:
    """Yield what the losses of a row are, where that is not plain."""
    if row.basis == "confirmations":
        count = output.counted(len(row.results), "confirmation")
        yield f"{row.item}: {count}; the value for which its search chose it is left out"
    if row.basis == "lowest of a search" and row.searched and row.searched > 1:
        run = row.item.partition("/")[0]
        yield (
            f"{row.item}: unconfirmed, the lowest of {row.searched} losses of its search, and so "
            f"lower than on fresh seeds on average; see `elmanctl confirm {run}`"
        )
    yield from (f"left out {each}" for each in row.left_out)


def _ranges(group: Group) -> Iterator[tuple[str, str]]:
    """Yield the budgets between which the rows were compared, and the rows without a curve."""
    measures: dict[str, list[str]] = {}
    for found in group.equal_budgets:
        for text in (*_range(found, len(group.rows)), *_missing(found)):
            measures.setdefault(text, []).append(found.measure)
    yield from ((", ".join(names), text) for text, names in measures.items())


def _range(found: EqualBudget, rows: int) -> Iterator[str]:
    unit = " s" if found.measure == "time" else ""
    low, high = _budget(found.measure, found.low), _budget(found.measure, found.high)
    all_rows = "all rows with a curve" if found.missing else "all rows"
    if rows - len(found.missing) < 2:
        return
    if high is None:
        yield f"{all_rows} share no range in which each of them has measurements"
    elif low == high:
        yield f"{all_rows} have measurements at {high}{unit}, and share no other budget"
    else:
        yield f"{all_rows} have measurements between {low} and {high}{unit}"


def _missing(found: EqualBudget) -> Iterator[str]:
    for reason in dict.fromkeys(why for _, why in found.missing):
        items = [item for item, why in found.missing if why == reason]
        yield f"without a curve, as {reason}: {', '.join(items)}"


def _labelled(label: str, mark: str, text: str) -> str:
    return f"{f'{label} {mark}'.rstrip():<8} {text}"


def _value(value: object) -> str:
    """Format one condition of a protocol."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, str) and len(value) == 64:
        return value[:12]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
