import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.ledger.files import encode_json
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.training import BUDGET_KINDS
from tests.specs import BEFORE

MakeSpec = Callable[..., AttemptSpec]

# As version 0.1 wrote them: what is added later is left out while it asks for nothing.
_HEAD = (
    b'{"version":1,"run":"tiny","evaluation":"g001-e02","attempt":3,"level":"e88","config":'
    b'{"level":"e88","dim":64,"depth":2,"n_heads":4,"n_state":16,"use_gate":false,"variant":"documented"},'
    b'"parameters_expected":106560,"seed":7,"lr":0.003,'
)
_DATA = b'"data":{"path":"/data/corpus.bytes","sha256":"%b","size_bytes":1000},' % (b"ab" * 32)
RECORDED = {
    "defaults": (
        _HEAD + b'"budget":{"minutes":10.0},"batch":16,"micro_batch":8,"seq_len":256,'
        b'"warmup_steps":3,"grad_clip":1.0,"weight_decay":0.01,"betas":[0.9,0.95],'
        b'"precision":"auto",' + _DATA + b'"device":"auto","backend":"auto","threads":0,'
        b'"heartbeat_s":10.0,"timeout_min":21}\n'
    ),
    "nothing default": (
        _HEAD + b'"budget":{"steps":200},"batch":8,"micro_batch":2,"seq_len":128,'
        b'"warmup_steps":5,"grad_clip":0.5,"weight_decay":0.1,"betas":[0.8,0.99],'
        b'"precision":"bf16",' + _DATA + b'"device":"cuda","backend":"torch","threads":1,'
        b'"heartbeat_s":2.5,"timeout_min":21.5,"checkpoint_min":5.0,'
        b'"continues_from":["attempt-2","attempt-1"]}\n'
    ),
}


@pytest.mark.parametrize("line", RECORDED.values(), ids=RECORDED)
def test_recorded_spec_keeps_its_bytes(line: bytes) -> None:
    assert encode_json(AttemptSpec.decode(json.loads(line)).encode()) == line


def test_a_spec_survives_json(make_spec: MakeSpec) -> None:
    budgets = {"minutes": 0.5, "steps": 7, "tokens": 10**12, "flops": 1e18, "converge": 0.01}
    assert budgets.keys() == set(BUDGET_KINDS)
    for budget in ({kind: amount} for kind, amount in budgets.items()):
        spec = make_spec(**budget, config={"dim": 64, "nested": {"a": [1, None]}})
        assert spec.encode()["budget"] == budget
        assert AttemptSpec.decode(json.loads(json.dumps(spec.encode()))) == spec


def test_each_missing_key_is_named(make_spec: MakeSpec) -> None:
    whole = make_spec().encode()
    for key in whole.keys() - BEFORE.keys():
        without = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(
            InvalidConfiguration, match=rf"`spec\.{key}` (is missing|must be .*, not None)"
        ):
            AttemptSpec.decode(without)


def test_a_spec_names_checkpoints_only_where_they_are_wanted(make_spec: MakeSpec) -> None:
    # The frozen code of a run of version 0.1 refuses keys that it does not know.
    assert {"checkpoint_min", "continues_from"}.isdisjoint(make_spec().encode())
    spec = make_spec(checkpoint_min=5.0, continues_from=("attempt-2", "attempt-1"))
    assert AttemptSpec.decode(json.loads(json.dumps(spec.encode()))) == spec


@pytest.mark.parametrize("folder", ["../g000-e01/attempt-1", "attempt-0", "/attempt-1", "", 1])
def test_a_checkpoint_lies_in_an_attempt_of_the_same_evaluation(
    make_spec: MakeSpec, folder: object
) -> None:
    data = make_spec().encode() | {"continues_from": [folder]}
    with pytest.raises(InvalidConfiguration, match=r"spec\.continues_from"):
        AttemptSpec.decode(data)


def test_unknown_keys_are_named(make_spec: MakeSpec) -> None:
    with pytest.raises(InvalidConfiguration, match=r"`spec\.learning_rate` is not a known key"):
        AttemptSpec.decode(make_spec().encode() | {"learning_rate": 1})
    data = make_spec().encode()
    data["data"]["md5"] = ""
    with pytest.raises(InvalidConfiguration, match=r"`spec\.data\.md5` is not a known key"):
        AttemptSpec.decode(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "`spec.version` is 2, this worker reads 1"),
        ("seed", 1.5, "`spec.seed` must be a whole number, not 1.5"),
        ("seed", True, "`spec.seed` must be a whole number, not True"),
        ("seed", -1, "`spec.seed` must be at least 0, not -1"),
        ("lr", "1e-3", "`spec.lr` must be a number, not '1e-3'"),
        ("lr", 0, "`spec.lr` must be above 0, not 0.0"),
        ("lr", float("nan"), "`spec.lr` must be above 0, not nan"),
        ("grad_clip", float("inf"), "`spec.grad_clip` must be at least 0, not inf"),
        ("batch", 0, "`spec.batch` must be at least 1, not 0"),
        ("micro_batch", -1, "`spec.micro_batch` must be at least 0, not -1"),
        ("timeout_min", 0, "`spec.timeout_min` must be above 0 and finite, not 0"),
        ("betas", [0.9], "`spec.betas` must be an array of 2, not [0.9]"),
        ("betas", [0.9, 1.0], "`spec.betas` must be between 0 and 1, not (0.9, 1.0)"),
        ("precision", "fp16", "`spec.precision` must be one of auto, fp32, bf16, not `fp16`"),
        ("device", "tpu", "`spec.device` must be one of auto, cpu, cuda, not `tpu`"),
        (
            "budget",
            {},
            "`spec.budget` names exactly one of minutes, steps, tokens, flops, converge, not {}",
        ),
        ("budget", {"steps": 1, "minutes": 1}, "`spec.budget` names exactly one of"),
        ("budget", {"hours": 1}, "`spec.budget` names exactly one of"),
        ("budget", {"steps": None}, "`spec.budget.steps` must be a whole number, not None"),
        ("budget", {"steps": True}, "`spec.budget.steps` must be a whole number, not True"),
        ("budget", {"steps": 1.5}, "`spec.budget.steps` must be a whole number, not 1.5"),
        ("budget", {"tokens": 0}, "`spec.tokens` must be at least 1, not 0"),
        ("budget", {"minutes": -1}, "`spec.minutes` must be above 0, not -1.0"),
        ("budget", {"minutes": float("inf")}, "`spec.minutes` must be above 0, not inf"),
        ("budget", {"minutes": float("nan")}, "`spec.minutes` must be above 0, not nan"),
        ("budget", 3, "`spec.budget` must be an object, not 3"),
        ("config", [], "`spec.config` must be an object, not []"),
        ("data", {"path": "x", "sha256": "y"}, "`spec.data.size_bytes` is missing"),
        ("parameters_expected", 0, "`spec.parameters_expected` must be at least 1, not 0"),
        ("training", {}, "`spec.training` is not a known key"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(
    make_spec: MakeSpec, key: str, value: Any, message: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=re.escape(message)):
        AttemptSpec.decode(make_spec().encode() | {key: value})


def test_run_that_began_with_more_than_is_allowed_now_goes_on(make_spec: MakeSpec) -> None:
    # Bounds are for what is set now.
    assert make_spec(weight_decay=99.0).encode()["weight_decay"] == 99.0


def test_what_is_no_object_is_invalid() -> None:
    with pytest.raises(InvalidConfiguration, match=r"`spec` must be an object, not \[\]"):
        AttemptSpec.decode([])


def test_reading_a_file_that_is_missing_or_no_json_says_which(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    with pytest.raises(EnvironmentNotReady, match="cannot read"):
        AttemptSpec.read(path)
    path.write_text("{")
    with pytest.raises(InvalidConfiguration, match="is not JSON"):
        AttemptSpec.read(path)


def test_lr_seed_and_micro_batch_are_no_part_of_the_protocol(make_spec: MakeSpec) -> None:
    fingerprint = make_spec().protocol("fp32").fingerprint
    for changes in ({"lr": 1.0}, {"seed": 9}, {"micro_batch": 2}, {"config": {"dim": 1}}):
        assert make_spec(**changes).protocol("fp32").fingerprint == fingerprint
    # Half the sequences of twice the length: the same tokens a step, another protocol.
    other = make_spec(batch=2, seq_len=32)
    assert other.training.tokens_per_step == make_spec().training.tokens_per_step
    assert other.protocol("fp32").fingerprint != fingerprint
