"""The table of docs/reliability.md, from the results."""

from collections import Counter
from pathlib import Path

from campaign.record import Results, Trial, release

BEGIN = "<!-- made by benchmarks/reliability.py: begin -->"
END = "<!-- made by benchmarks/reliability.py: end -->"

# What each part did, in the order of the table; `{times}` of it.
WHAT = {
    "kills": "controller killed by SIGKILL",
    "kills-asynchronous": "controller of an asynchronous search killed by SIGKILL",
    "kills-lanes": "controller killed by SIGKILL, two attempts in each job",
    "kills-inside": "controller of a search inside an allocation killed, or that allocation ended",
    "cut": "ledger cut, at every byte, and opened",
    "cut-resume": "ledger cut anywhere, then `resume`",
    "pairs": "two controllers started at one instant, the driving one then killed",
    "paused": "controller paused, replaced and woken",
    "orphan": "controller paused before sbatch, replaced, and woken to submit",
    "slurmctld": "slurmctld stopped for 6 s and started again",
    "slurmdbd": "slurmdbd stopped for the rest of the search",
    "node": "a node's power cut while it trained",
    "preempt": "all nodes taken by a job of another partition",
    "no-accounting": "a cluster without accounting",
    "disk": "disk filled to the last byte, then freed",
}


def rewrite(page: Path, results: Results) -> None:
    """Replace what stands between the markers of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{generated(results)}\n{END}{after}", encoding="utf-8")


def generated(results: Results) -> str:
    """Return the generated part: what it was made with, and the tables."""
    about = results.about
    slurms = sorted({t.slurm for t in results.trials if t.slurm})
    known = {**about["versions"], "slurm": " and ".join(slurms) or "none"}
    versions = ", ".join(f"{name} {version}" for name, version in known.items())
    lines = [
        f"`elmanctl/` of commit {about['commit']} (tree {about['product'][:8]}), {about['date']}; "
        f"{about['machine']}; {versions}.",
        "",
        "| What was done | Where | How often | Searches | Evaluations | Lost | Trained twice "
        "| Same points | Faults | Seconds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for part in WHAT:
        for executor, slurm in (*(("slurm", slurm) for slurm in slurms), ("local", "")):
            trials = results.of(part, executor, slurm)
            if trials:
                lines.append(_row(part, trials))
    kinds: Counter[str] = Counter()
    for trial in results.trials:
        if trial.part.startswith("kills"):
            kinds.update(trial.kinds)
    if kinds:
        lines += ["", "Where the controller was when it was killed:", ""]
        lines += ["| Instant | Kills |", "| --- | ---: |"]
        lines += [f"| {kind} | {count} |" for kind, count in sorted(kinds.items())]
    for title, texts in (
        ("Faults", [(t, t.fault) for t in results.trials]),
        ("Notes", [(t, t.note) for t in results.trials]),
    ):
        listed = [
            f"- {t.part}, {_where(t)}, search {t.number}: {' '.join(text.split())}"
            for t, text in texts
            if text
        ]
        if listed:
            lines += ["", f"{title}:", "", *listed]
    return "\n".join(lines)


def _where(trial: Trial) -> str:
    """Return `Slurm 24.11`, or `one machine`."""
    if trial.executor == "local":
        return "one machine"
    return release(trial.slurm)


def _row(part: str, trials: list[Trial]) -> str:
    same = sum(trial.same for trial in trials)
    cells = [
        WHAT[part],
        _where(trials[0]),
        f"{sum(t.times for t in trials):,}",
        str(len(trials)),
        str(sum(t.evaluations for t in trials)),
        str(sum(t.lost for t in trials)),
        str(sum(t.duplicated for t in trials)),
        f"{same} of {len(trials)}",
        str(sum(bool(t.fault) for t in trials)),
        f"{sum(t.seconds for t in trials):.0f}",
    ]
    return f"| {' | '.join(cells)} |"
