import json
from dataclasses import fields, replace
from typing import Any

import pytest

from elmanctl.ledger.files import encode_json
from elmanctl.run.protocol import Protocol
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.training import Training
from tests.run.test_spec import RECORDED as SPECS
from tests.specs import BEFORE

TRAINING = Training(**BEFORE | {"steps": 200, "batch": 16, "seq_len": 128})
PROTOCOL = Protocol(
    corpus_sha256="ab" * 32,
    corpus_size_bytes=1000,
    training=TRAINING,
    betas=(0.9, 0.95),
    precision="fp32",
)

# Of both records, each condition with another value.
CHANGES: dict[str, Any] = {
    "corpus_sha256": "cd" * 32,
    "corpus_size_bytes": 1001,
    "optimizer": "sgd",
    "betas": (0.9, 0.99),
    "eps": 1e-7,
    "precision": "bf16",
}
TRAINING_CHANGES: dict[str, dict[str, Any]] = {
    "budget": {"steps": None, "tokens": 200},
    "tokens_per_step": {"batch": 8},
    "seq_len": {"batch": 32, "seq_len": 64},
    "warmup_steps": {"warmup_steps": 4},
    "weight_decay": {"weight_decay": 0.02},
    "grad_clip": {"grad_clip": 0.5},
    "sampler": {"sampler": "stream"},
    "loss_definition": {"objective": "mean"},
}

# Conditions that are left out where they are as they were before they existed.
ADDED = {
    item.name: item.metadata
    for item in fields(Training)
    if item.metadata["condition"] and "absent" in item.metadata
}

_HEAD = (
    b'{"corpus_sha256":"%b","corpus_size_bytes":1000,"sampler":"uniform-windows-v1",'
    b'"loss_definition":"mean-train-nats-last-100-steps",' % (b"ab" * 32)
)
RECORDED = {
    "defaults": (
        _HEAD + b'"budget":{"minutes":10.0},"tokens_per_step":4096,"seq_len":256,"warmup_steps":3,'
        b'"optimizer":"schedulefree-adamw","betas":[0.9,0.95],"eps":1e-08,"weight_decay":0.01,'
        b'"grad_clip":1.0,"precision":"bf16"}\n',
        "07525f680d2e",
    ),
    "nothing default": (
        _HEAD + b'"budget":{"steps":200},"tokens_per_step":1024,"seq_len":128,"warmup_steps":5,'
        b'"optimizer":"schedulefree-adamw","betas":[0.8,0.99],"eps":1e-08,"weight_decay":0.1,'
        b'"grad_clip":0.5,"precision":"bf16"}\n',
        "af3e5086d159",
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_protocol_keeps_its_bytes_and_its_fingerprint(name: str) -> None:
    protocol = AttemptSpec.decode(json.loads(SPECS[name])).protocol("bf16")
    assert (encode_json(protocol.encode()), protocol.fingerprint) == RECORDED[name]


def test_every_condition_is_covered_by_this_file() -> None:
    assert set(PROTOCOL.encode()) == set(CHANGES) | set(TRAINING_CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_condition_changes_the_fingerprint(name: str) -> None:
    changed = replace(PROTOCOL, **{name: CHANGES[name]})
    assert changed.fingerprint != PROTOCOL.fingerprint


@pytest.mark.parametrize("name", TRAINING_CHANGES)
def test_changed_training_changes_the_fingerprint(name: str) -> None:
    changed = replace(PROTOCOL, training=replace(TRAINING, **TRAINING_CHANGES[name]))
    assert changed.encode()[name] != PROTOCOL.encode()[name]
    assert changed.fingerprint != PROTOCOL.fingerprint


@pytest.mark.parametrize("name", [*ADDED, "batch_rule"])
def test_added_condition_changes_the_fingerprint(name: str) -> None:
    words = {"skip_nonfinite": True, "decay": "matrices", "batch_rule": "study-2026-01"}
    other: Any = words[name] if name in words else ADDED[name]["bounds"].high
    changed = replace(PROTOCOL, training=replace(TRAINING, **{name: other}))
    assert changed.encode()[name] == other
    assert name not in PROTOCOL.encode()
    assert changed.fingerprint != PROTOCOL.fingerprint


def test_the_fingerprint_is_the_same_for_ever() -> None:
    assert PROTOCOL.fingerprint == "d3d6e5d1ae14"


def test_whole_numbers_and_fractions_that_are_equal_have_one_fingerprint() -> None:
    spec = json.loads(SPECS["defaults"])
    whole = AttemptSpec.decode(spec | {"grad_clip": 1, "budget": {"minutes": 10}})
    assert whole.protocol("bf16").fingerprint == RECORDED["defaults"][1]
