"""The spec of an attempt, from the run's settings and its evaluation."""

import json
from typing import Any

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.files import encode_json
from elmanctl.ledger.records import Evaluation, EvaluationPlan
from elmanctl.run.training import Training
from elmanctl.search.workload import attempt_spec
from elmanctl.settings import Settings
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
