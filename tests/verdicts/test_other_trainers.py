"""Logs as other trainers, launchers and schedulers write them, each with its kind.

They are written by hand after the formats of these programs; none is copied.
"""

from pathlib import Path

import pytest

from elmanctl.ledger.records import Cause, Confidence
from elmanctl.verdicts import classify_log
from elmanctl.verdicts.exception_rules import EXCEPTION_RULES
from elmanctl.verdicts.logs.keywords import lines_with_keywords
from elmanctl.verdicts.logs.rules import LINE_RULES
from elmanctl.verdicts.logs.signs import shape_of

TEXT = (Path(__file__).parents[1] / "data" / "logs-of-other-trainers.txt").read_text(
    encoding="utf-8"
)
LOGS = [block.partition("\n")[::2] for block in TEXT.split("=== ")[1:]]


@pytest.mark.parametrize(("title", "text"), LOGS, ids=[title for title, _ in LOGS])
def test_log_of_another_trainer_is_given_its_kind(title: str, text: str) -> None:
    verdict = classify_log(text)
    assert verdict.kind == title.partition(":")[0]
    assert verdict.evidence


def test_verdict_on_a_log_says_how_sure_it_is_and_whose_fault_it_was() -> None:
    found = {title: classify_log(text) for title, text in LOGS}
    assert found["oom: a neighbour holds the GPU"].cause is Cause.NEIGHBOUR
    held = "process 1234 on the same GPU holds 70.00 GiB; 0.50 GiB were missing"
    assert held in [quote.text for quote in found["oom: a neighbour holds the GPU"].evidence]
    assert found["oom: JAX"].cause is Cause.GPU
    assert found["oom: Slurm's cgroup killed one"].cause is Cause.HOST
    assert found["cuda_error: the GPU fell off its bus"].cause is Cause.DEVICE
    assert found["cuda_error: NCCL timed out in a collective"].cause is None
    assert found["completed: Keras"].confidence is Confidence.LIKELY
    assert found["lost: stopped in the middle of its epochs"].confidence is Confidence.UNCLEAR


def test_every_line_that_fits_a_rule_holds_one_of_its_words() -> None:
    for line in TEXT.split("\n"):
        lowered = shape_of(line).lower()
        for rule in (*EXCEPTION_RULES, *LINE_RULES):
            if rule.matches(line):
                assert any(key in lowered for key in rule.keys), (line, rule)


def test_long_text_is_read_only_where_it_holds_a_word() -> None:
    """What is quick for noise must miss nothing that is read in a short text."""
    noise = [f"qzqz {number:06x}" for number in range(40_000)]
    lines = [*noise[:20_000], "Some GPU", "[1/3]", "OutOfMemoryError", *noise[20_000:], "XID 7"]
    found = list(lines_with_keywords("\n".join(lines), lines))
    assert {20_000, 20_001, 20_002, 40_003} <= set(found)
    assert len(found) < 100


@pytest.mark.parametrize(("title", "text"), LOGS, ids=[title for title, _ in LOGS])
def test_length_of_a_log_does_not_change_its_kind(title: str, text: str) -> None:
    noise = "qzqz qzqz qzqz\n" * 14_000
    assert classify_log(noise + text).kind == title.partition(":")[0]
