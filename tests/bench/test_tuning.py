"""The tuner tries splits, and keeps the present one unless another is clearly faster."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elmanctl.bench.size import matrix_size
from elmanctl.bench.tuning import Trial, candidates, dump, sizes_to_tune, table_of, trials
from elmanctl.errors import ConfigError, UsageError
from elmanctl.kernels.matrix_recurrence import launches, splits
from elmanctl.kernels.matrix_recurrence.splits import Direction, Split, override_split, split_for

SIZE = matrix_size(1, 2, 1, 16)
PRESENT = Split(heads=2, values=16, keys=4)
OTHER = replace(PRESENT, keys=8)


def trial(split: Split, ms: float | None, direction: Direction = "forward") -> Trial:
    return Trial(direction=direction, size=SIZE, split=split, ms=ms, is_current=split == PRESENT)


@pytest.mark.parametrize(
    ("other_ms", "chosen"), [(0.9, OTHER), (0.98, PRESENT), (1.2, PRESENT), (None, PRESENT)]
)
def test_split_takes_the_place_of_the_present_one_only_if_it_is_clearly_faster(
    other_ms: float | None, chosen: Split
) -> None:
    table = table_of([trial(PRESENT, 1.0), trial(OTHER, other_ms)])
    wanted = {"heads": chosen.heads, "values": chosen.values, "keys": chosen.keys}
    assert table == {"forward": {"16x16": wanted}}


@pytest.mark.parametrize("n", [16, 32, 48, 64])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_candidate_can_be_launched_and_the_present_one_comes_first(
    direction: Direction, n: int
) -> None:
    tried = candidates(direction, n, n)
    assert tried[0] == split_for(direction, n, n)
    assert len(set(tried)) == len(tried) > 4
    assert all(n % split.keys == 0 and split.heads * split.values <= 32 for split in tried)


def test_table_that_is_written_is_the_one_in_force_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "launches.json"
    file.write_text(dump(table_of([trial(PRESENT, 1.0), trial(OTHER, 0.5)])))
    assert json.loads(file.read_text())["forward"]["16x16"]["keys"] == 8
    before = split_for("forward", 32, 32)
    monkeypatch.setenv("ELMAN_LAUNCHES", str(file))
    assert split_for("forward", 16, 16) == OTHER
    assert split_for("forward", 32, 32) == replace(before, registers=None)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"sideways": {}}', '{"forward": {"16x16": {"warps": 4}}}', '{"forward": 1}']
)
def test_file_that_is_no_table_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "launches.json"
    file.write_text(text)
    monkeypatch.setenv("ELMAN_LAUNCHES", str(file))
    with pytest.raises(ConfigError, match=str(file)):
        split_for("forward", 16, 16)


def test_table_of_the_package_is_one_and_names_sizes_that_have_code() -> None:
    table = splits.load_table(None)
    assert {size for sizes in table.values() for size in sizes} <= {
        f"{n}x{n}" for n in (16, 32, 48, 64)
    }


def test_split_that_is_tried_is_what_is_launched_and_gone_afterwards() -> None:
    problem = launches.Problem(n_key=16, n_value=16, dtype="fp32")
    present = launches.forward_launch(problem, keep=True)
    with override_split("forward", 16, 16, OTHER):
        assert launches.forward_launch(problem, keep=True).constants["BK"] == 8
    assert launches.forward_launch(problem, keep=True) == present


def test_size_that_is_not_tuned_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no size `24x24` is tuned; known: 16x16"):
        sizes_to_tune(torch.device("cpu"), ["24x24"])


@pytest.mark.slow
def test_trials_run_both_kernels_of_each_split() -> None:
    """In Triton's interpreter, whose times mean nothing."""
    wide = (Split(heads=2, values=16, keys=16), Split(heads=1, values=16, keys=16))

    def choose(direction: Direction, n_key: int, n_value: int) -> tuple[Split, ...]:
        return (split_for(direction, n_key, n_value), *wide[:1])

    tried = list(trials([SIZE], torch.device("cpu"), choose))
    assert [(x.direction, x.is_current) for x in tried] == [
        ("forward", True),
        ("forward", False),
        ("backward", True),
        ("backward", False),
    ]
    assert all(x.ms is not None and x.ms > 0 for x in tried)
    assert set(table_of(tried)) == {"forward", "backward"}
