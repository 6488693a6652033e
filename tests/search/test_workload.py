"""The spec of an attempt, from the run's settings and its evaluation."""

import json
from typing import Any

import pytest

from elmanctl.codec import decode, encode
from elmanctl.errors import ConfigError, LedgerCorrupt
from elmanctl.ledger.files import encode_json
from elmanctl.ledger.records import Evaluation, EvaluationPlan
from elmanctl.ledger.spending import devices
from elmanctl.run.training import Training
from elmanctl.search.workload import attempt_resources, attempt_spec
from elmanctl.settings import Settings, SlurmSettings
from tests.run.test_spec import RECORDED
from tests.specs import BEFORE

RUN = {
    "name": "tiny",
    "model": "e88",
    "executor": "slurm",
    "data": {"path": "/data/corpus.bytes", "sha256": "ab" * 32, "size_bytes": 1000},
}

# As `points_asked` has it.
EVALUATION = (
    b'{"id":"g001-e02","point":[0.5,2.0],"config":{"level":"e88","dim":64,"depth":2,"n_heads":4,"n_state":16,'
    b'"use_gate":false,"variant":"documented","lr":0.003},"parameters":106560,"seed":7}\n'
)


def test_evaluation_keeps_its_bytes() -> None:
    plan = decode(EvaluationPlan, json.loads(EVALUATION), "evaluation", LedgerCorrupt)
    assert encode_json(encode(plan)) == EVALUATION


def test_spec_has_the_bytes_that_it_always_had() -> None:
    train: dict[str, Any] = {"seq_len": 256, "minutes": 10.0, "micro_batch": 8, "seed": 1}
    train = BEFORE | train
    plan = decode(EvaluationPlan, json.loads(EVALUATION), "evaluation", LedgerCorrupt)
    evaluation = Evaluation(
        id=plan.id,
        generation=1,
        point=plan.point,
        config=plan.config,
        lr=plan.lr,
        parameters=plan.parameters,
        seed=plan.seed,
    )
    settings = Settings(train=Training(**train))
    spec = attempt_spec(RUN, settings, evaluation, attempt=3, limit=21)
    assert encode_json(spec.encode()) == RECORDED["defaults"]


def test_default_gres_is_a_gpu_for_each_rank_of_a_node() -> None:
    train = Training(steps=1, gpus=4, nodes=2)
    asked = attempt_resources(Settings(train=train), "slurm", {})
    assert (asked.gres, asked.nodes, asked.tasks_per_node, asked.tasks) == ("gpu:4", 2, 4, 8)
    alone = attempt_resources(Settings(train=Training(steps=1)), "slurm", {})
    assert (alone.gres, alone.nodes, alone.tasks) == ("gpu:1", 1, 1)


@pytest.mark.parametrize(
    ("gres", "hint"),
    [
        ("gpu:h100:1", "set `slurm.gres` to gpu:h100:4"),
        ("gpu:h100", "set `slurm.gres` to gpu:h100:4"),
        ("gpu:3,nvme:1", "set `slurm.gres` to gpu:4,nvme:1"),
        ("", "set `slurm.gres` to gpu:4, or `train.device` to cpu"),
    ],
)
def test_job_with_fewer_gpus_than_train_its_model_is_refused(gres: str, hint: str) -> None:
    settings = Settings(train=Training(steps=1, gpus=4), slurm=SlurmSettings(gres=gres))
    with pytest.raises(ConfigError, match=r"`train\.gpus` is 4, and a job asks for") as raised:
        attempt_resources(settings, "slurm", {})
    assert raised.value.hint == hint


def test_gpus_that_are_asked_for_otherwise_count_and_the_cpu_needs_none() -> None:
    train = Training(steps=1, gpus=4)
    extra = SlurmSettings(gres="", extra={"gpus-per-node": "h100:4"})
    assert attempt_resources(Settings(train=train, slurm=extra), "slurm", {}).gres is None
    on_cpu = Settings(train=Training(steps=1, gpus=4, device="cpu"), slurm=SlurmSettings(gres=""))
    assert attempt_resources(on_cpu, "slurm", {}).tasks == 4


def test_several_nodes_are_not_one_machine() -> None:
    with pytest.raises(ConfigError, match=r"`train\.nodes` is 2, and this machine is one node"):
        attempt_resources(Settings(train=Training(steps=1, nodes=2)), "local", {})
    here = attempt_resources(Settings(train=Training(steps=1, gpus=2)), "local", {})
    assert devices(here) == 2
