"""docs/how-to/add-a-setting.md, followed to the letter in a copy of the checkout."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.pages import ROOT, blocks, cells, command, copy_checkout, run

PAGE = ROOT / "docs" / "how-to" / "add-a-setting.md"
VARIABLE = "ELMAN_TRAIN_LR_WARMUP_STEPS"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which every block of code has been put into its place."""
    copy = tmp_path_factory.mktemp("checkout")
    files = copy_checkout(copy, PAGE, "docs", "scripts", "benchmarks")
    assert files == ["elmanctl/run/training.py", "elmanctl/jobs/optimizer.py"]
    for name in ("CONTRIBUTING.md", "README.md"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


def follow(
    part: str, checkout: Path, environment: Mapping[str, str], *more: str, plain: bool = False
) -> Any:
    """Run the one command of the page that holds `part`, if `plain` without its variables."""
    (text,) = (b.text for b in blocks(PAGE) if b.language == "console" and part in b.text)
    words, variables = command(text)
    return run([*words, *more], checkout, {**environment, **({} if plain else variables)})


def test_setting_is_read_and_held_to_its_bounds(
    checkout: Path, environment: dict[str, str]
) -> None:
    shown, refusal = (block.text for block in blocks(PAGE) if block.language == "text")
    done = follow(f"{VARIABLE}=20 elmanctl config", checkout, environment)
    assert done.returncode == 0, done.stderr
    assert cells(shown)[0] in cells(done.stdout)
    refused = follow(f"{VARIABLE}=-1", checkout, environment)
    assert (refused.returncode, refused.stderr.strip()) == (2, refusal.strip())


def test_reference_names_it(checkout: Path, environment: dict[str, str]) -> None:
    done = follow("make-reference", checkout, environment)
    assert done.returncode == 0, done.stderr
    reference = (checkout / "docs" / "reference" / "config.md").read_text(encoding="utf-8")
    assert re.search(rf"`lr_warmup_steps` \| whole number \| `0` \| .* \| `{VARIABLE}`", reference)


@pytest.mark.slow
def test_training_runs_under_it_and_its_protocol_says_so(
    checkout: Path, environment: dict[str, str]
) -> None:
    results = []
    for plain in (False, True):
        few = ("--train-steps", "5", "--out", f"plain-{plain}")
        done = follow("elmanctl eval", checkout, environment, *few, plain=plain)
        assert done.returncode == 0, done.stderr
        spec = json.loads((checkout / few[-1] / "spec.json").read_text(encoding="utf-8"))
        results.append((spec, json.loads(done.stdout)))
    (spec, result), (plain_spec, plain_result) = results
    assert spec["lr_warmup_steps"] == result["protocol"]["lr_warmup_steps"] == 20
    assert "lr_warmup_steps" not in {**plain_spec, **plain_result["protocol"]}
    assert result["fingerprint"] != plain_result["fingerprint"]
    assert result["loss"] != plain_result["loss"]


@pytest.mark.slow
def test_tests_of_every_setting_hold_for_it(checkout: Path, environment: dict[str, str]) -> None:
    done = follow("pytest", checkout, environment)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\b\d{3,} passed", done.stdout)
