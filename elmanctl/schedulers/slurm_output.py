"""Output of squeue, sacct and scontrol, and its parsing into one row per job."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from elmanctl.schedulers.executor import JobReport, JobState

# Every state of squeue(1) and sacct(1), and the flags that newer versions show as states.
_ENDED = (
    # Slurm requeues a job after a failed launch only if that is allowed, and ours are not.
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
_RUNNING = (
    *("COMPLETING", "EXPEDITING", "POWER_UP_NODE", "RECONFIG_FAIL", "RESIZING", "RUNNING"),
    *("SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED", "UPDATE_DB"),
)
_PENDING = (
    *("CONFIGURING", "PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"),
    "SPECIAL_EXIT",
)
STATES = {
    **dict.fromkeys(_ENDED, JobState.ENDED),
    **dict.fromkeys(_RUNNING, JobState.RUNNING),
    **dict.fromkeys(_PENDING, JobState.PENDING),
}

_GPUS = re.compile(r"\bgpu(?::[^:,()]+)?:(\d+)")

# `isdigit` is true for digits that `int` does not accept.
_NUMBER = re.compile(r"[0-9]{1,10}")

# sbatch refuses a request that no node can meet, but leaves a record under its name.
_REFUSED = "BadConstraints"
_NO_NODE = "None assigned"

# Each field is cut at its width; the bar after it is the separator.
_SQUEUE_FIELDS = (
    *("JobArrayID:64", "State:32", "Reason:160", "NodeList:256", "ArrayJobID:32"),
    *("exit_code:24", "derivedec:24", "Name:512"),
)
SQUEUE_FORMAT = ",".join(f"{field}|" for field in _SQUEUE_FIELDS)
SACCT_FIELDS = "JobID,State,ExitCode,DerivedExitCode,NodeList,Reason,JobName"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job in the output of squeue or sacct, which list an array task by task.

    `hides_step`: the job failed, and the step that made it fail is not reported.
    """

    job_id: str
    array_id: str
    name: str
    report: JobReport
    hides_step: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether this is the record of a request that sbatch refused: no job at all."""
        never_placed = self.report.node is None
        refused = self.report.raw == "FAILED" and never_placed
        return self.report.reason == _REFUSED or refused


def job_state(raw: str) -> JobState:
    """Return the state that a Slurm state means for the loop; an unknown one counts as alive."""
    name = raw.split()[0].rstrip("+") if raw.split() else ""
    return STATES.get(name, JobState.RUNNING)


def split_rows(text: str, width: int) -> Iterator[list[str]]:
    """Yield the fields of each line that has so many; the last one may hold bars of its own."""
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", width - 1)]
        if len(fields) == width:
            yield fields


def parse_squeue(text: str) -> list[JobRow]:
    """Parse the output of `squeue -r -h -t all` in our format."""
    rows = []
    for job_id, raw, reason, nodes, array_id, own, derived, name in split_rows(text, 8):
        state = job_state(raw)
        code, signal = _exit(own) if state is JobState.ENDED else (None, None)
        if state is JobState.ENDED:
            # The job's own code is srun's; only the step's shows that a signal ended the worker.
            signal = signal or _exit(derived)[1]
        report = JobReport(
            state=state,
            raw=raw,
            reason=None if reason in ("", "None") else reason,
            node=nodes or None,
            exit_code=code,
            signal=signal,
        )
        rows.append(
            JobRow(
                job_id=job_id,
                array_id=array_id,
                name=name.removesuffix("|").rstrip(),
                report=report,
                hides_step=raw == "FAILED" and signal is None and _exit(derived)[0] in (None, 0),
            )
        )
    return rows


def parse_sacct(text: str) -> list[JobRow]:
    """Parse the output of `sacct -X -n -P` in our fields, oldest first."""
    rows = []
    for job_id, raw, own, derived, nodes, reason, name in split_rows(text, 7):
        code, signal = _exit(own)
        report = JobReport(
            state=job_state(raw),
            raw=raw,
            reason=None if reason in ("", "None") else reason,
            node=None if nodes in ("", _NO_NODE) else nodes,
            exit_code=code,
            signal=signal or _exit(derived)[1],
        )
        array_id = job_id.partition("_")[0]
        rows += [
            JobRow(job_id=task, array_id=array_id, name=name, report=report)
            for task in expand_array(job_id)
        ]
    return rows


def count_gpus(gres: str) -> int:
    """Return the GPUs among generic resources, `gpu:a100:4(S:0-1)` or `gpu:2(IDX:0-1)` each."""
    return sum(map(int, _GPUS.findall(gres)))


def parse_array_limit(text: str) -> int | None:
    """Return the limit on the tasks of an array, from the output of `scontrol show config`."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    tasks = re.search(r"^SchedulerParameters\s*=.*\bmax_array_tasks=(\d+)", text, re.MULTILINE)
    limits = [int(match[1]) for match in (found, tasks) if match]
    return min(limits) if limits else None


def expand_array(job_id: str) -> list[str]:
    """Return the ids of the tasks that one line stands for: `7_[0-2,5%2]` is four tasks."""
    array, _, tasks = job_id.partition("_[")
    if not tasks:
        return [job_id]
    ids = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        # Slurm abbreviates long lists with dots; the tasks that it omits are not reported.
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found:
            first, last, step = (int(digits) if digits else None for digits in found.groups())
            assert first is not None
            ids += [f"{array}_{index}" for index in range(first, (last or first) + 1, step or 1)]
    return ids


def _exit(text: str) -> tuple[int | None, int | None]:
    """Parse `code:signal`, or the status of wait(2) as one number, as squeue prints it."""
    if _NUMBER.fullmatch(text):
        return int(text) >> 8, int(text) & 0x7F or None
    code, _, signal = text.partition(":")
    number = int(signal) if _NUMBER.fullmatch(signal) else 0
    return int(code) if _NUMBER.fullmatch(code) else None, number or None
