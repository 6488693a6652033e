"""Comparison of configurations as plain data, with units in its keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from elmanctl.search.comparison import EqualBudget, Group, RankedRow, Row
from elmanctl.search.difference import Difference, Sample
from elmanctl.search.learning_curve import UNITS

INTERPOLATION = "interpolated, linear in the logarithm of the budget"


def comparison_data(groups: Sequence[Group]) -> dict[str, Any]:
    """Return the groups of a comparison as plain data."""
    return {"interpolation": INTERPOLATION, "groups": [_group_data(group) for group in groups]}


def _group_data(group: Group) -> dict[str, Any]:
    noise = group.noise
    return {
        "fingerprint": group.fingerprint,
        "protocol": dict(group.protocol),
        "differs_from_first": [
            {"field": each.field, "value": each.value, "first": each.first}
            for each in group.differing
        ],
        "noise": noise
        and {
            "sd_nats": noise.sd,
            "degrees_of_freedom": noise.degrees,
            "configurations": noise.configurations,
        },
        "devices": list(group.devices),
        "rows": [_row_data(each) for each in group.rows],
        "at_equal": {each.measure: _equal_budget_data(each) for each in group.equal_budgets},
    }


def _row_data(ranked: RankedRow) -> dict[str, Any]:
    row = ranked.row
    return {
        "item": row.item,
        "model": row.model,
        "config": {**row.config, "lr": row.lr},
        "basis": row.basis,
        "searched": row.searched,
        "sources": list(row.sources),
        "left_out": list(row.left_out),
        **_sample_data(ranked.sample, "loss"),
        **_measured_data(row),
        "difference": _difference_data(ranked.difference),
    }


def _measured_data(row: Row) -> dict[str, Any]:
    return {
        "bits_per_byte": row.mean("bits_per_byte"),
        "val_loss_nats": row.mean("val_loss"),
        "parameters": row.parameters,
        "state_elements_per_layer": row.state_elements_per_layer,
        "tokens_per_s": row.mean("tokens_per_s"),
        "flops_per_token": row.flops_per_token,
        "flops": row.flops,
        "steps": row.mean("steps"),
        "tokens": row.mean("tokens"),
        "elapsed_s": row.mean("elapsed_s"),
    }


def _sample_data(sample: Sample, name: str) -> dict[str, Any]:
    return {
        "n": sample.n,
        f"{name}_nats": sample.mean,
        f"{name}_sd_nats": sample.sd,
        f"{name}_se_nats": sample.se,
        f"{name}_nats_by_seed": {str(seed): loss for seed, loss in sample.losses.items()},
    }


def _difference_data(found: Difference | None) -> dict[str, Any] | None:
    """Return a difference to the first row, None for that row itself."""
    if found is None:
        return None
    return {
        "nats": found.nats,
        "se_nats": found.se,
        "half_interval_95_nats": found.half_interval,
        "is_within_noise": found.is_within_noise,
        "test": found.test,
        "p": found.p,
        "degrees_of_freedom": found.degrees_of_freedom,
    }


def _equal_budget_data(found: EqualBudget) -> Mapping[str, Any]:
    unit = UNITS[found.measure]
    return {
        f"from_{unit}": found.low,
        f"to_{unit}": found.high,
        "rows": [
            {
                "item": each.row.item,
                **_sample_data(each.sample, "val_loss"),
                "difference": _difference_data(each.difference),
            }
            for each in found.rows
        ],
        "missing": [{"item": item, "reason": why} for item, why in found.missing],
    }
