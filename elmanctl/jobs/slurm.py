"""Slurm's commands: asking, and reading what they answer.

squeue is asked first, for all of the user's jobs at once; sacct only about jobs that squeue no
longer lists.  A command that fails or answers late is `SlurmSilent`, never an empty answer.
"""

import logging
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from elmanctl.errors import EnvironmentNotReady
from elmanctl.jobs.executor import JobReport, JobState

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 60

_WAITING = {
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}

# sbatch refuses a request that no node can meet, and yet leaves a record under its name.
_REFUSED = "BadConstraints"
_NO_NODE = "None assigned"

_ACCOUNTING_OFF = "accounting storage is disabled"

_SQUEUE_FORMAT = "%i|%T|%r|%N|%F|%j"
_SACCT_FIELDS = "JobID,State,ExitCode,DerivedExitCode,NodeList,Reason"


class SlurmSilent(EnvironmentNotReady):
    """A Slurm command failed or did not answer in time."""


class AccountingOff(SlurmSilent):
    """This cluster keeps no accounting: sacct will never answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """One line of squeue; an array is listed task by task."""

    job_id: str
    array_id: str
    name: str
    report: JobReport


def job_state(raw: str) -> JobState:
    """Return what a Slurm state means for the loop; anything unheard of counts as alive."""
    name = raw.split()[0].rstrip("+") if raw.split() else ""
    if name in _ENDED:
        return JobState.ENDED
    return JobState.PENDING if name in _WAITING else JobState.RUNNING


def parse_squeue(text: str) -> list[QueueRow]:
    """Read the answer of `squeue -r -h -t all` in our format."""
    rows = []
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) != 6:
            continue
        job_id, raw, reason, nodes, array_id, name = (field.strip() for field in fields)
        report = JobReport(
            state=job_state(raw),
            raw=raw,
            reason=None if reason in ("", "None") else reason,
            node=nodes or None,
        )
        rows.append(QueueRow(job_id=job_id, array_id=array_id, name=name, report=report))
    return rows


def parse_sacct(text: str) -> dict[str, JobReport]:
    """Read the answer of `sacct -X -n -P` in our fields; the newest line of a job wins."""
    reports = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) != 6:
            continue
        job_id, raw, own, derived, nodes, reason = (field.strip() for field in fields)
        code, signal = _exit(own)
        report = JobReport(
            state=job_state(raw),
            raw=raw,
            reason=None if reason in ("", "None") else reason,
            node=None if nodes in ("", _NO_NODE) else nodes,
            exit_code=code,
            # The job's own code is srun's; only the step's tells that a signal ended the worker.
            signal=signal or _exit(derived)[1],
        )
        reports.update(dict.fromkeys(expand_array(job_id), report))
    return reports


def expand_array(job_id: str) -> list[str]:
    """Return the ids of the tasks that one line stands for: `7_[0-2,5%2]` is four of them."""
    array, _, tasks = job_id.partition("_[")
    if not tasks:
        return [job_id]
    ids = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        # Slurm cuts long lists short with dots; what it does not name it does not tell of.
        found = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if found:
            first, last, step = (int(digits) if digits else None for digits in found.groups())
            assert first is not None
            ids += [f"{array}_{index}" for index in range(first, (last or first) + 1, step or 1)]
    return ids


def _exit(text: str) -> tuple[int | None, int | None]:
    code, _, signal = text.partition(":")
    number = int(signal) if signal.isdigit() else 0
    return int(code) if code.isdigit() else None, number or None


class Slurm:
    """The Slurm commands of this machine."""

    def check(self) -> None:
        """Raise EnvironmentNotReady when Slurm is not installed or does not answer."""
        if shutil.which("sbatch") is None:
            raise EnvironmentNotReady(
                "no `sbatch` on this machine",
                hint="run on a login node, or add `--local` to run here without Slurm",
            )
        self.run(["scontrol", "ping"])

    def check_partition(self, partition: str) -> None:
        """Raise EnvironmentNotReady, naming the partitions there are, for an unknown one."""
        known = self.run(["sinfo", "-h", "-o", "%R"]).split()
        missing = [name for name in partition.split(",") if name not in known]
        if missing:
            raise EnvironmentNotReady(
                f"no partition named `{missing[0]}`",
                hint=f"partitions here: {', '.join(dict.fromkeys(known)) or 'none'}",
            )

    def queue(self) -> list[QueueRow]:
        """Return every job of this user that squeue still lists, ended ones included."""
        return parse_squeue(
            self.run(["squeue", "--me", "-r", "-h", "-t", "all", "-o", _SQUEUE_FORMAT])
        )

    def accounting(self, job_ids: Iterable[str]) -> Mapping[str, JobReport]:
        """Return what accounting knows of jobs; array tasks are asked for by their array."""
        arrays = sorted({job_id.partition("_")[0] for job_id in job_ids})
        command = ["sacct", "-X", "-n", "-P", "-o", _SACCT_FIELDS, "-j", ",".join(arrays)]
        return parse_sacct(self.run(command))

    def find_name(self, job_name: str, *, since: str) -> str | None:
        """Return the array id of the jobs of this name, from squeue and then sacct.

        On a cluster without accounting only squeue is asked.
        """
        for row in self.queue():
            if row.name == job_name and row.report.reason != _REFUSED:
                return row.array_id
        fields = ["-o", "JobID,State,NodeList"]
        command = ["sacct", "-X", "-n", "-P", "--name", job_name, "-S", since, *fields]
        try:
            answer = self.run(command)
        except AccountingOff:
            return None
        for line in answer.splitlines():
            job_id, _, rest = line.strip().partition("|")
            if job_id and rest != f"FAILED|{_NO_NODE}":
                return job_id.partition("_")[0]
        return None

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs; those that already ended are no error."""
        self.run(["scancel", "--quiet", *job_ids])

    def run(self, command: Sequence[str]) -> str:
        """Run one Slurm command and return its output.

        Raises SlurmSilent with the command's own words.
        """
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except FileNotFoundError as exc:
            raise SlurmSilent(f"no `{command[0]}` on this machine") from exc
        except OSError as exc:
            raise SlurmSilent(f"cannot run `{command[0]}`: {exc.strerror}") from exc
        except subprocess.TimeoutExpired as exc:
            raise SlurmSilent(
                f"`{command[0]}` did not answer within {COMMAND_TIMEOUT_S} s"
            ) from exc
        if done.returncode != 0:
            words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            logger.debug("%s failed: %s", command, done.stderr)
            silent = AccountingOff if _ACCOUNTING_OFF in done.stderr else SlurmSilent
            raise silent(f"`{command[0]}` failed: {words[0]}")
        return done.stdout
