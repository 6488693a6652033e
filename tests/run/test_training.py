"""The training settings: declared once, and whole."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import elmanctl
from elmanctl.errors import ConfigError
from elmanctl.run.training import Training

PACKAGE = Path(elmanctl.__file__).parent


@pytest.mark.parametrize("name", ["weight_decay", "grad_clip", "warmup_steps"])
def test_setting_is_declared_in_one_place(name: str) -> None:
    declared = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name
    ]
    assert declared == ["run/training.py"]


def test_default_that_specs_leave_out_stands_in_every_setting_that_came_later() -> None:
    # Those of version 0.1 are always there, and a spec without one is refused.
    always = {item.name for item in fields(Training) if not item.metadata["omit"]}
    assert always == {
        *("batch", "micro_batch", "seq_len", "lr", "warmup_steps", "grad_clip", "weight_decay"),
        *("seed", "precision", "device", "backend", "threads", "heartbeat_s"),
    }


def test_two_budgets_are_none() -> None:
    with pytest.raises(ConfigError, match="exactly one of minutes, steps, tokens"):
        _ = Training(steps=1, tokens=1).budget
