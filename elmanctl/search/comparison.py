"""Comparison of configurations: groups of one protocol each, ranked by their mean losses.

Losses under unlike protocols are never ranked together, and no difference of them is computed.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from elmanctl.run.training import Training
from elmanctl.search.difference import Difference, Sample, difference
from elmanctl.search.learning_curve import MEASURES, Curve, Measure, common_range, curve_of
from elmanctl.search.noise import PooledNoise, pooled

Basis = Literal["confirmations", "lowest of a search", "evaluation"]

# What a protocol without the key means.
_ABSENT = {
    item.name: item.metadata["absent"] for item in fields(Training) if "absent" in item.metadata
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One configuration, as it was trained under one protocol.

    `results` are the results of its workers by training seed, at least one, and `sources` names
    their folders.  `parameters` is the count of the trained model.  `basis` says what was taken:
    confirmations on fresh seeds, the lowest of the losses of a search, or an evaluation that was
    named; `searched` is the number of losses of that search.  `left_out` are results that do not
    count, each with the reason.
    """

    item: str
    model: str
    config: Mapping[str, object]
    lr: float
    parameters: int
    protocol: Mapping[str, Any]
    fingerprint: str
    basis: Basis
    results: Mapping[int, Mapping[str, Any]]
    sources: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    searched: int | None = None
    state_elements_per_layer: int | None = None
    flops_per_token: int | None = None

    @property
    def sample(self) -> Sample:
        """The losses by seed."""
        return Sample(losses={seed: float(each["loss"]) for seed, each in self.results.items()})

    @property
    def flops(self) -> float | None:
        """The FLOPs of the training, the mean over the seeds; None without a count."""
        tokens = self.mean("tokens")
        if tokens is None or self.flops_per_token is None:
            return None
        return tokens * self.flops_per_token

    def mean(self, key: str) -> float | None:
        """Return the mean of a number of the results, None where one of them lacks it."""
        values = [each.get(key) for each in self.results.values()]
        numbers = [float(value) for value in values if isinstance(value, int | float)]
        return math.fsum(numbers) / len(numbers) if len(numbers) == len(values) else None

    def curves(self, measure: Measure) -> dict[int, Curve]:
        """Return the learning curve of each seed."""
        warmup_steps = int(self.protocol["warmup_steps"])
        return {
            seed: curve_of(each, measure, self.flops_per_token, warmup_steps)
            for seed, each in self.results.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedRow:
    """A row with the losses that it is ranked by, and its difference to the first of its group.

    The first has no difference.
    """

    row: Row
    sample: Sample
    difference: Difference | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualBudget:
    """The rows of a group at one budget: the largest at which all of them were measured.

    `low` and `high` are the budgets between which all rows have measurements, None where there are
    none, or fewer than two rows with a curve; the rows are compared at `high`.  `missing` are the
    items without a curve, each with the reason.
    """

    measure: Measure
    low: float | None
    high: float | None
    rows: tuple[RankedRow, ...]
    missing: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Differing:
    """A condition in which a protocol differs from that of the first group, and both values."""

    field: str
    value: object
    first: object


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows of one protocol, the lowest mean loss first."""

    fingerprint: str
    protocol: Mapping[str, Any]
    rows: tuple[RankedRow, ...]
    noise: PooledNoise | None
    differing: tuple[Differing, ...]
    equal_budgets: tuple[EqualBudget, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """The names of the devices that the rows were trained on, as far as they are known."""
        results = [each for one in self.rows for each in one.row.results.values()]
        return tuple(
            sorted({str(each["device_name"]) for each in results if "device_name" in each})
        )


def compare_rows(rows: Iterable[Row], measures: Sequence[Measure] = MEASURES) -> tuple[Group, ...]:
    """Return the groups of these rows, the largest first; the order of the rows does not matter."""
    by_fingerprint: dict[str, list[Row]] = {}
    for row in rows:
        by_fingerprint.setdefault(row.fingerprint, []).append(row)
    ordered = sorted(by_fingerprint.items(), key=lambda item: (-len(item[1]), item[0]))
    first = ordered[0][1][0].protocol if ordered else {}
    return tuple(_group(fingerprint, same, first, measures) for fingerprint, same in ordered)


def differing(protocol: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[Differing, ...]:
    """Return every condition in which a protocol differs from the first one."""
    return tuple(
        Differing(field=name, value=value, first=other)
        for name in dict.fromkeys((*first, *protocol))
        if (value := protocol.get(name, _ABSENT.get(name)))
        != (other := first.get(name, _ABSENT.get(name)))
    )


def _group(
    fingerprint: str, rows: list[Row], first: Mapping[str, Any], measures: Sequence[Measure]
) -> Group:
    ranked, noise = _ranked([(row, row.sample) for row in rows])
    return Group(
        fingerprint=fingerprint,
        protocol=rows[0].protocol,
        rows=ranked,
        noise=noise,
        differing=differing(rows[0].protocol, first),
        equal_budgets=tuple(_equal_budget(rows, measure) for measure in measures),
    )


def _ranked(
    samples: list[tuple[Row, Sample]],
) -> tuple[tuple[RankedRow, ...], PooledNoise | None]:
    """Return rows by the means of their samples, and the noise of all of them."""
    noise = pooled(sample for _, sample in samples)
    ordered = sorted(samples, key=lambda item: (item[1].mean, item[0].item))
    first = ordered[0] if ordered else None
    ranked = tuple(
        RankedRow(
            row=row,
            sample=sample,
            difference=None
            if first is None or row is first[0]
            else difference(
                sample,
                first[1],
                noise,
                has_same_data_order=_tokens_per_step(row) == _tokens_per_step(first[0]),
            ),
        )
        for row, sample in ordered
    )
    return ranked, noise


def _equal_budget(rows: list[Row], measure: Measure) -> EqualBudget:
    missing, measured = [], []
    for row in rows:
        curves = row.curves(measure)
        why = next((each.missing for each in curves.values() if each.missing), None)
        if why is None:
            measured.append((row, curves))
        else:
            missing.append((row.item, why))
    found = None
    if len(measured) > 1:
        found = common_range([curve for _, curves in measured for curve in curves.values()])
    low, high = found or (None, None)
    ranked: tuple[RankedRow, ...] = ()
    if high is not None:
        ranked, _ = _ranked(
            [
                (row, Sample(losses={seed: curve.at(high) for seed, curve in curves.items()}))
                for row, curves in measured
            ]
        )
    return EqualBudget(measure=measure, low=low, high=high, rows=ranked, missing=tuple(missing))


def _tokens_per_step(row: Row) -> object:
    """Return what, under one protocol, the order of the data still depends on: see batch_rule."""
    return row.mean("tokens_per_step")
