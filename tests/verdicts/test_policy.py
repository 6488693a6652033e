"""The retry policy: its table, and changes that accumulate over attempts."""

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.ledger.records import (
    Cause,
    Evidence,
    EvidenceSource,
    State,
    Verdict,
    VerdictKind,
)
from elmanctl.settings import RetrySettings
from elmanctl.verdicts.policy import (
    RULES,
    Baseline,
    Change,
    Decision,
    Feedback,
    Group,
    PastAttempt,
    decide,
    halved,
    rule_of,
    shown_rules,
)

DEFAULT = RetrySettings()
NODES = Baseline(mem_gb=32.0, batch=16, micro_batch=16, can_move=True)
ASKED = Evidence(source=EvidenceSource.CONTROLLER, text="cancelled on request")


def verdict(kind: VerdictKind, cause: Cause | None = None, *texts: str) -> Verdict:
    quotes = tuple(Evidence(source=EvidenceSource.LOG, text=text) for text in texts)
    return Verdict(kind=kind, cause=cause, evidence=quotes)


HOST, GPU, NEIGHBOUR = (
    verdict(VerdictKind.OOM, cause) for cause in (Cause.HOST, Cause.GPU, Cause.NEIGHBOUR)
)
NODE, LOST = verdict(VerdictKind.NODE_FAILURE), verdict(VerdictKind.LOST)
EVERY = [
    *(verdict(kind) for kind in VerdictKind),
    *(GPU, NEIGHBOUR, verdict(VerdictKind.CUDA_ERROR, Cause.DEVICE)),
    verdict(VerdictKind.ENVIRONMENT, Cause.SCHEDULER),
    verdict(VerdictKind.ENVIRONMENT, Cause.ARGUMENTS),
    verdict(VerdictKind.TIMEOUT, Cause.CPU_TIME),
    Verdict(kind=VerdictKind.CANCELLED, evidence=(ASKED,)),
]
FAILURES = [each for each in EVERY if rule_of(each).setting is not None]


def tried(*verdicts: Verdict, mem_gb: float | None = 32.0) -> list[PastAttempt]:
    return [PastAttempt(verdict=each, mem_gb=mem_gb) for each in verdicts]


def _said(failure: Verdict, words: str) -> Verdict:
    """Return the same verdict with further words, from a source that decides nothing."""
    first = Evidence(source=EvidenceSource.LOG, text=words)
    return replace(failure, evidence=(first, *failure.evidence))


def test_every_verdict_has_its_line_and_every_line_its_verdict() -> None:
    assert {id(rule_of(each)) for each in EVERY} == {id(rule) for rule in RULES}


def test_every_count_of_the_settings_belongs_to_a_line() -> None:
    others = {"mem_factor", "max_mem_gb", "replacements", "breaker", "exclude_min"}
    used = {rule.setting for rule in RULES if rule.setting}
    assert used == {item.name for item in fields(RetrySettings)} - others


def test_only_what_ends_by_its_losses_says_anything_to_the_optimizer() -> None:
    feedback = {r.kind: r.feedback for r in RULES if r.feedback is not Feedback.NOTHING}
    assert feedback == {
        VerdictKind.COMPLETED: Feedback.LOSS,
        VerdictKind.DIVERGED: Feedback.LAST,
        VerdictKind.STOPPED: Feedback.PREDICTION,
    }


@pytest.mark.parametrize("failure", FAILURES, ids=lambda each: f"{each.kind}-{each.cause}")
def test_failure_is_tried_again_as_often_as_the_table_says(failure: Verdict) -> None:
    setting = rule_of(failure).setting
    assert setting is not None
    for allowed in (0, 1, 3):
        table = RetrySettings(**{setting: allowed})
        for count in range(1, allowed + 3):
            # Each attempt asked for what the ones before it made of the memory, and failed in
            # words of its own.
            attempts = [
                PastAttempt(verdict=_said(failure, "and so on " * number), mem_gb=32 * 1.5**number)
                for number in range(count)
            ]
            expected = None if count <= allowed else State.FAILED
            assert decide(attempts, table, NODES).close is expected


@pytest.mark.parametrize(
    ("last", "state"),
    [
        (verdict(VerdictKind.COMPLETED), State.COMPLETED),
        (verdict(VerdictKind.CANCELLED), State.CANCELLED),
        (Verdict(kind=VerdictKind.CANCELLED, evidence=(ASKED,)), State.CANCELLED),
    ],
)
def test_completed_and_cancelled_attempts_are_final_whatever_came_before(
    last: Verdict, state: State
) -> None:
    before = [verdict(VerdictKind.PYTHON_ERROR), NODE]
    assert decide(tried(*before, last), DEFAULT, NODES) == Decision(close=state)


def test_each_kind_of_failure_is_counted_by_itself() -> None:
    killed = verdict(VerdictKind.KILLED)
    assert decide(tried(killed, NODE, LOST), DEFAULT, NODES).close is None
    assert decide(tried(killed, NODE, LOST, killed), DEFAULT, NODES).close is State.FAILED
    assert decide(tried(HOST, GPU), DEFAULT, NODES).close is None


def test_host_memory_that_ran_out_is_raised_up_to_the_cap() -> None:
    assert decide(tried(HOST), DEFAULT, NODES) == Decision(close=None, changes={"mem_gb": 48.0})
    table = RetrySettings(oom=5, mem_factor=2.0, max_mem_gb=100.0)
    asked = [PastAttempt(verdict=HOST, mem_gb=mem_gb) for mem_gb in (32.0, 64.0, 100.0)]
    assert decide(asked[:1], table, NODES).changes == {"mem_gb": 64.0}
    assert decide(asked[:2], table, NODES).changes == {"mem_gb": 100.0}
    # Nothing is left to raise: the same attempt would end the same.
    assert decide(asked, table, NODES).close is State.FAILED


def test_memory_of_the_gpu_is_met_by_smaller_micro_batches_and_never_by_host_memory() -> None:
    table = RetrySettings(oom_gpu=9)
    seen = [decide(tried(*[GPU] * count), table, NODES) for count in range(1, 6)]
    assert [d.changes.get("micro_batch") for d in seen] == [8, 4, 2, 1, None]
    assert all("mem_gb" not in decision.changes for decision in seen)
    assert [d.close for d in seen] == [None] * 4 + [State.FAILED]


def test_memory_that_a_neighbour_took_is_no_fault_of_the_point() -> None:
    assert decide(tried(NEIGHBOUR), DEFAULT, NODES) == Decision(close=None)
    assert rule_of(NEIGHBOUR).group is Group.INFRASTRUCTURE
    assert rule_of(NEIGHBOUR).change is Change.NODE


def test_changes_are_not_forgotten_when_the_next_failure_is_of_another_kind() -> None:
    more = PastAttempt(verdict=NODE, mem_gb=48.0)
    decision = decide([*tried(HOST), more], DEFAULT, NODES)
    assert decision.changes == {"mem_gb": 48.0}
    decision = decide([*tried(HOST), PastAttempt(verdict=GPU, mem_gb=48.0), more], DEFAULT, NODES)
    assert decision.changes == {"mem_gb": 48.0, "micro_batch": 8}
    # What the user raised meanwhile for all jobs is not lowered again.
    richer = Baseline(mem_gb=80.0, batch=16, micro_batch=16)
    assert decide([*tried(HOST), more], DEFAULT, richer).changes == {}


def test_attempt_without_a_limit_on_host_memory_needs_less_the_next_time() -> None:
    """On this machine, or where `slurm.mem_gb` is not set."""
    here = Baseline(batch=6, micro_batch=6)
    assert decide(tried(HOST, mem_gb=None), DEFAULT, here).changes == {"micro_batch": 3}
    one = Baseline(batch=6, micro_batch=1)
    assert decide(tried(HOST, mem_gb=None), DEFAULT, one).close is State.FAILED


def test_retry_needs_less_than_what_the_worker_had_come_down_to() -> None:
    place = Baseline(batch=16, micro_batch=16)
    came_down = PastAttempt(verdict=GPU, micro_batch=4)
    assert decide([came_down], DEFAULT, place).changes == {"micro_batch": 2}
    # There is nothing left to halve: a retry would end the same.
    at_one = PastAttempt(verdict=GPU, micro_batch=1)
    assert decide([at_one], DEFAULT, place).close is State.FAILED
    assert decide([came_down, at_one], DEFAULT, place).close is State.FAILED
    # One that says nothing had what it was given.
    assert decide([PastAttempt(verdict=GPU)], DEFAULT, place).changes == {"micro_batch": 8}


def test_what_a_node_lacks_is_tried_again_on_another_node_only() -> None:
    lacking = verdict(VerdictKind.ENVIRONMENT)
    assert decide(tried(lacking), DEFAULT, NODES).close is None
    assert decide(tried(lacking), DEFAULT, Baseline()).close is State.FAILED


def test_verdict_without_a_cause_goes_by_its_words() -> None:
    """Ledgers of version 0.1 have none."""
    for text in ("torch.OutOfMemoryError: CUDA out of memory.", "HIP out of memory"):
        assert rule_of(verdict(VerdictKind.OOM, None, text)).case == Cause.GPU
    for text in ("state OUT_OF_MEMORY, on n1", "MemoryError"):
        assert rule_of(verdict(VerdictKind.OOM, None, text)).case == Cause.HOST


def test_failure_of_code_that_would_only_happen_again_is_not_tried_again() -> None:
    failure = verdict(VerdictKind.CUDA_ERROR, None, "CUDA error: misaligned address")
    other = verdict(VerdictKind.CUDA_ERROR, None, "CUDA error: illegal instruction")
    often = replace(DEFAULT, cuda_error=5, node_failure=5)
    assert decide(tried(failure), often, NODES).close is None
    assert decide(tried(failure, other), often, NODES).close is None
    assert decide(tried(failure, other, failure), often, NODES).close is State.FAILED
    assert decide(tried(NODE, NODE), often, NODES).close is None


@pytest.mark.parametrize(
    ("batch", "micro_batch", "half"), [(16, 16, 8), (12, 3, 1), (6, 6, 3), (7, 7, 1), (1, 1, 1)]
)
def test_half_a_micro_batch_divides_the_batch(batch: int, micro_batch: int, half: int) -> None:
    assert halved(batch, micro_batch) == half


def test_shown_table_has_the_numbers_of_the_settings() -> None:
    rows = {(row["verdict"], row["case"]): row for row in shown_rules(RetrySettings(oom=7))}
    assert len(rows) == len(RULES)
    assert rows["oom", "host"] == {
        "verdict": "oom",
        "case": "host",
        "told": "nothing",
        "setting": "retry.oom",
        "again": 7,
        "change": "more host memory",
        "from_checkpoint": False,
        "group": "none",
    }
    assert (rows["completed", None]["again"], rows["completed", None]["change"]) == (0, None)


@given(st.lists(st.sampled_from(FAILURES), min_size=1, max_size=60))
def test_no_evaluation_is_tried_for_ever(several: list[Verdict]) -> None:
    settings = {rule.setting for rule in RULES if rule.setting}
    total = sum(getattr(DEFAULT, setting) for setting in settings)
    closed = [decide(tried(*several[: n + 1]), DEFAULT, NODES).close for n in range(len(several))]
    if len(several) > total:
        assert State.FAILED in closed


@given(st.lists(st.sampled_from(FAILURES), min_size=1, max_size=12))
def test_memory_never_shrinks_and_micro_batches_never_grow(several: list[Verdict]) -> None:
    mem_gb, micro_batch, asked = 32.0, 16.0, []
    table = RetrySettings(max_mem_gb=64.0)
    for each in several:
        asked.append(PastAttempt(verdict=each, mem_gb=mem_gb))
        changes = decide(asked, table, NODES).changes
        if decide(asked, table, NODES).close is not None:
            return
        now = changes.get("mem_gb", 32.0), changes.get("micro_batch", 16)
        assert mem_gb <= now[0] <= 64.0 and 1 <= now[1] <= micro_batch
        assert now[0] == mem_gb or rule_of(each).case == Cause.HOST
        mem_gb, micro_batch = now
