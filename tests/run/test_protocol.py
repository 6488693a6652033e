import json
from dataclasses import fields, replace
from typing import Any

import pytest

from elmanctl.errors import InvalidConfiguration
from elmanctl.ledger.files import encode_json
from elmanctl.run.protocol import Budget, Protocol
from elmanctl.run.spec import AttemptSpec
from tests.run.test_spec import RECORDED as SPECS

PROTOCOL = Protocol(
    corpus_sha256="ab" * 32,
    corpus_size_bytes=1000,
    budget=Budget(kind="steps", amount=200),
    tokens_per_step=2048,
    seq_len=128,
    warmup_steps=3,
    betas=(0.9, 0.95),
    weight_decay=0.01,
    grad_clip=1.0,
    precision="fp32",
)

CHANGES: dict[str, Any] = {
    "corpus_sha256": "cd" * 32,
    "corpus_size_bytes": 1001,
    "sampler": "sequential",
    "loss_definition": "last",
    "budget": Budget(kind="tokens", amount=200),
    "tokens_per_step": 1024,
    "seq_len": 64,
    "warmup_steps": 4,
    "optimizer": "sgd",
    "betas": (0.9, 0.99),
    "eps": 1e-7,
    "weight_decay": 0.02,
    "grad_clip": 0.5,
    "precision": "bf16",
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
    assert {item.name for item in fields(Protocol)} == set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_condition_changes_the_fingerprint(name: str) -> None:
    changed = replace(PROTOCOL, **{name: CHANGES[name]})
    assert changed.fingerprint != PROTOCOL.fingerprint


def test_the_fingerprint_is_the_same_for_ever() -> None:
    assert PROTOCOL.fingerprint == "d3d6e5d1ae14"


def test_whole_numbers_and_fractions_that_are_equal_have_one_fingerprint() -> None:
    one = replace(PROTOCOL, grad_clip=1, budget=Budget(kind="minutes", amount=2))
    other = replace(PROTOCOL, grad_clip=1.0, budget=Budget(kind="minutes", amount=2.0))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("data", [{"minutes": 0.5}, {"steps": 7}, {"tokens": 10**12}])
def test_a_budget_survives_encoding(data: dict[str, Any]) -> None:
    assert Budget.decode(data).encode() == data


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"steps": 1, "tokens": 1},
        {"hours": 1},
        {"steps": 1, "hours": 1},
        {"steps": True},
        {"steps": "7"},
        {"steps": 1.5},
        {"tokens": 0},
        {"minutes": -1},
        {"minutes": float("inf")},
        {"minutes": float("nan")},
    ],
)
def test_a_budget_that_is_not_one_positive_measure_is_invalid(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfiguration):
        Budget.decode(data)
