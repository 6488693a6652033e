"""Sequences a step by the size of the model: the same in spec, memory check, and retry."""

from typing import Any

import pytest

from elmanctl.errors import ConfigError
from elmanctl.ledger.records import Evaluation
from elmanctl.models.memory import training_memory_bytes
from elmanctl.models.params import count_parameters
from elmanctl.models.registry import decode_config
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.training import Training
from elmanctl.search.workload import attempt_spec
from elmanctl.settings import Settings, SlurmSettings
from elmanctl.space.preflight import Preflight
from tests.search.scripted import Runs
from tests.search.test_policy import asked

RULE = "study-2026-01"
RUN = {
    "name": "run",
    "model": "transformer",
    "executor": "slurm",
    "data": {"path": "x", "sha256": "", "size_bytes": 1},
}
# By the model's width: 252M, 476M and 567M parameters.
BATCHES = {1024: 32, 1408: 16, 1536: 8}


def training(**changes: Any) -> Training:
    return Training(minutes=10.0, batch_rule=RULE, **changes)


def spec_of_width(dim: int, settings: Settings) -> AttemptSpec:
    config = {"dim": dim, "depth": 20}
    parameters = count_parameters("transformer", config)
    own: dict[str, Any] = {"config": config, "lr": 3e-4, "parameters": parameters, "seed": 1}
    evaluation = Evaluation(id="g000-e00", generation=0, point=(0.0,), **own)
    return attempt_spec(RUN, settings, evaluation, 1, 60)


@pytest.mark.parametrize(
    ("parameters", "batch"),
    [(1, 32), (350_000_000, 32), (350_000_001, 16), (480_000_000, 16), (480_000_001, 8)],
)
def test_rule_takes_the_place_of_the_batch(parameters: int, batch: int) -> None:
    assert training(batch=64).batch_for(parameters) == batch
    assert Training(batch=64).batch_for(parameters) == 64


def test_spec_of_each_model_has_its_batch_and_all_have_one_protocol() -> None:
    specs = {dim: spec_of_width(dim, Settings(train=training())) for dim in BATCHES}
    for dim, spec in specs.items():
        assert spec.training.batch == BATCHES[dim]
        assert spec.training.tokens_per_step == BATCHES[dim] * 512
        assert AttemptSpec.decode(spec.encode()) == spec
    protocols = [spec.protocol("bf16") for spec in specs.values()]
    assert len({protocol.fingerprint for protocol in protocols}) == 1
    found = protocols[0].encode()
    assert found["batch_rule"] == RULE
    assert "tokens_per_step" not in found


@pytest.mark.parametrize("dim", BATCHES)
def test_micro_batch_that_fits_divides_the_batch_of_the_rule(dim: int) -> None:
    config = decode_config("transformer", {"dim": dim, "depth": 20})
    half = BATCHES[dim] // 2
    limit = training_memory_bytes(config, micro_batch=half, seq_len=512, precision="bf16") / 1e9
    tight = Settings(train=training(batch=24), slurm=SlurmSettings(gpu_memory_gb=limit))
    assert Preflight(tight, "slurm").micro_batch(config) == half
    spec = spec_of_width(dim, tight)
    assert (spec.training.batch, spec.training.micro_batch) == (BATCHES[dim], half)


def test_micro_batch_has_to_divide_every_batch_of_the_rule() -> None:
    training(micro_batch=8).check_together()
    with pytest.raises(ConfigError, match=r"16 does not divide `train\.batch` 8"):
        training(micro_batch=16).check_together()


@pytest.mark.usefixtures("no_power_failures")
def test_a_retry_for_want_of_memory_halves_the_batch_of_the_rule(runs: Runs) -> None:
    run = runs.new(generations=1, train={"batch_rule": RULE})
    run.world.script = {"g000-e01": ["oom gpu", "oom gpu", "completed"]}
    state = run.drive()
    given = [item["micro_batch"] for item in asked(run, state, "g000-e01")]
    assert given[:2] == [0, 16]
