"""The plan of a search, as text and as plain data, before anything of it is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from elmanctl.cli.costs import format_hours
from elmanctl.cli.inside import describe_inside, inside_data
from elmanctl.cli.output import counted, format_bytes, print_json, print_line, say, warn
from elmanctl.cli.rows import describe_start, describe_sweep, fate_of_infeasible
from elmanctl.codec import encode
from elmanctl.config import Resolved
from elmanctl.constants import ASHA, ASYNCHRONOUS, CURVE, STUDY
from elmanctl.errors import together
from elmanctl.ledger.spending import gpus_asked
from elmanctl.ledger.submissions import Submission, Task
from elmanctl.models.params import format_count
from elmanctl.run.corpus import corpus_name
from elmanctl.run.paths import RunPaths
from elmanctl.run.protocol import run_protocol
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.schedulers.cluster import ClusterAnswer, ask_cluster
from elmanctl.schedulers.inside_executor import InsideExecutor
from elmanctl.schedulers.slurm import Slurm
from elmanctl.search.kept_models import most_kept
from elmanctl.search.plan import SearchPlan
from elmanctl.search.reevaluation import reevaluations
from elmanctl.search.stop_rules import describe_stop_rules

# A dry run reports what it can, and does not wait a minute for each command of a dead cluster.
_QUERY_TIMEOUT_S = 10


def describe_plan(
    plan: SearchPlan, resolved: Resolved, inside: InsideExecutor | None = None
) -> str:
    """Return a few lines: the evaluations, their data and cost, and the start point.

    A line follows for each setting that comes from a variable of sbatch.
    """
    search = plan.settings.search
    budget = plan.settings.train.budget
    each = {
        "flops": f"of {budget.amount:g} FLOPs",
        "converge": f"until they improve by less than {budget.amount:g} nats",
    }.get(budget.kind, f"of {budget.amount:g} {budget.kind}")
    last = reevaluations(search)
    within = f", the last {last} of the best again" if last else ""
    top, seeds = min(search.confirm_top, plan.evaluations), search.confirm_seeds
    again = f", then the best {top} again on {counted(seeds, 'fresh seed')}" * (top * seeds > 0)
    where = "on this machine" if plan.executor == "local" else "as Slurm jobs"
    where = where if inside is None else f"in steps of allocation {inside.allocation.job_id}"
    cost = f", {plan.hours:.1f} training hours" if plan.hours else ""
    target = f" around {search.params} parameters" if search.params else ""
    rules = describe_stop_rules(search)
    rules = f"ends {rules}\n" if rules else ""
    rules += describe_stopping(plan.settings.stopping)
    if search.mode == ASYNCHRONOUS:
        rules += "asynchronous: asks a point for each evaluation that ends\n"
    refused = (
        f"\n{plan.refused_share:.0%} of the first points are infeasible (invalid, or off the "
        f"parameter budget) and {fate_of_infeasible(search.optimizer)}"
    )
    return (
        f"{plan.name}: {counted(search.generations, 'generation')} of {search.population} "
        f"{plan.model} models"
        f"{target} {where}, protocol {plan.settings.train.protocol}\n"
        f"{rules}"
        f"{plan.evaluations} evaluations {each}{within}{again}{cost}; "
        f"corpus {corpus_name(plan.corpus.path)}, "
        f"{format_count(plan.corpus.size_bytes)} bytes, unigram entropy "
        f"{plan.unigram_nats:.4f} nats\n"
        f"{_describe_cost(plan, uses_lanes=inside is None)}\n"
        f"{_describe_models(plan)}"
        f"{describe_start(plan.start_values, plan.start_source, search.seed)}"
        f"{describe_sweep(plan.space.sweep)}"
        f"{refused if plan.refused_share else ''}"
        + "".join(f"\n{line}" for line in _describe_variables(plan, resolved))
    )


def describe_stopping(stopping: StoppingSettings) -> str:
    """Describe the rule by which evaluations are stopped early, as a line; nothing if none are."""
    words = {
        CURVE: f"with a chance below {stopping.chance:.2g} to become the best",
        ASHA: f"but one in {stopping.eta:g} at each rung",
    }.get(stopping.rule)
    return (
        f"stops evaluations {words}, from {stopping.first:.0%} of their budget\n" if words else ""
    )


def describe_plans(
    plans: Sequence[SearchPlan], resolved: Resolved, inside: InsideExecutor | None = None
) -> str:
    """Return the description of one search, or of several with their cost in all."""
    described = [describe_plan(plan, resolved, inside) for plan in plans]
    if len(plans) == 1:
        return described[0]
    hours = [plan.hours for plan in plans if plan.hours is not None]
    training = f", {sum(hours):.1f} training hours" if hours else ""
    most = format_hours(sum(plan.most_gpu_hours for plan in plans))
    again = sum(plan.confirmations for plan in plans)
    confirmations = f" and {counted(again, 'confirmation')}" if again else ""
    total = (
        f"in all: {len(plans)} searches, {sum(plan.evaluations for plan in plans)} evaluations"
        f"{confirmations}{training}; at most {most} {plans[0].unit}, plus retries; they take "
        f"turns, with {counted(_at_once_in_all(plans), 'evaluation')} at a time"
    )
    return "\n\n".join((*described, total))


def _at_once_in_all(plans: Sequence[SearchPlan]) -> int:
    """Return how many evaluations of all searches may be in flight."""
    first = plans[0]
    local = first.settings.local
    slots = local.at_once(first.settings.train.gpus)
    most = slots if first.executor == "local" else first.settings.search.max_jobs
    return min(most, sum(map(_asked_at_once, plans)))


def _describe_cost(plan: SearchPlan, *, uses_lanes: bool) -> str:
    """Describe the highest possible cost of a search, and how its budget limits it."""
    each = f"{plan.trainings} x {plan.resources.timeout_min} min"
    nodes = plan.resources.nodes
    each_node = f"{counted(plan.devices // nodes, 'GPU')} on each of {nodes} nodes"
    gpus = f" x {each_node if nodes > 1 else f'{plan.devices} GPUs'}" if plan.devices > 1 else ""
    most = f"at most {format_hours(plan.most_gpu_hours)} {plan.unit} ({each}{gpus}), plus retries"
    per_job, gpus_each = plan.resources.per_job, gpus_asked(plan.resources)
    if uses_lanes and per_job > 1:
        held = f" that holds {counted(per_job * gpus_each, 'GPU')}" if gpus_each else ""
        most += f", {counted(per_job, 'evaluation')} in a job{held}"
    return f"{most}; the budget {plan.stop}" if plan.stop else f"{most}; no budget set"


def _describe_models(plan: SearchPlan) -> str:
    """Describe which models are kept and what that takes, as a line; nothing if none are."""
    keep, most = plan.settings.disk.keep_models, most_kept(plan.settings)
    if not keep:
        return ""
    best = "the best" if most == 1 else f"the best {most}"
    if most > keep:
        then = "the winner" if keep == 1 else f"the best {keep}"
        best += f" until they are confirmed, then of {then}"
    models, each = ("model", "") if most == 1 else ("models", " each")
    return f"keeps the {models} of {best}, up to {format_bytes(plan.model_bytes)}{each}\n"


def warn_of_plan(plan: SearchPlan) -> None:
    """Warn of an infeasible start point, mixed backends, and failures told as losses."""
    search = plan.settings.search
    if search.failed_loss is not None:
        told = f"a failed evaluation is told to the optimizer as a loss of {search.failed_loss:g}"
        study = ", and so is a point that cannot be built, as a study did: to compare with it"
        warn(told + study * (search.optimizer == STUDY))
    if plan.mixed_backends is not None:
        warn(plan.mixed_backends)
    if plan.start_fault is not None:
        warn(
            f"the start point is infeasible: {plan.start_fault}; it is not trained, and the first "
            "generation is asked all the same"
        )


def _describe_variables(plan: SearchPlan, resolved: Resolved) -> list[str]:
    values = plan.settings.slurm.extra | {
        item.name: getattr(plan.settings.slurm, item.name) for item in fields(plan.settings.slurm)
    }
    return [
        f"{key} = {values[key.rpartition('.')[2]]}, from {name}"
        for key, name in _by_variables(plan, resolved).items()
    ]


def warn_of_variables(resolved: Resolved) -> None:
    """Warn of unused variables of sbatch; raise ConfigError for unusable ones."""
    if resolved.sbatch is not None:
        for line in resolved.sbatch.unused:
            warn(line)
        if resolved.sbatch.refused:
            raise together(resolved.sbatch.refused)


def _by_variables(plan: SearchPlan, resolved: Resolved) -> Mapping[str, str]:
    found = resolved.sbatch
    return {} if plan.executor == "local" or found is None else dict(found.origins)


def print_dry_run(
    plans: Sequence[SearchPlan],
    resolved: Resolved,
    inside: InsideExecutor | None = None,
    *,
    as_json: bool,
) -> None:
    """Print the first submission of each search and the cluster's answer; nothing is written.

    A search `inside` an allocation submits nothing: its slots are printed.

    A dry run that found out about a refusal has succeeded: it exits with 0.
    """
    first = plans[0]
    submits = first.executor != "local" and inside is None
    scripts = [_first_script(plan) if submits else None for plan in plans]
    cluster = None
    if scripts[0] is not None:
        # The scripts differ in their names alone.
        slurm = Slurm(timeout_s=_QUERY_TIMEOUT_S)
        cluster = ask_cluster(
            scripts[0],
            first.resources,
            first.settings.search.max_jobs,
            slurm,
            gpus=gpus_asked(first.resources),
        )
    if as_json:
        variables = {"by_variables": _by_variables(first, resolved)}
        found = None if cluster is None else asdict(cluster)
        searches = [
            {**plan_data(plan), "script": script}
            for plan, script in zip(plans, scripts, strict=True)
        ]
        whole = searches[0] if len(plans) == 1 else _in_all(plans, searches)
        within = {} if inside is None else {"inside": inside_data(inside)}
        print_json({**whole, **variables, **within, "cluster": found})
        return
    say(describe_plans(plans, resolved, inside))
    if cluster is not None:
        say("\n".join(describe_cluster(cluster)))
        for warning in cluster.warnings:
            warn(warning)
    for plan in plans:
        warn_of_plan(plan)
    for number, (plan, script) in enumerate(zip(plans, scripts, strict=True)):
        if number and script is not None:
            print_line()
        local = f"would run {counted(_at_once(plan), 'evaluation')} at a time in {plan.folder}"
        local = local if inside is None else f"{describe_inside(inside)}, in {plan.folder}"
        print_line(local if script is None else script)


def _in_all(plans: Sequence[SearchPlan], searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return several searches as plain data, with what they cost in all."""
    hours = [plan.hours for plan in plans if plan.hours is not None]
    return {
        "searches": searches,
        "evaluations": sum(plan.evaluations for plan in plans),
        "confirmations": sum(plan.confirmations for plan in plans),
        "at_once": _at_once_in_all(plans),
        "training_hours": sum(hours) if hours else None,
        "cost": {
            "unit": plans[0].unit,
            "most_gpu_hours": sum(plan.most_gpu_hours for plan in plans),
        },
    }


def describe_cluster(cluster: ClusterAnswer) -> list[str]:
    """Return a line for each fact about the cluster, or one that says why there is none."""
    if cluster.silence is not None:
        return [f"cluster: not queried, so nothing was checked against it: {cluster.silence}"]
    name = " ".join(part for part in ("cluster", cluster.name, cluster.version) if part)
    lines = [f"{name}: {_outcome(cluster)}"]
    for one in cluster.partitions:
        limit = f"at most {one.limit_min} min a job" if one.limit_min else "no time limit"
        node = f"{one.gpus} GPUs, {one.cpus} CPUs and {one.mem_mb} MB"
        lines.append(f"partition {one.name}: {one.nodes} nodes of up to {node}, {limit}")
    limits = [f"arrays of {cluster.array_limit} jobs"] if cluster.array_limit is not None else []
    if cluster.submit_limit is not None:
        limits.append(f"{cluster.submit_limit.jobs} submitted jobs ({cluster.submit_limit.of})")
    if limits:
        lines.append(f"limits: {', '.join(limits)}")
    if cluster.accounts:
        lines.append(f"your accounts: {', '.join(cluster.accounts)}")
    return lines


def _outcome(cluster: ClusterAnswer) -> str:
    if cluster.outcome == "accepted":
        start = f", the first could start at {cluster.starts_at}" if cluster.starts_at else ""
        return f"sbatch would accept these jobs{start}"
    if cluster.outcome == "never":
        key = f" (`{cluster.key}`)" if cluster.key else ""
        return f"sbatch would refuse these jobs: {cluster.words}{key}"
    if cluster.outcome == "not now":
        return f"sbatch would refuse these jobs for now: {cluster.words}"
    return f"sbatch did not say whether it would accept these jobs: {cluster.words}"


def plan_data(plan: SearchPlan) -> dict[str, Any]:
    """Return a plan as plain data."""
    search = plan.settings.search
    is_local = plan.executor == "local"
    return {
        "run": plan.name,
        "folder": str(plan.folder),
        "model": plan.model,
        "executor": plan.executor,
        "generations": search.generations,
        "population": search.population,
        "evaluations": plan.evaluations,
        "stop_rules": describe_stop_rules(search),
        "reevaluations": reevaluations(search),
        **({"stopping": asdict(stopping)} if (stopping := plan.settings.stopping).is_on else {}),
        "confirmations": plan.confirmations,
        "at_once": _at_once(plan) if is_local else None,
        "budget": plan.settings.train.budget.encode(),
        "protocol": run_protocol(plan.settings.train),
        "training_hours": plan.hours,
        "models": {
            "kept": plan.settings.disk.keep_models,
            "kept_until_confirmed": most_kept(plan.settings),
            "size_bytes": plan.model_bytes,
        },
        "cost": {
            "unit": plan.unit,
            "most_gpu_hours": plan.most_gpu_hours,
            "expected_gpu_hours": plan.expected_gpu_hours,
            "budgets": asdict(plan.settings.budget),
            "stop": plan.stop,
        },
        **{key: getattr(search, key) for key in ("params", "tolerance", "multiple_of")},
        "space": plan.space.encode(),
        "audit": dict(plan.effects),
        "start": {
            "point": list(plan.start),
            "values": dict(plan.start_values),
            "source": plan.start_source,
            "fault": plan.start_fault,
        },
        "optimizer_seed": search.seed,
        "sigma": search.sigma,
        "refused_share": plan.refused_share,
        "mixed_backends": plan.mixed_backends,
        "data": {
            "name": corpus_name(plan.corpus.path),
            "path": str(plan.corpus.path),
            "sha256": plan.corpus.sha256,
            "size_bytes": plan.corpus.size_bytes,
            "unigram_nats": plan.unigram_nats,
        },
        "resources": encode(plan.resources),
    }


def _at_once(plan: SearchPlan) -> int:
    slots = plan.settings.local.at_once(plan.settings.train.gpus)
    return min(slots, _asked_at_once(plan))


def _asked_at_once(plan: SearchPlan) -> int:
    """Return how many points a search asks before any of them has ended, if there are slots."""
    search = plan.settings.search
    return plan.evaluations if search.mode == ASYNCHRONOUS else search.population


def _first_script(plan: SearchPlan) -> str:
    """Return the sbatch script of the first submission, with a placeholder for its token."""
    from elmanctl.schedulers.submission import make_script

    search = plan.settings.search
    count = search.population
    if search.mode == ASYNCHRONOUS:
        count = min(search.max_jobs, plan.evaluations)
    submission = Submission(
        id="s0001",
        job_name=f"elman-{plan.name}-TOKEN-s0001",
        tasks=tuple(
            Task(index=index, evaluation=f"g000-e{index:02}", attempt=1) for index in range(count)
        ),
        resources=plan.resources,
    )
    paths = RunPaths(plan.folder)
    return make_script(submission, paths.submission("s0001"), paths.code)


def warn_of_dropped(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Warn of options of `slurm.extra` that a change drops, e.g. the one from SBATCH_QOS."""
    kept = {key.replace("_", "-") for key in after}
    dropped = [f"{k}={value}" for k, value in before.items() if k.replace("_", "-") not in kept]
    if dropped:
        warn(f"`slurm.extra` is replaced as a whole; dropped: {', '.join(dropped)}")
