"""The circuit breaker, and signatures of failures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.records import Cause, Evidence, EvidenceSource, Verdict, VerdictKind
from elmanctl.verdicts.breaker import Failure, tripped
from elmanctl.verdicts.policy import Group
from elmanctl.verdicts.signature import normalised, signature


def failure(
    kind: str, text: str = "", node: str | None = None, cause: Cause | None = None
) -> Failure:
    quotes = (Evidence(source=EvidenceSource.RESULT, text=text),) if text else ()
    return Failure(verdict=Verdict(kind=VerdictKind(kind), evidence=quotes, cause=cause), node=node)


CODE = ["invalid", "cuda_error", "python_error", "undetermined"]


@pytest.mark.parametrize("kind", CODE)
def test_same_failure_of_code_in_a_row_stops_the_search(kind: str) -> None:
    row = [failure(kind, f"ValueError: {n} heads (model.py line {n})") for n in range(3)]
    assert tripped(row[:2], 3, can_move=True) is None
    found = tripped(row, 3, can_move=True)
    assert found is not None and found.group is Group.CODE
    assert found.reason.startswith(f"the last 3 attempts ended as {kind}: ValueError: 2 heads")
    assert tripped([failure("diverged"), *row], 3, can_move=True) == found
    assert tripped([*row[:2], failure("diverged"), row[2]], 3, can_move=True) is None
    assert tripped([*row[:2], failure("preempted"), row[2]], 3, can_move=True) == found


def test_failures_of_code_in_different_ways_go_on() -> None:
    row = [failure("python_error", f"{name}: x") for name in ("KeyError", "TypeError", "OSError")]
    assert tripped(row, 3, can_move=True) is None


@pytest.mark.parametrize("kind", ["diverged", "timeout", "killed", "preempted"])
def test_failures_that_say_something_of_the_point_alone_never_stop_it(kind: str) -> None:
    row = [failure(kind, node=f"n{n}") for n in range(9)]
    assert tripped(row, 3, can_move=True) is None


def test_infrastructure_that_fails_wherever_jobs_go_stops_the_search() -> None:
    row = [
        failure("node_failure", "state NODE_FAIL, on n1", "n1"),
        failure("environment", "no torch", "n2"),
        failure("oom", "CUDA out of memory", "n3", Cause.NEIGHBOUR),
    ]
    found = tripped(row, 3, can_move=True)
    assert found is not None and found.group is Group.INFRASTRUCTURE
    assert "3 different nodes: node_failure on n1, environment on n2, oom on n3" in found.reason
    assert tripped([row[0], row[1], row[1], row[1]], 3, can_move=True) is None
    assert tripped([row[0], failure("timeout", node="n9"), *row[1:]], 3, can_move=True) is None
    assert tripped([row[0], row[1], row[1], row[2]], 3, can_move=True) is not None


def test_outage_of_the_scheduler_meets_every_node_and_stops_nothing() -> None:
    outage = [failure("environment", node=f"n{n}", cause=Cause.SCHEDULER) for n in range(9)]
    for can_move in (True, False):
        assert tripped(outage, 3, can_move=can_move) is None
    # Nor does it end a row of other failures.
    row = [failure("python_error", "KeyError: x") for _ in range(3)]
    assert tripped([*row[:2], *outage, row[2]], 3, can_move=True) is not None


def test_node_that_cannot_be_avoided_counts_like_code() -> None:
    row = [failure("environment", "no torch", "n1")] * 3
    assert tripped(row, 3, can_move=True) is None
    found = tripped(row, 3, can_move=False)
    assert found is not None and found.reason.endswith("ended as environment: no torch")


def test_full_disk_counts_at_once_and_with_no_breaker() -> None:
    for limit in (0, 3):
        found = tripped([failure("disk_full")], limit, can_move=True)
        assert found is not None and found.group is Group.DISK


def test_breaker_of_zero_never_trips_but_for_a_full_disk() -> None:
    assert tripped([failure("python_error", "x")] * 9, 0, can_move=False) is None
    assert tripped([], 0, can_move=False) is None
    assert tripped([], 3, can_move=False) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "RuntimeError: shape [2, 64] (e88.py line 12)",
            "RuntimeError: shape [3, 8] (e88.py line 9)",
        ),
        ("no such file: /scratch/u1/run-a/x.py", "no such file: /data/other/y.py"),
        ("address 0x7ffde3 of g000-e01", "address 0x10 of g012-e03"),
        ("id 3f2504e0-4f89-11d3-9a0c-0305e82c3301", "id 00000000-4f89-11d3-9a0c-0305e82c3301"),
        ("digest 9f86d081884c7d65", "digest 1b4f0e9851971998"),
        ("lr 1e-3 loss -2.5", "lr 0.02 loss 7"),
    ],
)
def test_numbers_paths_and_ids_do_not_make_failures_differ(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_words_make_failures_differ() -> None:
    assert normalised("KeyError: 'heads'") != normalised("KeyError: 'depth'")
    assert normalised("a defaced facade") == "a defaced facade"
    assert signature(failure("oom", "x").verdict) != signature(failure("killed", "x").verdict)


def test_signature_is_of_what_was_observed_and_not_of_the_controllers_remark() -> None:
    remark = Evidence(source=EvidenceSource.CONTROLLER, text="ended without a result")
    seen = Evidence(source=EvidenceSource.LOG, text="Bus error (core dumped)\nmore")
    both = Verdict(kind=VerdictKind.UNDETERMINED, evidence=(remark, seen))
    assert signature(both) == "undetermined: Bus error (core dumped)"
    alone = Verdict(kind=VerdictKind.UNDETERMINED, evidence=(remark,))
    assert signature(alone) == "undetermined: ended without a result"
    assert signature(Verdict(kind=VerdictKind.LOST)) == "lost"


PIECES = ("/", "~", "..", "C:\\", "0x", "3fa85f64-5717-4562-b3fc-2c963f66afa6", "-1.5e+3", " ", "a")


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=20).map("".join))
def test_any_text_has_one_signature(text: str) -> None:
    once = normalised(text)
    assert len(once) <= 200 and not any(c in "0123456789" for c in once)
