"""Ends after which a training may resume."""

import pytest

from elmanctl.ledger.records import (
    Attempt,
    Cause,
    Evidence,
    EvidenceSource,
    Verdict,
    VerdictKind,
)
from elmanctl.search.workload import checkpoint_folders
from elmanctl.verdicts.policy import rule_of


@pytest.mark.parametrize("kind", VerdictKind)
def test_only_what_was_ended_from_outside_goes_on_from_its_checkpoint(kind: VerdictKind) -> None:
    outside = {"preempted", "node_failure", "killed", "lost", "timeout"}
    assert rule_of(Verdict(kind=kind)).resumes == (kind.value in outside)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("state OUT_OF_MEMORY, on n1", False),
    ],
)
def test_exhausted_gpu_memory_keeps_the_checkpoint_and_host_memory_does_not(
    text: str, expected: bool
) -> None:
    told = Evidence(source=EvidenceSource.RESULT, text=text)
    assert rule_of(Verdict(kind=VerdictKind.OOM, evidence=(told,))).resumes == expected
    by_cause = {
        cause: rule_of(Verdict(kind=VerdictKind.OOM, cause=cause)).resumes for cause in Cause
    }
    assert [cause for cause, goes_on in by_cause.items() if goes_on] == [Cause.GPU]


@pytest.mark.parametrize(
    ("verdicts", "folders"),
    [
        ([], ()),
        (["preempted"], ("attempt-1",)),
        (["diverged"], ()),
        (["preempted", "python_error"], ()),
        (["python_error", "preempted"], ("attempt-2",)),
        # A node that lacked something says nothing against what was learned before.
        (["preempted", "environment"], ("attempt-1",)),
        # Taken back: it never ran.
        (["timeout", None, "lost"], ("attempt-3", "attempt-1")),
    ],
)
def test_checkpoints_are_offered_newest_first_up_to_an_end_that_came_by_itself(
    verdicts: list[str | None], folders: tuple[str, ...]
) -> None:
    attempts = [
        Attempt(
            number=number,
            submission="s0001",
            task_index=0,
            verdict=None if kind is None else Verdict(kind=VerdictKind(kind)),
        )
        for number, kind in enumerate(verdicts, start=1)
    ]
    assert checkpoint_folders(attempts) == folders
