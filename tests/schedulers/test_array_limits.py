"""Limits of a cluster's job arrays, as the Slurm executor learns them."""

from dataclasses import replace

import pytest

from elmanctl.errors import SubmissionError
from elmanctl.schedulers.executor import SubmissionTooLarge
from tests.schedulers.executor_setup import ONE, Setup

REFUSED_ARRAY = "sbatch: error: Batch job submission failed: Invalid job array specification\n"


def config(limit: int, parameters: str = "(null)") -> str:
    return f"MaxArraySize            = {limit}\nSchedulerParameters     = {parameters}\n"


def test_array_limit_is_asked_for_when_an_array_is_refused_and_then_remembered(
    slurm: Setup,
) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(4))
    assert slurm.executor.tasks_per_submission == 1001
    with pytest.raises(SubmissionTooLarge, match="Invalid job array"):
        slurm.submit()
    # Nothing more is submitted until the next look.
    assert slurm.executor.tasks_per_submission == 0
    slurm.executor.poll([], [])
    assert slurm.executor.tasks_per_submission == 4
    slurm.executor.poll([], [])
    assert [call[0] for call in slurm.tools.calls] == ["sbatch", "scontrol"]


def test_array_limit_takes_the_place_of_accounting_in_one_look(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(1001, "bf_continue,max_array_tasks=3"))
    slurm.tools.answer("squeue")
    slurm.tools.answer("sacct")
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    # Two commands; of the jobs nothing is concluded.
    assert slurm.reports() == {}
    assert [call[0] for call in slurm.tools.calls[1:]] == ["squeue", "scontrol"]
    assert slurm.executor.tasks_per_submission == 3
    assert len(slurm.reports()) == 3


def test_array_that_is_refused_though_the_limit_allows_it_is_halved(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(1001))
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    slurm.executor.poll([], [])
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    assert slurm.executor.tasks_per_submission == 1
    assert slurm.tools.called("scontrol") == 1


def test_array_limit_that_cannot_be_asked_is_tried_out(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    slurm.executor.poll([], [])
    assert slurm.executor.tasks_per_submission == 1


def test_array_of_one_that_is_refused_means_that_there_are_none(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    assert slurm.executor.has_arrays
    with pytest.raises(SubmissionTooLarge):
        slurm.executor.submit(ONE, slurm.folder)
    assert (slurm.executor.has_arrays, slurm.executor.tasks_per_submission) == (False, 1)
    # A job of its own that is refused with these words is refused for good.
    with pytest.raises(SubmissionError) as raised:
        slurm.executor.submit(replace(ONE, is_array=False), slurm.folder)
    assert not isinstance(raised.value, SubmissionTooLarge)


def test_cluster_that_says_that_it_has_no_arrays_is_believed(slurm: Setup) -> None:
    slurm.tools.answer("sbatch", stderr=REFUSED_ARRAY, code=1)
    slurm.tools.answer("scontrol", config(0))
    with pytest.raises(SubmissionTooLarge):
        slurm.submit()
    slurm.executor.poll([], [])
    assert (slurm.executor.has_arrays, slurm.executor.tasks_per_submission) == (False, 1)
