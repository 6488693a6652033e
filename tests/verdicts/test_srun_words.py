"""Verdicts on jobs whose srun refused its options or reached no scheduler."""

import pytest

from elmanctl.codec import decode, encode
from elmanctl.errors import LedgerCorrupt
from elmanctl.ledger.records import Cause, Confidence, Verdict, VerdictKind
from elmanctl.schedulers.executor import JobReport
from elmanctl.verdicts import classify_log
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import Observation
from elmanctl.verdicts.policy import Change, rule_of
from tests.verdicts.observed import VANISHED, ended, log

# As srun of Slurm 22.05 puts it while slurmctld is down, and as other versions do.
NO_SCHEDULER = {
    "down": (
        "srun: error: Unable to confirm allocation for job 28: "
        "Unable to contact slurm controller (connect failure)",
        "srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 28",
    ),
    "down, without `error`": ("srun: Unable to contact slurm controller",),
    "slow": (
        "srun: error: Unable to create step for job 28: Socket timed out on send/recv operation",
    ),
    "forgot the job": (
        "srun: error: Unable to confirm allocation for job 28: Invalid job id specified",
        "srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 28",
    ),
}


# As srun of several versions puts it when what it gets from options or variables does not fit.
BAD_ARGUMENTS = {
    "exclusive": (
        "srun: fatal: SLURM_MEM_PER_CPU, SLURM_MEM_PER_GPU, and SLURM_MEM_PER_NODE are mutually "
        "exclusive.",
    ),
    "started by its path": ("/opt/slurm/bin/srun: unrecognized option '--nonsense'",),
    "exclusive options": ("srun: error: --exact and --whole are mutually exclusive.",),
    "binding": (
        "srun: error: CPU binding outside of job step allocation, allocated CPUs are: 0x3.",
        "srun: error: Task launch for StepId=7.0 failed on node n1: "
        "Unable to satisfy cpu bind request",
        "srun: error: Application launch failed: Unable to satisfy cpu bind request",
        "srun: Job step aborted",
    ),
    "no option": ("srun: unrecognized option '--gpu-count=2'", 'Try "srun --help" for more'),
    "no value": ("srun: option '--mem' requires an argument",),
    "value": ("srun: error: Invalid --gpu-bind argument: nearest",),
    "specification": ("srun: error: Invalid --distribution specification",),
    "variable": ("srun: error: Invalid argument (many) for environment variable: SLURM_WAIT",),
    "two variables": (
        "srun: fatal: cpus-per-task set by two different environment variables "
        "SLURM_CPUS_PER_TASK=2 != SLURM_TRES_PER_TASK=cpu:1",
    ),
    "devices": (
        "srun: error: Unable to create step for job 7: Invalid generic resource (gres) "
        "specification",
    ),
    "memory": (
        "srun: error: Unable to create step for job 7: Memory required by task is not available",
    ),
    "processors": (
        "srun: error: Unable to create step for job 7: More processors requested than permitted",
    ),
    "allocation": (
        "srun: error: Unable to allocate resources: Invalid Trackable RESource (TRES) "
        "specification",
    ),
    "nodes": ("srun: error: Only allocated 1 nodes asked for 2",),
    "number": ('srun: error: Invalid numeric value "two" for --ntasks.',),
    "mpi": ("srun: error: Invalid MPI type 'openmpi', --mpi=list for acceptable types",),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
@pytest.mark.parametrize("report", [ended("FAILED", 1), VANISHED])
def test_srun_that_refuses_its_own_options_is_no_fault_of_the_node(
    name: str, report: JobReport
) -> None:
    lines = BAD_ARGUMENTS[name]
    verdict = judge(Observation(report=report, log=log(*lines)))
    assert (verdict.kind, verdict.cause) == (VerdictKind.ENVIRONMENT, Cause.ARGUMENTS)
    assert verdict.summary in lines
    assert rule_of(verdict).change is Change.NONE
    assert "slurm.setup" in verdict.evidence[-1].text
    assert decode(Verdict, encode(verdict), "verdict", LedgerCorrupt) == verdict
    assert classify_log("\n".join(lines)).cause is Cause.ARGUMENTS


@pytest.mark.parametrize(
    "line",
    [
        "srun: error: Unable to create step for job 7: Job credential revoked",
        "srun: error: task 0 launch failed: Error configuring interconnect",
        "srun: error: n1: task 0: Exited with exit code 1",
        "srun: error: Unable to confirm allocation for job 28: Invalid job id specified",
        "srun: fatal: Can not execute python3",
        'srun: error: Unable to resolve "n7": Unknown host',
    ],
)
def test_other_words_of_srun_do_not_speak_of_its_options(line: str) -> None:
    verdict = judge(Observation(report=ended("FAILED", 1), log=log(line)))
    assert verdict.cause is not Cause.ARGUMENTS


@pytest.mark.parametrize("name", NO_SCHEDULER)
@pytest.mark.parametrize("report", [ended("FAILED", 1), VANISHED])
def test_scheduler_that_did_not_answer_its_job_is_no_fault_of_the_node(
    name: str, report: JobReport
) -> None:
    verdict = judge(Observation(report=report, log=log(*NO_SCHEDULER[name])))
    assert (verdict.kind, verdict.cause) == (VerdictKind.ENVIRONMENT, Cause.SCHEDULER)
    assert verdict.confidence is Confidence.LIKELY
    # What srun advises after it says nothing of why.
    assert verdict.summary == NO_SCHEDULER[name][0]
    assert decode(Verdict, encode(verdict), "verdict", LedgerCorrupt) == verdict


@pytest.mark.parametrize(
    "line",
    [
        "srun: error: Unable to create step for job 28: Invalid generic resource (gres) specified",
        "srun: fatal: Could not establish a configuration source",
        "bash: line 3: module: command not found",
    ],
)
def test_what_a_node_lacks_is_not_taken_for_an_outage(line: str) -> None:
    verdict = judge(Observation(report=ended("FAILED", 1), log=log(line)))
    assert (verdict.kind, verdict.cause) == (VerdictKind.ENVIRONMENT, None)
