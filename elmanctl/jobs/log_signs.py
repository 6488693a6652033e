"""What single lines of a log say besides errors: losses, beginnings and ends, who is talking."""

import re
from dataclasses import dataclass
from functools import lru_cache

from elmanctl.jobs.log_rules import may_be_error

_OWN = r"(?:train(?:ing)?|avg|average|mean|total|running|smoothed|batch|step|lm|ce|nll|final|last)"
_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?(?![a-z_])|\.\d+|(?:nan|inf(?:inity)?)(?![\w-]))"
_LOSS = re.compile(
    rf"""(?ix)
    (?P<before>(?:[a-z]+[\s:(\['"-]*)?)                # the word before
    (?<![\w.])(?P<own>(?:{_OWN}[\s_/.-]+)*)loss
    (?:[_/.]{_OWN})? (?:\s\((?:{_OWN}|nats?|nll)\))?
    (?P<told>['"]?\s*[:=]\s*|\s+is\s+|\s+)['"]?(?:tensor\(|\[)?
    (?P<value>{_NUMBER})"""
)
_MEAN = re.compile(rf"(?i)^\W*\w*\W*step\b.*\bAvg\d*\s*[:=]?\s*(?P<value>{_NUMBER})")
_NOT_TRAINING = re.compile(
    r"(?i)^(val|valid|validation|eval|evaluation|test|dev|holdout|best|min|minimum|lowest|initial"
    r"|init|previous|prev|old|target|max|maximum|threshold|until|if|when|stop|auxiliary|aux)\b"
)
_CONDITION = re.compile(r"(?i)\b(if|when|whether|until|unless|case|may|might|check\w*)\b")
_OF_OTHER_DATA = re.compile(r"(?i)\b(val|valid|validation|eval|evaluation|test|holdout)\b[^|,;]*$")
_FOUND_NAN = re.compile(
    r"found (NaN|Inf) in local forward loss calculation|^Unexpected result nan "
    r"|(?i:\b(nan|inf|infinite|non-finite) (training )?loss (detected|encountered|found|at step)\b)"
)
_GRADIENT = re.compile(
    rf"(?i)\bgrad(?:ient)?(?:[_ ]norm)?['\"]?\s*[:=]?\s*['\"]?(?P<value>{_NUMBER})"
)


def read_loss(line: str) -> bool | None:
    """Return whether the training losses that a line prints are finite, None where it has none."""
    lowered = line.lower()
    if "loss" not in lowered and "avg" not in lowered:
        return None
    if _FOUND_NAN.search(line) and not _CONDITION.search(line):
        return False
    values = [found["value"] for found in _LOSS.finditer(line) if _is_of_training(line, found)]
    values += [found["value"] for found in _MEAN.finditer(line)]
    return all(_is_finite(value) for value in values) if values else None


def _is_of_training(line: str, found: re.Match[str]) -> bool:
    if _NOT_TRAINING.match(found["before"]) or _OF_OTHER_DATA.search(line[: found.start("own")]):
        return False
    # "stops if the loss is nan" tells of no loss.
    return found["told"].strip() != "is" or not _CONDITION.search(line[: found.start("told")])


def read_gradient(line: str) -> bool | None:
    """Return whether the gradient norm that a line prints is a number, None where it has none."""
    found = _GRADIENT.search(line)
    return None if found is None else "nan" not in found["value"].lower()


def _is_finite(value: str) -> bool:
    return value.lower().lstrip("+-")[:3] not in ("nan", "inf")


# Scalers that skip a step say so; the loss of such a step means nothing.
SKIPPED_STEP = re.compile(r"(?i)\boverflow\b|skipping (the |this )?(step|batch|update)")

# A kernel that refuses its sizes and returns all the same.
REFUSED_BY_KERNEL = re.compile(
    r"(?i)^(?!.*warn).*\bunsupported\s+(config(uration)?\b|(size|shape|dtype|head|dim)\w*\b|\w+\s*=)"
)

FINISHED = re.compile(
    r"(?i:^(?:(?!\bepoch\b).)*\btraining (is |has )?(complete|completed|finished|done)\b"
    r"|^(?:(?!\bepoch\b).)*\b(finished|completed|done) training\b)"
    r"|^\*\*\* Best metric|^Training time \d+:\d+:\d+"
    r"|`?Trainer\.fit`? stopped: `?max_|['\"]train_runtime['\"]|\*{3,} train metrics \*{3,}"
    r"|Job completed successfully"
    r"|^\W*DONE\b|\bFINAL\b|^\W*Final: |^LEARNING:|^RESULT\||^\W*Results? saved\b"
    r"|^\W*Throughput:\s*[\d.]"
    r"|(?i:\bfinal (\w+ ){0,3}loss\b\W*[\d.])|^\S+: loss=\S+, throughput="
)

# What starts or tells of many runs is none itself.
SEVERAL_RUNS = re.compile(
    r"^\s*\[(Eval|Trial|Run|Job) \d+\].*\b(GPU|Timeout|Skip|Worker|params)\b"
    r"|^\W*(Launching|Starting|Started|Submitting|Queueing) (?!train|run|process|worker|rank)"
    r"\S+ on (GPU|node|slot)\b"
    r"|^\s*\[GPU \d+\]:? (?!train|process|worker|rank|epoch).*\b(started|finished|launched)\b"
    r"|\bCMA-?ES\b|^\W*Generation \d+ ?(/|\()|\bTrial \d+ (finished|failed|pruned)\b"
    r"|Trial status: \d+|A new study created in|wandb: Starting wandb agent"
    r"|^\W*Models to run|^\W*To train with best|^\W*Best (config\w*|trial|hyperparameters)\b"
    r"|^\W*(Completed|Failed|Succeeded): \d+/\d+(?!\s*(step|epoch|batch|iter))\b"
    r"|^\s*\[\d+/\d+\]\s*$|\b\d+/\d+ (runs|jobs|experiments|models|configs|trials)\b"
    r"|^\s*\[(DONE|FAILED|OK)\] \S+$|^\W*\S+ FAILED \(exit"
    r"|All \d+ (jobs |experiments |runs )?(launched|submitted|done)|^\W*Done! Results in "
    r"|\b(Generated|Exploring|Sweeping|Evaluating) \d+ (config|experiment|run|trial|candidate)"
    r"|^\W*(Running|Launching|Starting|Testing) (config\w*|experiment|run|job|model|trial)s? "
    r"#?\d+ ?(/|of) ?\d+"
)

COUNTED = re.compile(r"(?i)\b(params|parameters)\b")

BEGUN = re.compile(
    r"(?i)\b(params|parameters)\b"
    r"|^\W*(model|training|starting training|using device|device|config)\b"
    r"|\b(creating|created|loading|initializing)\b.*\b(model|data|dataset|checkpoint)\b"
    r"|running training|^submitit INFO|\bCommand:.*\b(python\S*|torchrun|accelerate|deepspeed)\b"
    r"|GPU available:|\b(epoch|step|iter|iteration)\s*[:#=\[]?\s*\d+|\btok(ens)?/s\b|it/s[\],]"
)
STEP = re.compile(r"(?i)\b(step|iter|iteration|epoch)\b|it/s")

_NUMERAL = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Signs:
    """What a line says besides errors; `loss` and `gradient` are whether they are finite."""

    may_be_error: bool
    loss: bool | None
    gradient: bool | None
    finished: bool
    several_runs: bool
    refused: bool
    begun: bool
    counted: bool
    skipped_step: bool
    step: bool


def read_signs(line: str) -> Signs:
    """Return what a line says besides errors, which no number in it decides."""
    return _read_shape(_NUMERAL.sub("0", line))


# Most lines of a log differ in their numbers only.
@lru_cache(maxsize=2048)
def _read_shape(line: str) -> Signs:
    return Signs(
        may_be_error=may_be_error(line),
        loss=read_loss(line),
        gradient=read_gradient(line),
        finished=bool(FINISHED.search(line)),
        several_runs=bool(SEVERAL_RUNS.search(line)),
        refused=bool(REFUSED_BY_KERNEL.search(line)),
        begun=bool(BEGUN.search(line)),
        counted=bool(COUNTED.search(line)),
        skipped_step=bool(SKIPPED_STEP.search(line)),
        step=bool(STEP.search(line)),
    )
