"""Slurm's commands: asking, and reading what they answer.

One squeue tells of all the user's jobs, exit codes included; one sacct, by job name, of any number
that squeue no longer lists.  A command that fails or answers late is `SlurmSilent`, never an empty
answer.
"""

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elmanctl.command import NoAnswer, run_command
from elmanctl.constants import CLUSTERS_VARIABLE
from elmanctl.errors import EnvironmentNotReady
from elmanctl.schedulers.executor import JobReport, JobState
from elmanctl.schedulers.sbatch_answer import Cause, Outcome, SbatchAnswer, brief, read_answer
from elmanctl.schedulers.slurm_environment import job_environment, query_environment

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 60

_PENDING, _RUNNING, _ENDED = JobState.PENDING, JobState.RUNNING, JobState.ENDED

# Every state of squeue(1) and sacct(1), and the flags that newer versions show as states.
STATES = {
    "BOOT_FAIL": _ENDED,
    "CANCELLED": _ENDED,
    "COMPLETED": _ENDED,
    "COMPLETING": _RUNNING,
    "CONFIGURING": _PENDING,
    "DEADLINE": _ENDED,
    "EXPEDITING": _RUNNING,
    "FAILED": _ENDED,
    # Slurm puts such a job back only where it may be requeued, and ours may not.
    "LAUNCH_FAILED": _ENDED,
    "NODE_FAIL": _ENDED,
    "OUT_OF_MEMORY": _ENDED,
    "PENDING": _PENDING,
    "POWER_UP_NODE": _RUNNING,
    "PREEMPTED": _ENDED,
    "RECONFIG_FAIL": _RUNNING,
    "REQUEUED": _PENDING,
    "REQUEUE_FED": _PENDING,
    "REQUEUE_HOLD": _PENDING,
    "RESIZING": _RUNNING,
    "RESV_DEL_HOLD": _PENDING,
    "REVOKED": _ENDED,
    "RUNNING": _RUNNING,
    "SIGNALING": _RUNNING,
    "SPECIAL_EXIT": _PENDING,
    "STAGE_OUT": _RUNNING,
    "STOPPED": _RUNNING,
    "SUSPENDED": _RUNNING,
    "TIMEOUT": _ENDED,
    "UPDATE_DB": _RUNNING,
}

# `isdigit` holds for digits that `int` does not know.
_NUMBER = re.compile(r"[0-9]{1,10}")

# sbatch refuses a request that no node can meet, and yet leaves a record under its name.
_REFUSED = "BadConstraints"
_NO_NODE = "None assigned"

_NO_WORK = "#!/bin/sh\n"

_ACCOUNTING_OFF = "accounting storage is disabled"

# Each field is cut at its width; the bar that follows parts it from the next.
_SQUEUE_FIELDS = (
    *("JobArrayID:64", "State:32", "Reason:160", "NodeList:256", "ArrayJobID:32"),
    *("exit_code:24", "derivedec:24", "Name:512"),
)
_SQUEUE_FORMAT = ",".join(f"{field}|" for field in _SQUEUE_FIELDS)
_SACCT_FIELDS = "JobID,State,ExitCode,DerivedExitCode,NodeList,Reason,JobName"

# One argument of a command holds 128 KiB at most; what is left out is asked about next time.
_NAMES_BYTES = 100_000


class SlurmSilent(EnvironmentNotReady):
    """A Slurm command failed or did not answer in time."""


class AccountingOff(SlurmSilent):
    """This cluster keeps no accounting: sacct will never answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """What squeue or sacct say of one job; an array is listed task by task.

    `hides_step`: the job failed, and nothing is said of the step that made it fail.
    """

    job_id: str
    array_id: str
    name: str
    report: JobReport
    hides_step: bool = False

    @property
    def is_refusal(self) -> bool:
        """Whether this is what is left of a request that sbatch refused: no job at all."""
        never_placed = self.report.node is None
        refused = self.report.raw == "FAILED" and never_placed
        return self.report.reason == _REFUSED or refused


def job_state(raw: str) -> JobState:
    """Return what a Slurm state means for the loop; anything unheard of counts as alive."""
    name = raw.split()[0].rstrip("+") if raw.split() else ""
    return STATES.get(name, JobState.RUNNING)


def parse_squeue(text: str) -> list[JobRow]:
    """Read the answer of `squeue -r -h -t all` in our format."""
    rows = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 7)]
        if len(fields) != 8:
            continue
        job_id, raw, reason, nodes, array_id, own, derived, name = fields
        state = job_state(raw)
        code, signal = _exit(own) if state is JobState.ENDED else (None, None)
        if state is JobState.ENDED:
            # The job's own code is srun's; only the step's tells that a signal ended the worker.
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
    """Read the answer of `sacct -X -n -P` in our fields, oldest first."""
    rows = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|", 6)]
        if len(fields) != 7:
            continue
        job_id, raw, own, derived, nodes, reason, name = fields
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


def parse_array_limit(text: str) -> int | None:
    """Return how many tasks an array may have, by the answer of `scontrol show config`."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    tasks = re.search(r"^SchedulerParameters\s*=.*\bmax_array_tasks=(\d+)", text, re.MULTILINE)
    limits = [int(match[1]) for match in (found, tasks) if match]
    return min(limits) if limits else None


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
    """Read `code:signal`, or the status of wait(2) as one number, as squeue writes it."""
    if _NUMBER.fullmatch(text):
        return int(text) >> 8, int(text) & 0x7F or None
    code, _, signal = text.partition(":")
    number = int(signal) if _NUMBER.fullmatch(signal) else 0
    return int(code) if _NUMBER.fullmatch(code) else None, number or None


class Slurm:
    """The Slurm commands of this machine; each may take `timeout_s` to answer."""

    def __init__(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady when Slurm is not installed, or does not answer when asked."""
        if shutil.which("sbatch") is None:
            raise EnvironmentNotReady(
                "no `sbatch` on this machine",
                hint="run on a login node, or add `--local` to run here without Slurm",
            )
        if asks:
            self.run(["scontrol", "ping"])

    def check_partition(self, partition: str) -> None:
        """Raise EnvironmentNotReady, naming the partitions there are, for one that cannot be used.

        Only sbatch says no: what sinfo lists may lack one that the user may use.
        """
        try:
            known = self.run(["sinfo", "-a", "-h", "-o", "%R"]).split()
        except SlurmSilent as exc:
            logger.info("the partitions cannot be listed: %s", exc.message)
            known = []
        missing = [name for name in partition.split(",") if name not in known]
        if not missing:
            return
        answer = self.ask(_NO_WORK, f"--partition={partition}")
        if answer.outcome is not Outcome.NEVER or answer.key != "slurm.partition":
            return
        is_unknown = "partition name" in answer.words
        raise EnvironmentNotReady(
            f"no partition named `{missing[0]}`" if is_unknown else brief(answer.words),
            hint=f"partitions here: {', '.join(dict.fromkeys(known)) or 'none'}",
        )

    def ask(self, script: str, *options: str) -> SbatchAnswer:
        """Return what sbatch says to a script, without a job being made of it.

        An acceptance has no job's id, and sbatch's words on when and where the job could start.
        Where sbatch does not answer the outcome is `perhaps`.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
            file.write(script)
            file.flush()
            command = ["sbatch", "--test-only", *options, file.name]
            try:
                done = run_command(command, job_environment(os.environ), timeout_s=self._timeout_s)
            except (OSError, NoAnswer) as exc:
                return SbatchAnswer(outcome=Outcome.PERHAPS, cause=Cause.LOST, words=str(exc))
        if done.code == 0:
            return SbatchAnswer(outcome=Outcome.ACCEPTED, words=done.stderr.strip())
        return read_answer(done.code, done.stdout, done.stderr)

    def queue(self) -> list[JobRow]:
        """Return every job of this user that squeue still lists, ended ones included."""
        return parse_squeue(
            self.run(["squeue", "--me", "-r", "-h", "-t", "all", "-O", _SQUEUE_FORMAT])
        )

    def accounting(self, names: Iterable[str], *, since: str) -> list[JobRow]:
        """Return what accounting knows of the jobs of these names since a local time.

        Names and not ids: ids are used again after a cluster was set up anew.
        Raises AccountingOff where there is none.
        """
        command = ["sacct", *_clusters(), "-X", "-n", "-P", "-o", _SACCT_FIELDS]
        return parse_sacct(self.run([*command, "-S", since, "--name", ",".join(names)]))

    def check_accounting(self) -> None:
        """Raise AccountingOff where there is none, SlurmSilent where it does not answer."""
        self.run(["sacct", *_clusters(), "-X", "-n", "-S", "now"])

    def array_limit(self) -> int | None:
        """Return how many tasks an array may have here, None when Slurm does not say."""
        return parse_array_limit(self.run(["scontrol", "show", "config"]))

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs; those that already ended are no error."""
        self.run(["scancel", "--quiet", *job_ids])

    def exclude(self, job_ids: Sequence[str], nodes: str) -> None:
        """Let jobs that wait exclude these nodes, as sbatch's --exclude has them, and no others."""
        self.run(["scontrol", "update", f"JobId={','.join(job_ids)}", f"ExcNodeList={nodes}"])

    def run(self, command: Sequence[str]) -> str:
        """Run one Slurm command and return its output.

        Raises SlurmSilent with the command's own words.
        """
        try:
            done = run_command(command, query_environment(os.environ), timeout_s=self._timeout_s)
        except FileNotFoundError as exc:
            raise SlurmSilent(f"no `{command[0]}` on this machine") from exc
        except OSError as exc:
            raise SlurmSilent(f"cannot run `{command[0]}`: {exc.strerror}") from exc
        except NoAnswer as exc:
            raise SlurmSilent(str(exc)) from exc
        if done.code != 0:
            words = brief(done.stderr) or f"exit code {done.code}"
            logger.debug("%s failed: %s", command, done.stderr)
            silent = AccountingOff if _ACCOUNTING_OFF in done.stderr else SlurmSilent
            raise silent(f"`{command[0]}` failed: {words}")
        return done.stdout


def _clusters() -> list[str]:
    """Return the option by which sacct, which alone reads no SLURM_CLUSTERS, follows it."""
    clusters = os.environ.get(CLUSTERS_VARIABLE)
    return [f"--clusters={clusters}"] if clusters else []


def askable(names: Iterable[str]) -> list[str]:
    """Return as many names, each once and in order, as one command can be asked about."""
    chosen: list[str] = []
    size_bytes = 0
    for name in dict.fromkeys(names):
        size_bytes += len(name.encode()) + 1
        if size_bytes > _NAMES_BYTES:
            break
        chosen.append(name)
    return chosen
