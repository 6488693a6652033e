"""What is on record of the kernels' machine code, and what departs from it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kernel_code.budgets import Record, differences, dump, load
from benchmarks.kernel_code.cases import Case, Layer
from benchmarks.kernel_code.table import kernel_tables
from elmanctl.kernels.launch import Launch

RECORD = Record(
    warps=1,
    registers=100,
    shared_bytes=1000,
    instructions=300.0,
    guarded=10.0,
    shuffles=10.0,
    specials=35.0,
    loops={"segment": 5.0, "step": 295.0},
)
SPILLS = {"local_stores": 4, "local_loads": 5, "stack_bytes": 16}


def test_what_is_on_record_is_within_its_budget() -> None:
    assert differences(RECORD, RECORD) == []


def changed(name: str, value: Any) -> Record:
    return replace(RECORD, **{name: value})


@pytest.mark.parametrize(
    ("name", "worse", "within"),
    [
        ("registers", 103, 102),
        ("shared_bytes", 1021, 1020),
        ("instructions", 306.1, 306.0),
        ("shuffles", 11, 10.2),
        ("specials", 36, 35.7),
    ],
)
def test_more_than_the_margin_above_the_record_is_worse(
    name: str, worse: float, within: float
) -> None:
    (wrong,) = differences(RECORD, changed(name, worse))
    assert wrong.startswith(f"{name}: ")
    assert "worse" in wrong
    assert differences(RECORD, changed(name, within)) == []


@pytest.mark.parametrize("name", ["warps", "registers", "instructions", "shuffles", "specials"])
def test_record_that_has_become_too_high_must_be_made_anew(name: str) -> None:
    (wrong,) = differences(RECORD, changed(name, 0))
    assert "benchmarks.kernel_code.record" in wrong


def test_kernel_without_a_record_is_no_pass() -> None:
    assert "not recorded" in differences(None, RECORD)[0]


def test_spill_is_excused_by_a_reason_and_up_to_its_numbers_only() -> None:
    found = replace(RECORD, spills=SPILLS)
    assert any("it spills" in wrong for wrong in differences(RECORD, found))
    without = replace(RECORD, spills=SPILLS | {"reason": " "})
    assert differences(without, found) == ["its spills are recorded without a reason"]
    excused = replace(RECORD, spills=SPILLS | {"reason": "two states of 64 keys"})
    assert differences(excused, found) == []
    more = replace(RECORD, spills=SPILLS | {"local_loads": 6})
    assert any("it spills" in wrong for wrong in differences(excused, more))
    assert any("no longer spills" in wrong for wrong in differences(excused, RECORD))


def test_file_of_budgets_is_read_as_it_was_written(tmp_path: Path) -> None:
    budgets = {
        "3.9.0": {
            "sm_90": {"a": RECORD, "b": replace(RECORD, spills=SPILLS | {"reason": "so"})},
            "sm_80": {"a": RECORD},
        },
        "3.6.0": {"sm_90": {"a": replace(RECORD, registers=7)}},
    }
    text = dump(budgets)
    assert len(text.splitlines()) == 4 + 2 * 6  # a line a case, and braces
    (tmp_path / "budgets.json").write_text(text, encoding="utf-8")
    assert load(tmp_path / "budgets.json") == budgets


def _never() -> Launch:
    raise AssertionError("a table needs no launch")


def test_table_has_both_tritons_side_by_side_and_the_time_of_a_layer() -> None:
    cases = {
        "forward": Case(launch=_never, loops={}, layer=Layer(83, 16 * 83)),
        "other": Case(launch=_never, loops={}),
    }
    spilling = replace(RECORD, registers=255, spills=SPILLS | {"reason": "so"})
    budgets = {
        "3.6.0": {"sm_90": {"forward": replace(RECORD, instructions=400.25), "other": spilling}},
        "3.9.0": {"sm_90": {"forward": RECORD, "other": RECORD}},
    }
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in kernel_tables(budgets, cases).splitlines()
        if line.startswith("| `")
    ]
    by_loop = "segment 5 + step 295"
    assert rows[0] == ["`forward`", "1", "100", "1,000", "300 / 400.2", by_loop, "10", "10", "35"]
    assert rows[1][2] == "100 / 255 and 16 bytes spilled"
    # 16 x 83 warps on 528 schedulers: 2.515 on the average, 3 at most, each 512 x 300 instructions
    # at 1.755 a nanosecond.
    assert rows[2:] == [
        ["`forward`", "3.9.0", "83", "1,328", "300", "0.22", "0.26"],
        ["`forward`", "3.6.0", "83", "1,328", "400.2", "0.29", "0.35"],
    ]
