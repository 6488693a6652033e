"""The line on a generation: its branch of a sweep, and one of the study without a valid point."""

from elmanctl.cli.search_view import generation_line
from elmanctl.ledger.records import Evaluation
from elmanctl.ledger.run_state import RunState


def state(*members: Evaluation, sweep: dict[str, list[int]]) -> RunState:
    told = {0: [(each.id, 1.0) for each in members]}
    found = RunState(run={"space": {"axes": {}, "sweep": sweep}}, told=told, generation=0)
    for each in members:
        found.put(each)
    return found


def test_generation_of_a_sweep_names_its_branch() -> None:
    one = Evaluation(
        id="g000-e00",
        generation=0,
        point=(0.0,),
        config={"n_state": 16},
        lr=0.1,
        parameters=1,
        seed=1,
    )
    shown = generation_line(state(one, sweep={"n_state": [8, 16], "lr": [1, 2]}), 0)
    assert shown == "g000 n_state=16 lr=0.1: 1 evaluated, none completed"
    assert generation_line(state(one, sweep={}), 0).startswith("g000: 1 evaluated")


def test_generation_without_a_valid_point_has_a_line() -> None:
    assert generation_line(state(sweep={}), 0) == "g000: 0 evaluated, none completed"
