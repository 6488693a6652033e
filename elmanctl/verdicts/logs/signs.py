"""Signs in a log line other than errors: losses, starts and ends, announcements of runs.

Patterns match the shape of a line, in which every numeral is a 0.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

_OWN = r"(?:train(?:ing)?|avg|average|mean|total|running|smoothed|batch|step|lm|ce|nll|final|last)"
# Terms of a loss, alone or right before the word.
_TERM = (
    r"(?:cross[_ -]?entropy|mlm|mse|mae|l1|huber|bbox|box|cls|obj|dfl|kl|ctc|rpn|mask"
    r"|recon(?:struction)?|policy|actor|critic|value|gen(?:erator)?|disc(?:riminator)?|[dg]"
    r"|contrastive|distill(?:ation)?|dpo|sft|model|global|local)"
)
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?(?![a-z_])|\.\d+|(?:nan|inf(?:inity)?)(?![\w-]))"
_LOSS = re.compile(
    rf"""(?ix)
    loss
    (?:[_/.]{_OWN})? (?:\s\((?:{_OWN}|nats?|nll)\))?
    (?P<sep>['"]?\s*[:=]\s*|\s+is\s+|\s+)['"]?(?:tensor\(|\[)?
    (?P<value>{_NUMBER})"""
)
# Measures that stand for the loss in a log that prints none.
_MEASURES = frozenset(
    {"bpb", "bpc", "bpd", "bpt", "bits", "perplexity", "ppl", "nll", "entropy", "xent", "elbo"}
)
_MEASURE = re.compile(
    rf"""(?ix)(?<![a-z])
    (?:bp[bcdt]|bits[ _/-](?:per[ _-])?(?:byte|char(?:acter)?|dim|token)|ppl|perplexity|nll|xent
      |cross[ _-]?entropy|elbo)
    (?P<sep>['"]?\s*[:=]\s*|\s+)['"]?(?:tensor\(|\[)?
    (?P<value>{_NUMBER})"""
)
_COUNT = re.compile(
    r"(?i)\b(?:step|iter|iteration|it|epoch|update|batch|round|tokens?)s?\b\W{0,6}0"
)
# The word before the loss, and which loss it is.
_BEFORE = re.compile(
    rf"(?i)(?P<before>(?:[a-z]+[\s:(\['\"-]*)?)(?<![\w.])(?P<own>(?:{_OWN}[\s_/.-]+)*(?:{_TERM}[\s_/.-]+|(?:{_OWN}|{_TERM}(?<!\b[dg])))?)$"
)
_LOOK_BACK = 40
# Of a line with more losses the first ones suffice.
_LOSSES_OF_A_LINE = 8
_MEAN = re.compile(
    rf"(?i)^\W{{0,20}}\w{{0,20}}\W{{0,20}}step\b.*\bAvg\d*\s*[:=]?\s*(?P<value>{_NUMBER})"
)
_NOT_TRAINING = re.compile(
    r"(?i)^(val|valid|validation|eval|evaluation|test|dev|holdout|best|min|minimum|lowest|initial"
    r"|init|previous|prev|old|target|max|maximum|threshold|until|if|when|stop|auxiliary|aux)\b"
)
_CONDITION = re.compile(r"(?i)\b(if|when|whether|until|unless|case|may|might|check\w*)\b")
_OTHER_DATA = re.compile(r"(?i)\b(val|valid|validation|eval|evaluation|test|holdout)\b")
_FOUND_NAN = re.compile(
    r"found (NaN|Inf) in local forward loss calculation|^Unexpected result nan "
    r"|^(\w+\.)*\w+(Error|Exception): .{0,80}\b([Nn]a[Nn]|[Ii]nf|[Nn]on-?finite) (\w+ )?loss\W*$"
    r"|Invalid loss, terminating training"
    r"|loss contains a NaN|^.{0,60}TerminateOnNan: Output .{0,400}contains NaN or Inf"
    r"|(?i:\b(nan|inf|infinite|non-finite) (training )?loss (detected|encountered|found|at step)\b"
    r"|\b(nan|inf) loss\W{1,3}(exiting|stopping|aborting|terminating)\b"
    r"|\bloss(_\w{1,20})?\b.{0,40}? (is|was|became|has become|turned|went) (nan|inf|infinite"
    r"|not finite|non-finite)\b"
    r"|\b(training|loss|model) (has )?diverged\b)"
)
_GRADIENT = re.compile(
    rf"(?i)\bgrad(?:ient)?(?:[_ ]norm)?['\"]?\s{{0,8}}[:=]?\s{{0,8}}['\"]?(?P<value>{_NUMBER})"
)


def read_loss(line: str) -> bool | None:
    """Return whether the training losses that a line prints are finite, None where it has none."""
    lowered = line.lower()
    if not any(word in lowered for word in ("loss", "avg", "diverged", "terminateonnan")):
        return None
    if _FOUND_NAN.search(line) and not (_CONDITION.search(line) or _OTHER_DATA.search(line)):
        return False
    printed = islice(_LOSS.finditer(line), _LOSSES_OF_A_LINE)
    values = [found["value"] for found in printed if _is_of_training(line, found)]
    if "avg" in lowered:
        values += [found["value"] for found in _MEAN.finditer(line)]
    return all(_is_finite(value) for value in values) if values else None


def read_measure(line: str) -> bool | None:
    """Return whether the measures that a line prints beside a count are finite, None without."""
    if not _COUNT.search(line):
        return None
    printed = islice(_MEASURE.finditer(line), _LOSSES_OF_A_LINE)
    values = [found["value"] for found in printed if _is_of_training(line, found)]
    return all(map(_is_finite, values)) if values else None


def _is_of_training(line: str, found: re.Match[str]) -> bool:
    head = line[max(0, found.start() - _LOOK_BACK) : found.start()]
    before = _BEFORE.search(head)
    if before is None or _NOT_TRAINING.match(before["before"]):
        return False
    # What the same field names counts.
    field = re.split(r"[|,;]", head[: before.start("own")])[-1]
    if _OTHER_DATA.search(field):
        return False
    # "stops if the loss is nan" reports no loss.
    return found["sep"].strip() != "is" or not _CONDITION.search(line[: found.start("sep")])


def read_gradient(line: str) -> bool | None:
    """Return whether the gradient norm that a line prints is a number, None where it has none."""
    found = _GRADIENT.search(line)
    return None if found is None else "nan" not in found["value"].lower()


def _is_finite(value: str) -> bool:
    return value.lower().lstrip("+-")[:3] not in ("nan", "inf")


@dataclass(frozen=True, slots=True)
class _Sign:
    """A pattern; every matching line holds one of the lower-case substrings `keys`."""

    keys: frozenset[str]
    pattern: re.Pattern[str]

    def is_in(self, line: str, keys: Collection[str]) -> bool:
        return not self.keys.isdisjoint(keys) and self.pattern.search(line) is not None


def _sign(keys: str, pattern: str) -> _Sign:
    return _Sign(frozenset(keys.split()), re.compile(pattern))


# By the field of `Signs` that tells whether a line has it.
_SIGNS: dict[str, _Sign] = {}


# Loss scalers announce a skipped step; its loss means nothing.
_SIGNS["skipped_step"] = _sign(
    "overflow skipping",
    r"(?i)\boverflow\b|skipping (the |this )?(step|batch|update)",
)

# A kernel rejects its sizes and returns nevertheless.
_SIGNS["refused"] = _sign(
    "unsupported",
    r"(?i)^(?!.*warn).*\bunsupported\s+(config(uration)?\b|(size|shape|dtype|head"
    r"|dim)\w*\b|\w+\s*=)",
)

_SIGNS["finished"] = _sign(
    "train best job done final learning result throughput run_",
    r"(?i:^(?:(?!\bepoch\b).)*\btraining (is |has )?(complete|completed|finished|done)\b"
    r"|^(?:(?!\bepoch\b).)*\b(finished|completed|done) training\b)"
    r"|^\*\*\* Best metric|^Training time \d+:\d+:\d+"
    r"|(?i:\b(training|train|run)_(finished|completed?|done)\b|\bend of training\b(?! step| loop)"
    r"|\bafter training is done\b)|^\W*Training Time\s{0,9}:\s{0,9}[\d.]"
    r"|`?Trainer\.fit`? stopped: `?max_|['\"]train_runtime['\"]|\*{3} train metrics \*{3}"
    r"|Job completed successfully"
    r"|^\W*DONE\b|\bFINAL\b|^\W*Final: |^LEARNING:|^RESULT\||^\W*Results? saved\b"
    r"|^\W*Throughput:\s*[\d.]"
    r"|(?i:\bfinal (\w+ ){0,3}loss\b\W*[\d.])|^\S+: loss=\S+, throughput=",
)

# Counts only if no error follows the last loss: a shell may print it, too.
_SIGNS["ended_well"] = _sign(
    "done exits early improve max_update total final finished engine took completed process",
    r"(?i:^\W{0,20}(all )?done\W*$|\bexits successfully\b|\btotal training time\W"
    r"|^\W{0,20}(\[?epoch\W{0,3}\d+\W{1,3})?early[ -]?stopping"
    r"(\W*$|\W{1,3}(triggered|at|after|on)\b)"
    r"|\bearly[ -]stopping (was )?(triggered|condition met)|\bstopp(ing|ed) (training )?early\b"
    r"|\bdid not improve in the last \d+ (records|epochs|evaluations|checks)"
    r"|\bnum_updates: \d+ >= max_update|^\W{0,20}finished\W*$"
    r"|\btrainer INFO: Engine run (complete|finished)\b|\btraining took [\d.]"
    r"|\b(finished|completed|done) (after|in) [\d,.]+ ?(steps|iterations|updates)\b"
    r"|\bprocess group destroyed\b"
    r"|\bsaved (the )?final (model|checkpoint|weights)\b)",
)

# The output of a launcher or a sweep is no run itself.
_SIGNS["several_runs"] = _sign(
    "eval trial run job launching start submitting queueing gpu cma generation study "
    "agent models train best completed failed succeeded [0/0] experiments configs "
    "trials runs jobs done [ok] launched submitted generated exploring sweeping "
    "evaluating running testing hydra folds sweep",
    r"^\s*\[(Eval|Trial|Run|Job) \d+\].*\b(GPU|Timeout|Skip|Worker|params)\b"
    r"|^\W*(Launching|Starting|Started|Submitting|Queueing) (?!train|run|process|worker|rank)"
    r"\S+ on (GPU|node|slot)\b"
    r"|^\s*\[GPU \d+\]:? (?!train|process|worker|rank|epoch).*\b(started|finished|launched)\b"
    r"|\bCMA-?ES\b|^\W*Generation \d+ ?(/|\()|\bTrial \d+ (finished|failed|pruned)\b"
    r"|Trial status: \d+|A new study created in|wandb: (Starting wandb agent|Creat(e|ing) sweep)"
    r"|\bTrial \w+_0 (started|completed|errored)|\bNumber of trials\b|\bTrial 0 Complete \["
    r"|^Search: Running Trial|^Fitting 0 folds for each of 0 candidates|\d+trial/s\b"
    r"|\[HYDRA\] .*\b[Ll]aunching 0 jobs\b|\[HYDRA\] .*\b(sweep output dir|AxSweeper)"
    r"|^\W*Models to run|^\W*To train with best|^\W*Best (config\w*|trial|hyperparameters)\b"
    r"|^\W*(Completed|Failed|Succeeded): \d+/\d+(?!\s*(step|epoch|batch|iter))\b"
    r"|^\s*\[\d+/\d+\]\s*$|\b\d+/\d+ (runs|jobs|experiments|models|configs|trials)\b"
    r"|^\s*\[(DONE|FAILED|OK)\] \S+$|^\W{0,20}\S{1,80} FAILED \(exit"
    r"|All \d+ (jobs |experiments |runs )?(launched|submitted|done)|^\W*Done! Results in "
    r"|\b(Generated|Exploring|Sweeping|Evaluating) \d+ (config|experiment|run|trial|candidate)"
    r"|^\W*(Running|Launching|Starting|Testing) (config\w*|experiment|run|job|model|trial)s? "
    r"#?\d+ ?(/|of) ?\d+",
)

# Announcements of one run of many, which `runs` compares with each other.
_SIGNS["announced"] = _sign(
    "hydra agent python torchrun srun accelerate run experiment trial seed config job sweep slurm_",
    r"\[HYDRA\]\s+#|^wandb: Agent Starting Run|^\++ |^\W{0,4}[=#*>-]{2,40}\W"
    r"|^\W{0,4}\w{3,10}\W{1,3}0(?: ?/ ?0| of 0|\W*$)|^\[\w{3,10}\W?0\] "
    r"|\bSLURM_(?:ARRAY_TASK|JOB)_?ID\W{1,3}0",
)
# Counters that restart within a run, or that each of its processes prints.
_SIGNS["parts"] = _sign(
    "epoch fold stage phase pretrain fine warm worker rank world",
    r"(?i)\b(?:epoch|fold|stage|phase|pretrain|fine-?tun|warm-?up|worker group|rank|world[ _]size)",
)
_SIGNS["counted"] = _sign("param", r"(?i)\b(params|parameters)\b")

_SIGNS["begun"] = _sign(
    "param model train device config creat load initializ submitit command gpu epoch "
    "step iter tok it/s",
    r"(?i)\b(params|parameters)\b"
    r"|^\W*(model|training|starting training|using device|device|config)\b"
    r"|\b(creating|created|loading|initializing)\b.{0,80}?\b(model|data|dataset|checkpoint)\b"
    r"|running training|^submitit INFO|\bCommand:.{0,80}?\b(python\S*|torchrun"
    r"|accelerate|deepspeed)\b"
    r"|GPU available:|\b(epoch|step|iter|iteration)\s{0,4}[:#=\[]?\s{0,4}\d+|\btok(ens)?/s\b"
    r"|it/s[\],]",
)
_SIGNS["bar"] = _sign("it/s s/it", r"it/s|s/it")
_SIGNS["step"] = _sign(
    f"step iter epoch it/s loss {' '.join(_MEASURES)}",
    r"(?i)\b(step|iter|iteration|epoch)\b|it/s|\bit\W{1,3}0",
)
# Megatron leaves out a loss that is not finite, and counts it.
_SIGNS["nan_count"] = _sign(
    "iterations steps losses batches",
    r"(?i)\b(?:nan|inf|non-?finite)[ _](?:iterations|steps|losses|batches)\W{1,6}0",
)

# Counts of steps or epochs, or a bar's: `ends` reads them.
_SIGNS["counter"] = _sign(
    "step iter epoch update it/s s/it",
    r"(?i)\b(steps?|iter|iteration|epoch|updates?|num_updates)\b\W{0,4}\d|\b0/0\b",
)
_SIGNS["bound"] = _sign(
    "max total num for",
    r"(?i)\b(max|total|num|train|training)[_ -](\w{1,20}[_ -]){0,2}"
    r"(steps|iters|iterations|updates)\b\W{1,6}\d|\bfor 0 (steps|iterations|updates)\b",
)

SIGN_KEYS = frozenset(
    {
        *("loss", "avg", "diverged", "unexpected", "grad", "terminateonnan", *_MEASURES),
        *(key for sign in _SIGNS.values() for key in sign.keys),
    }
)

_NUMERAL = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Signs:
    """The signs in a line; `loss`, `measure` and `gradient` are whether they are finite."""

    loss: bool | None
    measure: bool | None
    gradient: bool | None
    finished: bool
    ended_well: bool
    several_runs: bool
    refused: bool
    begun: bool
    counted: bool
    skipped_step: bool
    step: bool
    bar: bool
    counter: bool
    bound: bool
    nan_count: bool
    announced: bool
    parts: bool


def shape_of(line: str) -> str:
    """Return a line with every numeral as 0: most lines of a log differ only in their numbers."""
    return _NUMERAL.sub("0", line)


def read_signs(shape: str, keys: tuple[str, ...]) -> Signs:
    """Return the signs in a line of this shape; `keys` are the SIGN_KEYS that it holds."""
    return Signs(
        loss=read_loss(shape),
        measure=None if _MEASURES.isdisjoint(keys) else read_measure(shape),
        gradient=read_gradient(shape) if "grad" in keys else None,
        **{name: sign.is_in(shape, keys) for name, sign in _SIGNS.items()},
    )
