"""The replay of recorded trainings under rules of early stopping, where the answer is known."""

import gzip
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from elmanctl.constants import LOOKS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("early_stopping")


def log(losses: Sequence[float], *, without: range = range(0)) -> str:
    """Return the log of a trainer with a loss each tenth step, of which some lines are cut out."""
    lines = ["Batch size: 8, Chunk size: 512", "Time-based training: 10.0 minutes"]
    for number, loss in enumerate(losses, start=1):
        if number not in without:
            lines.append(
                f"step {10 * number:6} | loss {loss:.4f} | lr 3e-4 | grad 1.0 | tok/s 9000"
            )
    return "\n".join(lines)


def write(path: Path, texts: Sequence[str], label: str = "ok") -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            record = {"path": f"search/eval_{number}.log", "label": label, "text": text}
            file.write(json.dumps(record) + "\n")
    return path


def test_curve_has_no_look_where_lines_are_cut_out(script: ModuleType, tmp_path: Path) -> None:
    losses = [5.0 - number / 100 for number in range(1, 201)]
    path = write(tmp_path / "logs.gz", [log(losses), log(losses, without=range(71, 121))])
    (whole, cut) = script.read_searches(path, 2)["search"]
    assert whole.loss == pytest.approx(sum(losses[100:]) / 100)
    first, second = (each.curve(each.tokens) for each in (whole, cut))
    assert len(first) == LOOKS
    # The last 20 lines of 40 are the later half of a fifth of the training.
    assert first[7] == pytest.approx(sum(losses[20:40]) / 20) == second[7]
    known = [look for look, loss in enumerate(second, start=1) if loss is not None]
    assert 14 in known and not {18, 20, 24} & set(known)


def test_only_trainings_that_ended_well_are_read(script: ModuleType, tmp_path: Path) -> None:
    texts = [log([3.0] * 50)] * 3
    assert not script.read_searches(write(tmp_path / "bad.gz", texts, label="diverged"), 1)
    assert not script.read_searches(write(tmp_path / "few.gz", texts), 4)


def trials(script: ModuleType, losses: Sequence[float]) -> Any:
    times = [look / LOOKS for look in range(1, LOOKS + 1)]
    return [script.Trial(curve=[loss + 1] * LOOKS, times=times, loss=loss) for loss in losses]


def test_replay_costs_what_was_trained_and_the_loss_that_is_missed(script: ModuleType) -> None:
    made = trials(script, [1.0, 3.0, 2.0, 4.0])
    order = [0, 1, 2, 3]
    none = script.replay(made, order, lambda curve, others, judged: False, 2)
    assert (none.time, none.regret, none.stopped) == (1.0, 0.0, 0.0)

    def stops_above_3_at_half(curve: Any, others: Any, judged: int) -> bool:
        return len(curve) == LOOKS // 2 and curve[-1] > 3.5

    half = script.replay(made, order, stops_above_3_at_half, 2)
    assert (half.time, half.regret, half.stopped) == (0.75, 0.0, 0.5)
    best = script.replay(made, order, lambda c, o, j: len(c) == 10 and c[-1] == 2.0, 2)
    assert (best.time, best.regret) == (pytest.approx((3 + 0.25) / 4), 1.0)


def test_rule_knows_only_what_was_known_by_then(script: ModuleType) -> None:
    made, seen = trials(script, [1.0, 2.0, 3.0]), []

    def remember(curve: Any, others: Any, judged: int) -> bool:
        seen.append((len(curve), [(len(other.curve), other.loss) for other in others]))
        assert judged == len(curve) - 1
        return False

    script.replay(made, [0, 1, 2], remember, 1)
    assert seen[0] == (1, [])
    assert seen[-1] == (LOOKS - 1, [(LOOKS, 1.0), (LOOKS, 2.0)])
    seen.clear()
    script.replay(made, [0, 1, 2], remember, 2)
    assert all(loss is None for looks, others in seen[:10] for _, loss in others)
    assert {size for size, _ in seen[1][1]} == {1}


def test_shipped_rule_stops_the_hopeless_and_keeps_the_best(script: ModuleType) -> None:
    made = trials(script, [2.0 + number / 50 for number in range(12)] + [1.5])
    found = script.replay(made, list(range(13)), script.shipped(rule="curve"), 4)
    # Four have to complete, and the best one does.
    assert found.regret == 0.0
    assert 5 / 13 < found.time < 0.6
