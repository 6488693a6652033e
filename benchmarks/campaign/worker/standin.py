"""A training run that takes up to two seconds and whose loss is a function of its configuration.

Only the training itself is replaced: claim, heartbeat, metrics, result and exit are the product's.
Each training appends `<evaluation> <attempt> <job> start` and `... end <outcome>` to the file that
STANDIN_LOG names, which lies outside the run: what was really trained is judged by it alone.
"""

import hashlib
import json
import math
import os
import random
import signal
import time
from dataclasses import asdict, dataclass
from typing import Any

STEPS = 5

# Of the share of configurations that fail, in this order and in equal parts.
FAULTS = ("killed-once", "cuda-once", "diverged", "invalid")


@dataclass(frozen=True)
class Plan:
    """What becomes of one configuration; `fault` is one of FAULTS or None.

    `words` are its own.  Of failures in the same words, whether the second is tried again depends
    on whether the first has succeeded by then: on time, not on what was done to the search.
    """

    loss: float
    fault: str | None
    words: str


def plan(level: str, config: Any, lr: float, seed: int, share: float) -> Plan:
    """Return loss and fault of a configuration, of which `share` fail in one way or another."""
    words = json.dumps([level, dict(config), lr, seed], sort_keys=True)
    digest = hashlib.sha256(words.encode()).digest()
    first, second = (int.from_bytes(digest[i : i + 6], "big") / 2**48 for i in (0, 6))
    fault = FAULTS[int(first / share * len(FAULTS))] if first < share else None
    own = "".join(chr(ord("g") + byte % 20) for byte in digest[12:20])
    return Plan(loss=1.0 + abs(math.log10(lr) + 2.0) + second, fault=fault, words=own)


def install() -> None:
    """Replace the training of every evaluation that this process runs."""
    from elmanctl.jobs import evaluation

    assert callable(evaluation._Evaluation._train)
    evaluation._Evaluation._train = _train  # type: ignore[method-assign]


def _note(job: Any, spec: Any, what: str) -> None:
    line = f"{spec.evaluation} {spec.attempt} {job} {what}\n"
    file = os.open(os.environ["STANDIN_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def _train(self: Any, spec: Any, progress: Any, warned: Any, company: Any) -> dict[str, Any]:
    from elmanctl.errors import InvalidConfiguration
    from elmanctl.jobs.metrics import StepRecord

    job = self._worker.job_id
    lr, seed = spec.training.lr, spec.training.seed
    known = plan(spec.level, spec.config, lr, seed, float(os.environ["STANDIN_FAULTS"]))
    _note(job, spec, "start")
    progress.phase("training")
    least, most = (float(word) for word in os.environ["STANDIN_SECONDS"].split(","))
    seconds = random.uniform(least, most)
    if f"{spec.evaluation}/{spec.attempt}" == os.environ.get("STANDIN_HOG"):
        # More than the limit on its memory.
        _note(job, spec, f"has {len(b'x' * (4 << 30))} bytes")
    for step in range(1, STEPS + 1):
        time.sleep(seconds / STEPS)
        if step == 3 and spec.attempt == 1 and known.fault == "killed-once":
            _note(job, spec, "end killed")
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 3 and spec.attempt == 1 and known.fault == "cuda-once":
            _note(job, spec, "end cuda_error")
            raise RuntimeError(f"CUDA error: an illegal memory access in kernel {known.words}")
        if step == 3 and known.fault == "invalid":
            _note(job, spec, "end invalid")
            raise InvalidConfiguration("the stand-in refuses this configuration")
        loss = math.nan if known.fault == "diverged" and step == 4 else known.loss + 1 / step
        progress.step(
            StepRecord(
                step=step,
                loss=loss,
                grad_norm=1.0,
                tokens=step * spec.training.tokens_per_step,
                elapsed_s=step * seconds / STEPS,
            )
        )
        if math.isnan(loss):
            break
    outcome = _outcome(known, spec, step, seconds)
    verdict = outcome.verdict(f"{self._paths.name_in_run}/{self._paths.metrics.name}")
    result = {**self._header(verdict), **asdict(outcome), "seed": seed, "lr": lr}
    _note(job, spec, f"end {verdict.kind}")
    return result


def _outcome(known: Plan, spec: Any, step: int, seconds: float) -> Any:
    from elmanctl.jobs.outcome import Divergence, TrainOutcome

    divergence = None
    if known.fault == "diverged":
        divergence = Divergence(step=step, quantity="loss", value="nan", last_finite_loss=1.0)
    return TrainOutcome(
        divergence=divergence,
        objective=spec.training.objective,
        loss=None if divergence else known.loss,
        last100_loss=None if divergence else known.loss,
        mean_loss=None if divergence else known.loss,
        flops=0.0,
        loss_window_steps=1,
        last_loss=None if divergence else known.loss,
        steps=step - 1 if divergence else step,
        tokens=step * spec.training.tokens_per_step,
        tokens_per_s=None,
        elapsed_s=seconds,
        parameters=spec.parameters_expected,
        tokens_per_step=spec.training.tokens_per_step,
        micro_batch=spec.training.micro_batch,
        backend="stand-in",
        device="cpu",
        device_name="stand-in",
        precision="fp32",
        peak_memory_bytes=0,
    )
