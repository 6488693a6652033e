"""Sampling of text from a language model, byte by byte, by the states of its layers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elmanctl.constants import VOCABULARY

# A longer text is read in pieces: one pass over it needs memory for each of its bytes, and those of
# attention for the square of their number.
PIECE_BYTES = 4096


class Reader:
    """A model that reads bytes one after the other; reading a byte again is never needed.

    `state` is that of the layers behind `n_read` bytes, and `logits`, float32 [256], are those of
    the next byte.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self.state: list[Any] | None = None
        self.logits = torch.zeros(VOCABULARY)
        self.n_read = 0

    def read(self, data: bytes) -> Tensor:
        """Read bytes, and return the logits, float32 [len(data), 256], behind each of them."""
        tokens = torch.tensor(list(data), device=self._device)[None]
        parts = []
        with torch.no_grad():
            for piece in tokens.split(PIECE_BYTES, dim=1):
                logits, self.state = self._model(piece, self.state)
                parts.append(logits[0])
        self.n_read += len(data)
        self.logits = parts[-1][-1]
        return torch.cat(parts)

    def fork(self) -> "Reader":
        """Return a reader that goes on from here by itself."""
        other = Reader(self._model)
        other.state, other.logits, other.n_read = self.state, self.logits, self.n_read
        return other


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The rule by which the next byte is chosen.

    Each byte has the probability softmax(logits / `temperature`) among the `top_k` most likely
    ones, 0 elsewhere.  A temperature of 0 takes the most likely byte.
    """

    temperature: float = 1.0
    top_k: int = VOCABULARY

    def choose(self, logits: Tensor, uniform: float) -> int:
        """Return a byte for logits [256] and a number that is uniform in [0, 1)."""
        if self.temperature == 0:
            return int(logits.argmax())
        # On the CPU, so that every device chooses alike from the same logits.
        values, order = logits.cpu().double().sort(descending=True, stable=True)
        values, order = values[: self.top_k], order[: self.top_k]
        # The largest becomes 0 first: dividing by a tiny temperature must not overflow.
        cumulative = ((values - values[0]) / self.temperature).softmax(0).cumsum(0)
        place = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
        return int(order[min(int(place), len(order) - 1)])


def log_probabilities(logits: Tensor, data: bytes) -> list[float]:
    """Return the log-probability in nats of each byte, for the logits [len(data), 256] before it.

    It is that of the model, whatever the choice.
    """
    chosen = torch.tensor(list(data), device=logits.device)[:, None]
    found: list[float] = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
    return found


def generate(reader: Reader, choice: Choice, *, seed: int) -> Iterator[tuple[int, float]]:
    """Yield without end the next byte and its log-probability in nats, and read it.

    The reader moves on; equal seeds give equal bytes where the logits are equal.
    """
    # Python promises the sequence of `random()`; torch does not promise that of its own draws.
    generator = random.Random(seed)
    while True:
        byte = choice.choose(reader.logits, generator.random())
        data = bytes([byte])
        yield byte, log_probabilities(reader.logits[None], data)[0]
        reader.read(data)
