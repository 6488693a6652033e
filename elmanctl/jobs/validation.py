"""Validation: the loss of the averaged weights on held-out windows, with its standard error."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elmanctl.jobs.data import HeldOutWindows
from elmanctl.jobs.device import free_cache
from elmanctl.jobs.micro_batch import MicroBatch
from elmanctl.jobs.optimizer import AdamWScheduleFree
from elmanctl.jobs.parallel import Parallel
from elmanctl.jobs.ranks import Ranks
from elmanctl.run.training import Training


class Validator:
    """Evaluates a model on held-out windows, without a trace in its training."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: AdamWScheduleFree,
        windows: HeldOutWindows,
        *,
        device: torch.device,
        micro_batch: MicroBatch,
        autocast: Callable[[], AbstractContextManager[object]],
        parallel: Parallel | None = None,
    ) -> None:
        self._parallel = parallel or Parallel(model, Training(), Ranks())
        self._model = model
        self._optimizer = optimizer
        self._windows = windows
        self._device = device
        self._micro_batch = micro_batch
        self._autocast = autocast

    def validate(self, step: int = 0) -> tuple[float, float | None]:
        """Return the mean loss in nats per byte, and its standard error over documents.

        Weights, optimizer and generators are the same afterwards, bit for bit.  Windows for which
        memory runs out are tried again, fewer at once; `step` is noted with that.
        """
        total, ranks = len(self._windows.rows), self._parallel.ranks
        # Every rank makes as many forward passes, for which torch may put weights together.
        share = -(-total // ranks.count)
        own = np.minimum(np.arange(share) * ranks.count + ranks.rank, total - 1)
        nats: list[float] = []
        averaged = averaged_weights(self._model, self._optimizer, self._parallel)
        with averaged, torch.no_grad():
            while len(nats) < share:
                nats += self._next_nats(own[len(nats) :], step)
        mine = len(range(ranks.rank, total, ranks.count))
        return mean_and_error(ranks.interleaved(nats[:mine], total), self._windows)

    def _next_nats(self, numbers: npt.NDArray[np.int64], step: int) -> list[float]:
        """Return the nats of as many of the numbered windows, from the first, as fit in memory."""
        while True:
            part = numbers[: self._micro_batch.validation_rows]
            try:
                nats: list[float] = self._window_nats(part).tolist()
            except Exception as exc:
                is_alone = self._parallel.ranks.count == 1
                if not is_alone or not self._micro_batch.shrink_validation(exc, self._device, step):
                    raise
            else:
                return nats
            free_cache(self._device)

    def _window_nats(self, part: npt.NDArray[np.int64]) -> Tensor:
        rows = torch.from_numpy(self._windows.rows[part]).to(self._device).long()
        scored = torch.from_numpy(self._windows.scored[part]).to(self._device)
        with self._autocast():
            logits, _ = self._model(rows[:, :-1])
        targets = rows[:, 1:]
        nats = F.cross_entropy(logits.float().mT, targets, reduction="none")
        is_scored = torch.arange(targets.shape[1], device=self._device) < scored[:, None]
        return torch.where(is_scored, nats, 0.0).double().sum(1)


def mean_and_error(nats: list[float], windows: HeldOutWindows) -> tuple[float, float | None]:
    """Return the mean nats per byte, and its standard error with documents as the sample.

    `nats` are the sums over each window.  The mean is a ratio of two sums over documents, so its
    error is that of a ratio (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    by_document = {number: [0.0, 0.0] for number in windows.document.tolist()}
    for number, value, scored in zip(
        windows.document.tolist(), nats, windows.scored.tolist(), strict=True
    ):
        by_document[number][0] += value
        by_document[number][1] += scored
    totals = np.array(list(by_document.values()))
    size = math.fsum(totals[:, 1])
    mean = math.fsum(totals[:, 0]) / size
    count = len(totals)
    if count < 2:
        return mean, None
    squares = math.fsum((totals[:, 0] - mean * totals[:, 1]) ** 2)
    return mean, math.sqrt(squares * count / (count - 1)) / size


@contextmanager
def averaged_weights(
    model: nn.Module, optimizer: AdamWScheduleFree, parallel: Parallel | None = None
) -> Iterator[None]:
    """Give a model the averaged weights of schedule-free AdamW inside the context.

    schedule-free computes the one from the other in place, which loses bits, so the weights that
    are trained are kept aside.  Gradients are dropped first, which frees as much memory.
    """
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    trained = [p.detach().clone() for p in parameters]
    optimizer.eval()
    model.eval()
    if parallel is not None:
        parallel.average(parameters)
    try:
        yield
    finally:
        if parallel is not None:
            parallel.forget()
        model.train()
        optimizer.train()
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)


def is_due(step: int, every: int) -> bool:
    """Return whether to validate after a step: every so many, or at 64 and each power of two."""
    if every:
        return step % every == 0
    return step >= 64 and step & (step - 1) == 0
