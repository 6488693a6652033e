"""Replay recorded trainings under the rules of early stopping: GPU time saved, and loss it costs.

    python benchmarks/early_stopping.py CURVES.jsonl.gz [--orders N] [--slots N] [--least N]

Each line of the file is the log of a training: `path`, `label` and `text`, in which a line of the
trainer gives the loss of each tenth step.  Logs of one folder of a search that ended well are its
evaluations; all of one search had the same time.  Their training is replayed in so many orders, the
recorded one first, in slots that take the next evaluation as soon as one ends; at each look the
rule of `elmanctl.search.stopping` decides from what was known by then.  GPU time is the share of
what the whole search took.  The regret is the lowest loss of an evaluation that was not stopped
less the lowest of all, in nats; both are means over the orders of a search, and then over searches.

The middle of longer logs is cut out: there is no look where most of a window is missing, so that
what is saved is understated.  A table is of the searches of which at least half of the evaluations
have a look at 40 % of the budget, and one of all.
"""

import argparse
import gzip
import heapq
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np

from elmanctl.constants import ASHA, CURVE, LOOKS
from elmanctl.run.stopping_settings import StoppingSettings
from elmanctl.search.stopping import Curve, Seen, decide

_STEP = re.compile(r"^step\s+(\d+) \| loss (\d\S*) \|", re.MULTILINE)
_BATCH = re.compile(r"Batch size: (\d+), Chunk size: (\d+)")
_SECONDS = re.compile(r"Time-based training: ([\d.]+) minutes")

# The number of step lines that the mean of a look and the score of an evaluation need.
_LEAST_LINES = 3
_SCORED_LINES = 100
_LEAST_SHARE = 0.7

# Of a search that was recorded whole, this look is known of at least half of the evaluations.
_WHOLE_LOOK = round(0.4 * LOOKS)

# A rule: given its own curve, the others, and the looks that were judged, whether to stop.
Rule = Callable[[Curve, Sequence[Seen], int], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A recorded evaluation: steps and losses of its lines, tokens a step, and its final loss."""

    steps: Sequence[int]
    losses: Sequence[float]
    tokens_per_step: int
    loss: float

    @property
    def tokens(self) -> int:
        """The tokens of the whole training."""
        return self.steps[-1] * self.tokens_per_step

    def curve(self, tokens: float) -> Curve:
        """Return the losses at the looks of a budget of so many tokens."""
        every = self.steps[1] - self.steps[0]
        at = np.array(self.steps) * self.tokens_per_step / tokens
        losses = np.array(self.losses)
        found: list[float | None] = []
        for look in range(1, LOOKS + 1):
            end = look / LOOKS
            if end * tokens > self.tokens:
                break
            window = (at > end / 2) & (at <= end + 1e-9)
            expected = end / 2 * tokens / self.tokens_per_step / every
            is_known = window.sum() >= max(_LEAST_LINES, _LEAST_SHARE * expected)
            found.append(float(losses[window].mean()) if is_known else None)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """An evaluation as it is replayed: its curve, when its looks come, and its final loss.

    Times are shares of the time of a whole evaluation.
    """

    curve: Curve
    times: Sequence[float]
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a rule did to one search: GPU time, regret in nats, and the share that it stopped."""

    time: float
    regret: float
    stopped: float


def read_searches(path: Path, least: int) -> dict[str, list[Recorded]]:
    """Return the recorded evaluations of each search of at least so many, in order."""
    found: dict[str, list[tuple[int, Recorded]]] = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            number = re.search(r"eval_(\d+)\.log$", record["path"])
            evaluation = _recorded(record["text"]) if record["label"] == "ok" else None
            if number is not None and evaluation is not None:
                found[str(Path(record["path"]).parent)].append((int(number[1]), evaluation))
    return {
        name: [evaluation for _, evaluation in sorted(each, key=lambda pair: pair[0])]
        for name, each in sorted(found.items())
        if len(each) >= least
    }


def _recorded(text: str) -> Recorded | None:
    batch, lines = _BATCH.search(text), _STEP.findall(text)
    if batch is None or _SECONDS.search(text) is None or len(lines) < 2 * 10:
        return None
    known = {int(step): float(loss) for step, loss in lines}
    steps = sorted(known)
    losses = [known[step] for step in steps]
    return Recorded(
        steps=steps,
        losses=losses,
        tokens_per_step=int(batch[1]) * int(batch[2]),
        loss=_score(losses),
    )


def _score(losses: Sequence[float]) -> float:
    """Return the loss of an evaluation as the searches scored it, from its last step lines."""
    if len(losses) >= _SCORED_LINES:
        return fmean(losses[-_SCORED_LINES:])
    return fmean(losses[len(losses) // 2 :] if len(losses) > 10 else losses)


def trials_by_time(evaluations: Sequence[Recorded]) -> list[Trial]:
    """Return the trials of a search whose looks come at shares of the budget, which is a time."""
    times = [look / LOOKS for look in range(1, LOOKS + 1)]
    return [Trial(curve=e.curve(e.tokens), times=times, loss=e.loss) for e in evaluations]


def trials_by_tokens(evaluations: Sequence[Recorded]) -> list[Trial]:
    """Return the trials of a search whose looks come at shares of its median tokens."""
    whole = median(e.tokens for e in evaluations)
    return [
        Trial(
            curve=e.curve(whole),
            times=[look / LOOKS * whole / e.tokens for look in range(1, LOOKS + 1)],
            loss=e.loss,
        )
        for e in evaluations
    ]


def replay(trials: Sequence[Trial], order: Sequence[int], rule: Rule, slots: int) -> Outcome:
    """Train a search in an order under a rule, in so many slots."""
    waiting = list(reversed(order))
    running: list[tuple[float, int, int, float]] = []
    settled: list[Seen] = []
    looks: dict[int, int] = {}
    time, kept = 0.0, []

    def start(now: float) -> None:
        if waiting:
            trial = waiting.pop()
            looks[trial] = 0
            heapq.heappush(running, (now + _next(trials[trial], 0), len(waiting), trial, now))

    for _ in range(slots):
        start(0.0)
    while running:
        now, place, number, began = heapq.heappop(running)
        trial, look = trials[number], looks[number] + 1
        if look > _last(trial):
            time += 1.0
            kept.append(trial.loss)
            settled.append(Seen(curve=trial.curve, loss=trial.loss))
        else:
            curve = trial.curve[:look]
            alive = [Seen(curve=trials[n].curve[: looks[n]]) for n in looks if n != number]
            if rule(curve, [*settled, *alive], look - 1):
                time += now - began
                settled.append(Seen(curve=curve))
            else:
                looks[number] = look
                heapq.heappush(running, (began + _next(trial, look), place, number, began))
                continue
        del looks[number]
        start(now)
    return Outcome(
        time=time / len(trials),
        regret=min(kept) - min(trial.loss for trial in trials),
        stopped=1 - len(kept) / len(trials),
    )


def _last(trial: Trial) -> int:
    """Return the last look before the end of a trial."""
    return min(len(trial.curve), LOOKS - 1)


def _next(trial: Trial, look: int) -> float:
    """Return when the look after one comes, or the end where there is none."""
    return trial.times[look] if look < _last(trial) else 1.0


def shipped(**values: object) -> Rule:
    """Return a rule of elmanctl under settings of `[stopping]`."""
    settings = StoppingSettings(**values)  # type: ignore[arg-type]
    return lambda curve, others, judged: decide(settings, curve, others, judged=judged) is not None


def median_rung(share: float) -> Rule:
    """Return the rule that stops at one rung what is worse than the median of four or more."""
    rung = round(share * LOOKS)

    def rule(curve: Curve, others: Sequence[Seen], judged: int) -> bool:
        own = curve[-1]
        if len(curve) != rung or own is None:
            return False
        losses = [at for other in others if (at := other.at(rung)) is not None]
        return len(losses) >= 4 and own > median(losses)

    return rule


RULES: dict[str, Rule] = {
    "`curve`, chance 0.01": shipped(rule=CURVE, chance=0.01),
    "`curve`, chance 0.02": shipped(rule=CURVE, chance=0.02),
    "`curve`, chance 0.03 (default)": shipped(rule=CURVE),
    "`curve`, chance 0.05": shipped(rule=CURVE, chance=0.05),
    "`curve`, chance 0.1": shipped(rule=CURVE, chance=0.1),
    "`asha`, first 0.1, eta 3 (default)": shipped(rule=ASHA),
    "`asha`, first 0.25, eta 3": shipped(rule=ASHA, first=0.25),
    "`asha`, first 0.25, eta 2": shipped(rule=ASHA, first=0.25, eta=2.0),
    "`asha`, first 0.5, eta 2": shipped(rule=ASHA, first=0.5, eta=2.0),
    "worse than the median at 25 %": median_rung(0.25),
}


def orders_of(count: int, orders: int) -> Iterator[list[int]]:
    """Yield the recorded order and then random ones."""
    yield list(range(count))
    for seed in range(1, orders):
        yield np.random.default_rng(seed).permutation(count).tolist()


def is_whole(trials: Sequence[Trial]) -> bool:
    """Whether the logs of a search are whole enough for most looks."""
    known = [t.curve[_WHOLE_LOOK - 1] is not None for t in trials if len(t.curve) >= _WHOLE_LOOK]
    return 2 * sum(known) >= len(trials)


def table(
    searches: Sequence[Sequence[Trial]], rules: dict[str, Rule], orders: int, slots: int
) -> list[str]:
    """Return the lines of a table: a row for each rule."""
    lines = [
        "| rule | GPU time | in the recorded order | regret, nat | worst search | stopped |",
        "|---|---|---|---|---|---|",
    ]
    for name, rule in rules.items():
        found = [
            [replay(trials, order, rule, slots) for order in orders_of(len(trials), orders)]
            for trials in searches
        ]
        regrets = [fmean(o.regret for o in each) for each in found]
        lines.append(
            f"| {name} | {fmean(fmean(o.time for o in each) for each in found):.3f} "
            f"| {fmean(each[0].time for each in found):.3f} "
            f"| {fmean(regrets):.5f} | {max(regrets):.4f} "
            f"| {fmean(fmean(o.stopped for o in each) for each in found):.0%} |"
        )
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("curves", type=Path)
    parser.add_argument("--orders", type=int, default=12)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--least", type=int, default=15, help="evaluations of a search")
    args = parser.parse_args()
    searches = read_searches(args.curves, args.least)
    by_time = [trials_by_time(each) for each in searches.values()]
    by_tokens = [trials_by_tokens(each) for each in searches.values()]
    whole = [is_whole(trials) for trials in by_time]
    if not any(whole):
        sys.exit(f"{args.curves} has no search of {args.least} evaluations with whole logs")
    parts = {
        "recorded whole": whole,
        "in all": [True] * len(by_time),
    }
    for title, chosen in parts.items():
        count = sum(len(trials) for trials, use in zip(by_time, chosen, strict=True) if use)
        print(f"\n{sum(chosen)} searches {title}, {count} evaluations, {args.orders} orders:\n")
        used = [trials for trials, use in zip(by_time, chosen, strict=True) if use]
        print("\n".join(table(used, RULES, args.orders, args.slots)))
        print("\nThe same, looks at shares of the median tokens of the search:\n")
        used = [trials for trials, use in zip(by_tokens, chosen, strict=True) if use]
        print("\n".join(table(used, RULES, args.orders, args.slots)), flush=True)


if __name__ == "__main__":
    main()
