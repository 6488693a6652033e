"""The conditions of the study of January 2026 are what the versions before the protocols did."""

import json
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from tests.jobs.attempts import Write, metrics, run
from tests.specs import BEFORE

NAME = "study-2026-01"
STUDY = tomllib.loads(files("elmanctl").joinpath("protocols.toml").read_text())[NAME]["train"]


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "elapsed_s"}


@pytest.mark.parametrize("level", ["e88", "transformer"])
def test_losses_under_its_protocol_are_those_of_a_spec_without_the_new_keys(
    write: Write, level: str
) -> None:
    asked = {"level": level, "batch": 32, "checkpoint_min": 0.0, "steps": 12, "lr": 0.01}
    older = write(evaluation="g000-e00", **asked, **BEFORE)
    assert json.loads(older.spec.read_text()).keys().isdisjoint(BEFORE)
    conditions = {**STUDY, "sampler": "windows", "protocol": NAME, "seq_len": 16}
    del conditions["minutes"]
    newer = write(evaluation="g000-e01", **(conditions | asked))
    results = [run(paths) for paths in (older, newer)]
    steps = [[untimed(record) for record in metrics(paths)] for paths in (older, newer)]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 12
    for key in ("loss", "last_loss", "last100_loss", "tokens", "tokens_per_step"):
        assert results[0][key] == results[1][key]
    assert json.loads(newer.spec.read_text())["batch_rule"] == NAME
