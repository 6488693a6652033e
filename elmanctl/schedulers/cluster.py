"""Preview of a submission: what sbatch would answer, and the limits of the cluster.

It takes six commands at most, and stops at the first that finds no cluster or times out.  Nothing
is submitted.
"""

import logging
import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass

from elmanctl.command import NoAnswer
from elmanctl.errors import EnvironmentNotReady
from elmanctl.ledger.submissions import Resources
from elmanctl.sbatch_variables import parse_time_min
from elmanctl.schedulers.sbatch_answer import Reason, brief
from elmanctl.schedulers.slurm import Slurm, SlurmSilent
from elmanctl.schedulers.slurm_output import count_gpus, parse_array_limit, split_rows
from elmanctl.schedulers.submission import extra_options

logger = logging.getLogger(__name__)

# Slurm 26.05 prints a stray "a" after the time.
_START = re.compile(r"to start at (\S+) (?:a )?using .* in partition (\S+)")
_SINFO = "%R|%P|%a|%l|%D|%G|%c|%m|%h"
_ASSOCIATION = "account,partition,maxsubmit,grpsubmit,maxjobs,qos,defaultqos"
_QOS = "name,maxsubmitpu,grpsubmit,maxjobspu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition; CPUs, memory and GPUs are those of its largest node, no `limit_min` is None.

    One that is `exclusive` gives whole nodes only.
    """

    name: str
    is_default: bool
    is_up: bool
    limit_min: int | None
    nodes: int
    gpus: int
    cpus: int
    mem_mb: int
    is_exclusive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitLimit:
    """How many jobs a user may have in the queue at one time, and what sets the limit."""

    jobs: int
    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterAnswer:
    """The preview; `silence` is why there is none, `warnings` are obstacles to the jobs.

    `outcome` is what sbatch would answer, in its `words`, about the setting `key` if it is known.
    """

    silence: str | None = None
    name: str | None = None
    version: str | None = None
    outcome: str | None = None
    words: str | None = None
    key: str | None = None
    starts_at: str | None = None
    partitions: tuple[Partition, ...] = ()
    array_limit: int | None = None
    accounts: tuple[str, ...] = ()
    submit_limit: SubmitLimit | None = None
    warnings: tuple[str, ...] = ()


def ask_cluster(
    script: str, resources: Resources, max_jobs: int, slurm: Slurm, *, gpus: int = 0
) -> ClusterAnswer:
    """Return the preview of a first submission; a cluster that is silent raises nothing.

    `gpus` are those of one attempt.
    """
    try:
        slurm.check()
        answer = slurm.ask(script)
    except (EnvironmentNotReady, OSError) as exc:
        return ClusterAnswer(silence=str(exc))
    if answer.reason is Reason.LOST:
        return ClusterAnswer(silence=brief(answer.words))
    start = _START.search(answer.words)
    asking = _Asking(slurm)
    config = asking.answer(["scontrol", "show", "config"])
    asked = resources.partition or (start[2] if start else "")
    known = parse_partitions(asking.answer(["sinfo", "-a", "-h", "-o", _SINFO]))
    partitions = requested_partitions(known, asked)
    accounts, limit = _submit_limit(asking, resources)
    return ClusterAnswer(
        name=_value(config, "ClusterName"),
        version=_value(config, "SLURM_VERSION"),
        outcome=answer.outcome.value,
        words=brief(answer.words),
        key=answer.key,
        starts_at=start[1] if start else None,
        partitions=tuple(partitions),
        array_limit=parse_array_limit(config),
        accounts=accounts,
        submit_limit=limit,
        warnings=(
            *_unknown(asked, [one.name for one in known], "partition", "partitions here"),
            *_unknown(resources.account or "", accounts, "account", "your accounts"),
            *obstacles(partitions, resources, limit, max_jobs),
            *idle_beside(
                partitions,
                resources,
                gpus,
                is_exclusive=extra_options(resources.extra).get("exclusive") is True,
            ),
        ),
    )


class _Asking:
    """Commands that may each fail: the answers of the others are still useful."""

    def __init__(self, slurm: Slurm) -> None:
        self._slurm = slurm
        self._is_late = False

    def answer(self, command: Sequence[str]) -> str:
        """Return the output of a command, nothing after one that timed out."""
        if self._is_late:
            return ""
        try:
            return self._slurm.run(command)
        except SlurmSilent as exc:
            logger.info("%s", exc.message)
            self._is_late = isinstance(exc.__cause__, NoAnswer)
            return ""


def _value(config: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*=\s*(\S+)", config, re.MULTILINE)
    return found[1] if found else None


def parse_partitions(text: str) -> list[Partition]:
    """Read the answer of sinfo, a line for each type of node of each partition."""
    found: dict[str, Partition] = {}
    for name, marked, state, limit, nodes, gres, cpus, mem, shared in split_rows(text, 9):
        known = found.get(name)
        found[name] = Partition(
            name=name,
            is_default=marked.endswith("*"),
            is_up=state == "up",
            limit_min=parse_limit_min(limit),
            nodes=_int(nodes) + (known.nodes if known else 0),
            gpus=max(count_gpus(gres), known.gpus if known else 0),
            cpus=max(_int(cpus), known.cpus if known else 0),
            mem_mb=max(_int(mem), known.mem_mb if known else 0),
            is_exclusive=shared.startswith("EXCLUSIVE"),
        )
    return list(found.values())


def _int(text: str) -> int:
    # sinfo adds a plus if nodes differ.
    digits = text.rstrip("+")
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def parse_limit_min(text: str) -> int | None:
    """Return the minutes of a partition's time limit, None where there is none."""
    try:
        return parse_time_min(text)
    except ValueError:
        return None


def requested_partitions(partitions: Sequence[Partition], asked: str) -> list[Partition]:
    """Return the requested partitions (`a,b` are two), or else the default one."""
    names = [name for name in asked.split(",") if name]
    if names:
        return [one for one in partitions if one.name in names]
    return [one for one in partitions if one.is_default]


def _unknown(asked: str, known: Sequence[str], what: str, these: str) -> list[str]:
    """Return a warning about a requested name that is not listed, nothing without a list."""
    missing = [name for name in asked.split(",") if name and name not in known]
    if not known or not missing:
        return []
    return [f"no {what} `{', '.join(missing)}` is listed; {these}: {', '.join(known)}"]


def check_gpus_of_nodes(resources: Resources, asked: int, slurm: Slurm) -> None:
    """Raise EnvironmentNotReady if no node of the partition has the GPUs asked of each.

    Nothing is asked for a job of one task: sbatch refuses it by itself.  It is silent where the
    cluster does not say what its nodes have.
    """
    if resources.tasks == 1 or not asked:
        return
    known = parse_partitions(_Asking(slurm).answer(["sinfo", "-a", "-h", "-o", _SINFO]))
    partitions = requested_partitions(known, resources.partition or "")
    most = max((one.gpus for one in partitions), default=asked)
    if most < asked:
        raise EnvironmentNotReady(
            f"a job asks for {asked} GPUs on a node (`train.gpus` is {resources.tasks_per_node}), "
            f"and a node of {_named(partitions)} has at most {most}",
            hint=f"set `train.gpus` to {most or 1}, and `train.nodes` to more"
            if most
            else "name a partition with GPUs, or set `train.device` to cpu and `slurm.gres` to ''",
        )


def check_lanes_of_nodes(resources: Resources, gpus: int, slurm: Slurm) -> None:
    """Raise EnvironmentNotReady if no node of the partition has room for a job of several attempts.

    `gpus` are those of one attempt.  What the cluster does not say of its nodes is no limit.
    """
    if resources.per_job == 1:
        return
    known = parse_partitions(_Asking(slurm).answer(["sinfo", "-a", "-h", "-o", _SINFO]))
    partitions = requested_partitions(known, resources.partition or "")
    needs = {
        "GPUs": (gpus, max((one.gpus for one in partitions), default=0)),
        "CPUs": (resources.cpus or 1, max((one.cpus for one in partitions), default=0)),
        "GB of memory": (
            resources.mem_gb or 0,
            max((one.mem_mb for one in partitions), default=0) / 1024,
        ),
    }
    for what, (each, most) in needs.items():
        asked = each * resources.per_job
        if partitions and asked > most and (most or what == "GPUs"):
            fit = int(most // each)
            raise EnvironmentNotReady(
                f"a job asks for {asked:g} {what} (`slurm.per_job` is {resources.per_job}), and a "
                f"node of {_named(partitions)} has at most {most:g}",
                hint=f"set `slurm.per_job` to {fit}" if fit else "name another partition",
            )


def obstacles(
    partitions: Sequence[Partition], resources: Resources, limit: SubmitLimit | None, max_jobs: int
) -> list[str]:
    """Return warnings about jobs that sbatch accepts but that never start or have to wait."""
    warnings = []
    if partitions and not any(one.is_up for one in partitions):
        warnings.append(f"{_named(partitions)} is not up: jobs wait until it is")
    limits = [one.limit_min for one in partitions]
    if limits and all(each is not None and each < resources.timeout_min for each in limits):
        longest = max(each for each in limits if each is not None)
        warnings.append(
            f"jobs ask for {resources.timeout_min} min, and {_named(partitions)} allows {longest}: "
            "they would wait forever; lower the training budget or `slurm.timeout_min`"
        )
    if limit is not None and limit.jobs < max_jobs:
        warnings.append(
            f"{limit.of} allows {limit.jobs} submitted jobs at one time, fewer than "
            f"`search.max_jobs` {max_jobs}: what is beyond it is submitted later"
        )
    return warnings


def idle_beside(
    partitions: Sequence[Partition], resources: Resources, gpus: int, *, is_exclusive: bool
) -> list[str]:
    """Return a warning about GPUs of a whole node that a job pays for and does not use.

    `gpus` are those of one attempt; the job is exclusive by its own option, or by its partition.
    """
    used, held = gpus * resources.per_job, max((one.gpus for one in partitions), default=0)
    whole = is_exclusive or (bool(partitions) and all(one.is_exclusive for one in partitions))
    if not whole or not gpus or used >= held or resources.tasks > 1:
        return []
    each = "an evaluation" if resources.per_job == 1 else f"{resources.per_job} evaluations"
    return [
        f"{_named(partitions)} gives whole nodes of {held} GPUs, and a job has {each} on {used} of "
        f"them: all are paid for; `--set slurm.per_job={held // gpus}` uses them"
    ]


def _named(partitions: Sequence[Partition]) -> str:
    return f"partition {', '.join(one.name for one in partitions)}"


def _submit_limit(
    asking: _Asking, resources: Resources
) -> tuple[tuple[str, ...], SubmitLimit | None]:
    """Return the user's accounts, and the lowest limit on submitted jobs."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return (), None
    command = ["sacctmgr", "-n", "-P", "show"]
    asked = [*command, "assoc", f"user={user}", f"format={_ASSOCIATION}"]
    mine = list(split_rows(asking.answer(asked), 7))
    accounts = tuple(dict.fromkeys(row[0] for row in mine))
    if not mine:
        return (), None
    wanted = resources.account or (accounts[0] if len(accounts) == 1 else None)
    rows = [row for row in mine if row[0] == wanted and _concerns(row[1], resources.partition)]
    wanted_qos = str(resources.extra.get("qos") or "")
    names = {wanted_qos} if wanted_qos else {row[6] or row[5] for row in rows}
    qos = list(split_rows(asking.answer([*command, "qos", f"format={_QOS}"]), 4))
    found = [(f"account {row[0]}", count) for row in rows for count in row[2:4]]
    found += [(f"QOS {row[0]}", count) for row in qos if row[0] in names for count in row[1:3]]
    limits = [SubmitLimit(jobs=int(count), of=of) for of, count in found if count.isdigit()]
    return accounts, min(limits, key=lambda limit: limit.jobs, default=None)


def _concerns(partition: str, asked: str | None) -> bool:
    return not partition or not asked or partition in asked.split(",")
