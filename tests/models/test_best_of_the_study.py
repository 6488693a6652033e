"""What the study found, as the spaces and the tables of the documents have it."""

import tomllib
from pathlib import Path

import pytest

from elmanctl.models.params import count_parameters
from elmanctl.space.space import shipped_space, space_names

RECORDS = tomllib.loads(
    (Path(__file__).parents[2] / "benchmarks" / "study_best.toml").read_text(encoding="utf-8")
)

# What the trainer did not read as recorded: of dim 1920 there were 15 heads of 128, and a
# feed-forward part 8/3 as wide as the model.
INSTEAD = {"fla-gdn": {"n_heads": 15}, "transformer": {"expansion": 3}}

# Parameters that the winners of the searches of 6d printed.
PRINTED = {
    "e88": 387_087_140,
    "e75": 84_068_384,
    "mamba2": 530_288_952,
    "fla-gdn": 562_546_234,
    "transformer": 360_190_720,
    "mingru": 335_418_624,
    "minlstm": 308_858_368,
    "e1": 129_258_624,
    "e42": 79_013_120,
}


@pytest.mark.parametrize("model", sorted(set(RECORDS) - {"e0", "e87"}))
@pytest.mark.parametrize("space", ["3d", "4d"])
def test_best_of_a_space_is_the_record_of_the_tables(model: str, space: str) -> None:
    if space not in space_names(model):
        assert space == "4d"
        return
    record = RECORDS[model]["config"] | RECORDS[model].get("trained", {}) | INSTEAD.get(model, {})
    best = shipped_space(model, space).best
    shared = {name: value for name, value in best.items() if name in record}
    assert shared == {name: record[name] for name in shared}
    assert {"depth", *shipped_space(model, "3d").best} <= set(shared)


@pytest.mark.parametrize("model", PRINTED)
def test_best_of_6d_is_as_large_as_the_model_that_was_trained(model: str) -> None:
    space = shipped_space(model, "6d")
    config = {**space.fixed, **{name: value for name, value in space.best.items() if name != "lr"}}
    assert count_parameters(model, config, "study-2026-01") == PRINTED[model]
    assert space.best_source is not None
    assert f"{PRINTED[model] / 1e6:.1f}M parameters" in space.best_source
