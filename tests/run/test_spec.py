import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.ledger.files import encode_json
from elmanctl.run.protocol import Budget
from elmanctl.run.spec import AttemptSpec

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
    again = encode_json(AttemptSpec.decode(json.loads(line)).encode())
    # The controller asks for whole minutes.
    assert again.replace(b'"timeout_min":21.0', b'"timeout_min":21') == line


def test_a_spec_survives_json(make_spec: MakeSpec) -> None:
    for budget in (Budget(kind="minutes", amount=0.5), Budget(kind="tokens", amount=10**9)):
        spec = make_spec(budget=budget, config={"dim": 64, "nested": {"a": [1, None]}})
        assert AttemptSpec.decode(json.loads(json.dumps(spec.encode()))) == spec


def test_each_missing_key_is_named(make_spec: MakeSpec) -> None:
    whole = make_spec().encode()
    for key in whole:
        without = {name: value for name, value in whole.items() if name != key}
        with pytest.raises(InvalidConfiguration, match=rf"spec\.{key}: missing"):
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
    with pytest.raises(InvalidConfiguration, match=r"unknown: spec\.learning_rate"):
        AttemptSpec.decode(make_spec().encode() | {"learning_rate": 1})
    data = make_spec().encode()
    data["data"]["md5"] = ""
    with pytest.raises(InvalidConfiguration, match=r"unknown: spec\.data\.md5"):
        AttemptSpec.decode(data)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "this worker reads 1"),
        ("seed", 1.5, r"spec\.seed: expected int, not float"),
        ("seed", True, r"spec\.seed: expected int, not bool"),
        ("seed", -1, r"spec\.seed: -1 is not at least 0"),
        ("lr", "1e-3", r"spec\.lr: expected float, not str"),
        ("lr", 0, r"spec\.lr: 0\.0 is not above 0"),
        ("lr", float("nan"), r"spec\.lr: nan"),
        ("batch", 0, r"spec\.batch: 0 is not at least 1"),
        ("micro_batch", -1, r"spec\.micro_batch"),
        ("betas", [0.9], r"spec\.betas: expected two numbers"),
        ("betas", [0.9, 1.0], r"spec\.betas: .* between 0 and 1"),
        ("precision", "fp16", r"spec\.precision: 'fp16' is not one of"),
        ("device", "tpu", r"spec\.device"),
        ("budget", {"steps": 1, "minutes": 1}, r"spec\.budget: .*exactly one"),
        ("budget", 3, r"spec\.budget: expected dict"),
        ("config", [], r"spec\.config: expected dict, not list"),
        ("data", {"path": "x", "sha256": "y"}, r"spec\.data\.size_bytes: missing"),
        ("parameters_expected", 0, r"spec\.parameters_expected"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(
    make_spec: MakeSpec, key: str, value: Any, message: str
) -> None:
    with pytest.raises(InvalidConfiguration, match=message):
        AttemptSpec.decode(make_spec().encode() | {key: value})


def test_what_is_no_object_is_invalid() -> None:
    with pytest.raises(InvalidConfiguration, match="spec: not an object but list"):
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
    assert other.tokens_per_step == make_spec().tokens_per_step
    assert other.protocol("fp32").fingerprint != fingerprint
