"""Measure the share of a training step that reading its bytes takes, on this machine's CPU.

    python benchmarks/loader.py [--steps N]

For each sampler and size of a batch a tiny model trains on the built-in corpus, of which the share
of `--protocol fair` is held out.  Reading is what the training loop does before the gradients: the
places of the windows, the bytes across the gaps of held-out documents, and the array.  Both times
are medians of the CPU time of one thread over all steps, so that other work on the machine counts
for nothing; nor does waiting for a disk, and the corpus is in memory.  Larger models take longer
over a step, and read no longer for it.  Exits with 1 if reading takes 2 % of a step or more.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from elmanctl.jobs.data import ByteStream  # noqa: E402
from elmanctl.jobs.device import device_name, use_threads  # noqa: E402
from elmanctl.jobs.micro_batch import MicroBatch  # noqa: E402
from elmanctl.jobs.optimizer import make_optimizer  # noqa: E402
from elmanctl.jobs.step import Stepper  # noqa: E402
from elmanctl.models.params import count_parameters  # noqa: E402
from elmanctl.models.registry import build_model, decode_config  # noqa: E402
from elmanctl.run.corpus import describe, standard_library_corpus  # noqa: E402
from elmanctl.run.protocol import BETAS  # noqa: E402
from elmanctl.run.split import find_split  # noqa: E402
from elmanctl.run.training import SAMPLERS, Training  # noqa: E402

MOST_SHARE = 0.02

# Models of about 100,000 parameters, as those of the preset `tiny`.
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"dim": 64, "depth": 2, "n_heads": 2, "head_dim": 32},
    "mingru": {"dim": 96, "depth": 2, "expansion": 1.5},
}
SIZES = ((8, 64), (16, 512), (32, 512), (8, 2048))


def timed_ms(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call and the milliseconds of CPU time that it took."""
    began = time.process_time()
    found = call()
    return found, 1000 * (time.process_time() - began)


def step_times(
    level: str, stream: ByteStream, training: Training, steps: int
) -> Iterator[tuple[float, float]]:
    """Train and yield the milliseconds of reading and of the rest of each step."""
    model = build_model(decode_config(level, MODELS[level]), seed=1, backend="torch").train()
    optimizer = make_optimizer(model, training, BETAS)
    optimizer.train()
    stepper = Stepper(
        model,
        optimizer,
        device=torch.device("cpu"),
        precision="fp32",
        micro_batch=MicroBatch(training),
        grad_clip=training.grad_clip,
    )

    def train(rows: Any, step: int) -> None:
        stepper.gradients(rows, step)
        stepper.update()

    for step in range(1, steps + 1):
        rows, reading_ms = timed_ms(
            lambda step=step: stream.rows(  # type: ignore[misc]
                training.seed, step, training.batch, training.seq_len
            )
        )
        _, rest_ms = timed_ms(lambda rows=rows, step=step: train(rows, step))  # type: ignore[misc]
        yield reading_ms, rest_ms


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of each training")
    asked = parser.parse_args()
    use_threads(1)
    corpus = describe(standard_library_corpus())
    split = find_split(corpus, Training().holdout)
    print(
        f"{corpus.size_bytes} bytes, {len(split.held_out)} of {split.documents} documents held "
        f"out; {device_name(torch.device('cpu'))}, one thread\n"
    )
    print("| Model | Parameters | Sequences | Bytes each | Sampler | Reading | Rest | Share |")
    print("| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: |")
    good = True
    for level, (batch, seq_len), sampler in product(MODELS, SIZES, SAMPLERS):
        training = Training(steps=1, batch=batch, seq_len=seq_len, lr=1e-3)
        stream = ByteStream(corpus.path, split, sampler)
        times = list(step_times(level, stream, training, asked.steps))
        reading_ms, rest_ms = (statistics.median(each) for each in zip(*times, strict=True))
        share = reading_ms / (reading_ms + rest_ms)
        good = good and share < MOST_SHARE
        print(
            f"| {level} | {count_parameters(level, MODELS[level]):,} | {batch} | {seq_len} "
            f"| {sampler} | {reading_ms:.2f} ms | {rest_ms:.1f} ms | {share:.2%} |",
            flush=True,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
