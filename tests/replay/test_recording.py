"""Recordings: what is read from a ledger and from a file of JSON lines."""

import gzip
import json
import math
from pathlib import Path

import pytest

from elmanctl.errors import ElmanError, NotFound, UsageError
from elmanctl.replay.recording import Recorded, Recording, read_recordings, recording_of
from elmanctl.space.axis import Axis
from tests.search.scripted import Runs, loss_of

HEAD = '{"name": "gru", "axes": {"depth": {"kind": "int", "low": 8, "high": 40}}}'
DEPTH = Axis(name="depth", kind="int", low=8, high=40)


def written(folder: Path, *lines: str) -> Path:
    """Return a file of these lines."""
    path = folder / "earlier.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_file_of_several_searches_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        HEAD,
        '{"values": {"depth": 12}, "loss": 1.41}',
        '{"values": {"depth": 40}, "loss": null}',
        '{"values": {"depth": 9}, "loss": NaN}',
        "",
        '{"values": {"depth": 13}, "invalid": true}',
        '{"axes": {"gate": {"kind": "bool"}}}',
        '{"values": {"gate": true}, "loss": 2}',
    )
    first, second = read_recordings(path)
    assert first.name == "gru" and first.axes == (DEPTH,)
    assert first.losses == [((4.0,), 1.41)] and first.invalid == [(5.0,)]
    assert first.failure_share == pytest.approx(2 / 3)
    assert second == Recording(
        name="earlier",
        axes=(Axis(name="gate", kind="bool"),),
        evaluations=(Recorded(point=(1.0,), loss=2.0),),
    )
    packed = tmp_path / "earlier.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_recordings(packed) == [first, second]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "no line has `axes`"),
        (('{"values": {}}',), "line 1: comes before any line with `axes`"),
        ((HEAD, '{"values": {"depth": 7}, "loss": 1}'), "line 2: axis `depth` does not reach `7`"),
        ((HEAD, '{"values": {}, "loss": 1}'), "line 2: `values` lacks `depth`"),
        (
            (HEAD, '{"values": {"depth": 9}, "los": 1}'),
            "line 2: `evaluation.los` is not a known key",
        ),
        ((HEAD, '{"values": {"depth": 9}, "loss": "1"}'), "line 2: `evaluation.loss` must be"),
        ((HEAD, '{"values": {"depth"'), "line 2: not JSON"),
        (('{"axes": {"a": {"kind": "whole"}}}',), "line 1: axis `a`: unknown kind `whole`"),
        (('{"axes": {}}',), "line 1: a recording needs an axis"),
    ],
)
def test_line_that_cannot_be_read_is_named(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(UsageError) as told:
        read_recordings(path)
    assert message in told.value.message and str(path) in told.value.message


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such file"):
        read_recordings(tmp_path / "none.jsonl")
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(gzip.compress(HEAD.encode() * 9)[:30])
    with pytest.raises(ElmanError, match="cannot be read"):
        read_recordings(damaged)


def recording(losses: dict[int, list[float]]) -> Recording:
    """Return a recording of losses by depth."""
    evaluations = [
        Recorded(point=(float(depth - 8),), loss=loss)
        for depth, found in losses.items()
        for loss in found
    ]
    return Recording(name="made up", axes=(DEPTH,), evaluations=tuple(evaluations))


def test_noise_is_that_of_repeats_among_the_better_half() -> None:
    good = {8: [1.0, 1.2], 9: [1.1, 1.3, 1.2]}
    bad = {10: [2.0, 4.0], 11: [5.0, 9.0]}
    found = recording(good | bad).noise()
    assert found is not None
    assert found[0] == pytest.approx(math.sqrt((0.02 + 0.02) / 3)) and found[1] == 3
    # One degree of freedom there is too few: all repeats say it.
    found = recording({8: [1.0, 1.2]} | bad).noise()
    assert found is not None
    assert found[0] == pytest.approx(math.sqrt((0.02 + 2.0 + 8.0) / 3)) and found[1] == 3
    assert recording({8: [1.0], 9: [2.0]}).noise() is None


def test_run_is_recorded_with_its_repeats_and_what_the_optimizer_learnt_of(runs: Runs) -> None:
    search = runs.new(generations=3, confirm_top=2, confirm_seeds=2)
    search.world.script = {"g000-e01": ["diverged"], "g001-e00": ["timeout"] * 9}
    state = search.drive()
    found = recording_of(state)
    assert [axis.name for axis in found.axes] == ["n_heads", "lr"]
    trained = [e for e in state.evaluations.values() if e.answer is None]
    expected = [e.loss for e in trained if e.loss is not None]
    assert [loss for _, loss in found.losses] == expected
    failed = [each for each in found.evaluations if each.loss is None]
    assert [each.point for each in failed] == [state.evaluations["g000-e01"].point]
    values = [axis.value(x) for axis, x in zip(found.axes, found.losses[0][0], strict=True)]
    n_heads, lr = values
    assert isinstance(lr, float)
    assert found.losses[0][1] == pytest.approx(loss_of({"n_heads": n_heads}, lr))
    # Confirmations are repeats of their winners.
    noise = found.noise()
    assert noise is not None and noise[1] >= 4
    json.dumps(noise)


def test_what_a_run_swept_is_an_axis_like_the_others(runs: Runs) -> None:
    search = runs.new(
        generations=4, sweep={"n_state": [8, 16]}, model={"dim": 32, "depth": 1}, confirm_top=2
    )
    state = search.drive()
    found = recording_of(state)
    assert [axis.name for axis in found.axes] == ["n_heads", "lr", "n_state"]
    expected = [e.config["n_state"] for e in state.evaluations.values() if e.loss is not None]
    assert {8, 16} == set(expected)
    assert [found.axes[2].value(point[2]) for point, _ in found.losses] == expected
