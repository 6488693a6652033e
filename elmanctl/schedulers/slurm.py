"""Slurm's commands, each with a timeout.

One squeue lists all of the user's jobs with their exit codes; one sacct, by job name, any number
that squeue no longer lists.  A command that fails or times out raises `SlurmSilent`: it is never an
empty answer.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence

from elmanctl.command import NoAnswer, run_command
from elmanctl.constants import CLUSTERS_VARIABLE
from elmanctl.errors import EnvironmentNotReady
from elmanctl.schedulers import slurm_output
from elmanctl.schedulers.sbatch_answer import Outcome, Reason, SbatchAnswer, brief, read_answer
from elmanctl.schedulers.slurm_environment import job_environment, query_environment

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 60

_NO_WORK = "#!/bin/sh\n"

# What Slurm's commands say of a job, or a step, that ended a while ago.
UNKNOWN_JOB = "Invalid job id specified"

_ACCOUNTING_OFF = "accounting storage is disabled"

# An argument of a command holds 128 KiB at most; the names left out wait for the next poll.
_NAMES_BYTES = 100_000


class SlurmSilent(EnvironmentNotReady):
    """A Slurm command failed or did not answer in time."""


class AccountingOff(SlurmSilent):
    """Accounting is disabled on this cluster: sacct will never answer."""


class Slurm:
    """The Slurm commands of this machine; each times out after `timeout_s`."""

    def __init__(self, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s

    def check(self, *, asks: bool = True) -> None:
        """Raise EnvironmentNotReady when Slurm is not installed, or with `asks` does not answer."""
        if shutil.which("sbatch") is None:
            raise EnvironmentNotReady(
                "no `sbatch` on this machine",
                hint="run on a login node, or add `--local` to run here without Slurm",
            )
        if asks:
            self.run(["scontrol", "ping"])

    def check_partition(self, partition: str) -> None:
        """Raise EnvironmentNotReady, naming the partitions there are, for an unusable one.

        Only sbatch decides: the list of sinfo may lack a partition that the user may use.
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
        """Return sbatch's answer to a script, without submitting it.

        An acceptance has no job id, but sbatch's words on when and where the job could start.  If
        sbatch does not answer, the outcome is `perhaps`.
        """
        with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
            file.write(script)
            file.flush()
            command = ["sbatch", "--test-only", *options, file.name]
            try:
                done = run_command(command, job_environment(os.environ), timeout_s=self._timeout_s)
            except (OSError, NoAnswer) as exc:
                return SbatchAnswer(outcome=Outcome.PERHAPS, reason=Reason.LOST, words=str(exc))
        if done.code == 0:
            return SbatchAnswer(outcome=Outcome.ACCEPTED, words=done.stderr.strip())
        return read_answer(done.code, done.stdout, done.stderr)

    def queue(self) -> list[slurm_output.JobRow]:
        """Return every job of this user that squeue lists, including ended ones."""
        return slurm_output.parse_squeue(
            self.run(["squeue", "--me", "-r", "-h", "-t", "all", "-O", slurm_output.SQUEUE_FORMAT])
        )

    def accounting(self, names: Iterable[str], *, since: str) -> list[slurm_output.JobRow]:
        """Return what accounting knows of jobs with these names since a local time.

        Names, because ids are reused after a cluster is reinstalled.  Raises AccountingOff where
        there is none.
        """
        command = ["sacct", *_clusters(), "-X", "-n", "-P", "-o", slurm_output.SACCT_FIELDS]
        return slurm_output.parse_sacct(
            self.run([*command, "-S", since, "--name", ",".join(names)])
        )

    def check_accounting(self) -> None:
        """Raise AccountingOff where there is none, SlurmSilent where it does not answer."""
        self.run(["sacct", *_clusters(), "-X", "-n", "-S", "now"])

    def array_limit(self) -> int | None:
        """Return the cluster's limit on the tasks of an array, None if Slurm does not show it."""
        return slurm_output.parse_array_limit(self.run(["scontrol", "show", "config"]))

    def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs and steps; those that already ended are no error."""
        self._scancel(job_ids)

    def signal(self, steps: Sequence[str], name: str) -> None:
        """Send a signal to steps, given as `job.step`; those that already ended are no error."""
        self._scancel([f"--signal={name}", *steps])

    def _scancel(self, arguments: Sequence[str]) -> None:
        try:
            self.run(["scancel", "--quiet", *arguments])
        except SlurmSilent as exc:
            # Of a step this is said when it has ended, and by Slurm 22.05 when it got the signal.
            if UNKNOWN_JOB not in exc.message:
                raise

    def job(self, job_id: str) -> str:
        """Return what scontrol shows of a job, its nodes with their shares among it."""
        return self.run(["scontrol", "show", "job", "--details", job_id])

    def host_names(self, nodes: str) -> list[str]:
        """Return the nodes that a list like `n[1-2]` stands for."""
        return self.run(["scontrol", "show", "hostnames", nodes]).split()

    def exclude(self, job_ids: Sequence[str], nodes: str) -> None:
        """Set the nodes that pending jobs exclude, in the form of sbatch's --exclude."""
        self.run(["scontrol", "update", f"JobId={','.join(job_ids)}", f"ExcNodeList={nodes}"])

    def run(self, command: Sequence[str]) -> str:
        """Run one Slurm command and return its output.

        Raises SlurmSilent with the command's own message.
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
    """Return the option for SLURM_CLUSTERS, which sacct alone of Slurm's commands ignores."""
    clusters = os.environ.get(CLUSTERS_VARIABLE)
    return [f"--clusters={clusters}"] if clusters else []


def askable(names: Iterable[str]) -> list[str]:
    """Return the names, each once and in order, that fit into one command."""
    chosen: list[str] = []
    size_bytes = 0
    for name in dict.fromkeys(names):
        size_bytes += len(name.encode()) + 1
        if size_bytes > _NAMES_BYTES:
            break
        chosen.append(name)
    return chosen
