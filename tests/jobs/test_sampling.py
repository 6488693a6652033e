"""Text is sampled by streaming state: what one pass over the whole text computes, once a byte."""

import math
from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elmanctl.jobs import sampling
from elmanctl.jobs.sampling import Choice, Reader, generate, log_probabilities
from elmanctl.models.registry import FAMILIES, build_model
from tests.models.samples import small_config

TEXT = b"\x1edef main() -> None:\n    \xff\x00 pass"
GREEDY = Choice(temperature=0)


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model whose logits differ enough to choose by."""
    model: Any = build_model(small_config(family), seed=3).to(dtype)
    with torch.no_grad():
        model.embedding.weight *= 20
    return model.eval()


def whole(model: Any, data: bytes) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor(list(data))[None])[0][0]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_read_one_by_one_give_the_logits_of_one_pass(family: str) -> None:
    model = model_of(family, torch.float64)
    reader = Reader(model)
    streamed = torch.cat([reader.read(bytes([byte])) for byte in TEXT])
    torch.testing.assert_close(streamed, whole(model, TEXT), rtol=1e-7, atol=1e-9)
    assert reader.n_read == len(TEXT)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_bytes_are_those_of_the_whole_text_computed_anew(family: str) -> None:
    model = model_of(family, torch.float64)
    reader = Reader(model)
    reader.read(TEXT)
    text, told = TEXT, []
    for byte, log_probability in islice(generate(reader, GREEDY, seed=0), 20):
        expected = whole(model, text)[-1]
        assert byte == int(expected.argmax())
        told.append((log_probability, expected.log_softmax(-1)[byte].item()))
        text += bytes([byte])
    assert [one for one, _ in told] == pytest.approx([other for _, other in told], abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_byte_is_read_twice_and_forks_leave_each_other_alone(family: str) -> None:
    model, widths = model_of(family), []
    model.register_forward_pre_hook(lambda _, inputs: widths.append(inputs[0].shape[1]))
    reader = Reader(model)
    reader.read(TEXT)
    texts = [
        [byte for byte, _ in islice(generate(reader.fork(), Choice(temperature=9), seed=seed), 12)]
        for seed in (1, 2, 1)
    ]
    # The last byte of a text is not read: nothing follows it.
    assert widths == [len(TEXT)] + [1] * 11 * 3
    assert texts[0] == texts[2] != texts[1]


def test_long_text_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("e88", torch.float64)
    expected = whole(model, TEXT)
    monkeypatch.setattr(sampling, "PIECE_BYTES", 7)
    reader = Reader(model)
    torch.testing.assert_close(reader.read(TEXT), expected, rtol=1e-10, atol=1e-12)


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = whole(model_of("transformer"), TEXT)
    told = log_probabilities(logits[:-1], TEXT[1:])
    for place, byte in enumerate(TEXT[1:]):
        row = logits[place].double()
        expected = (row[byte] - row.logsumexp(0)).item()
        assert told[place] == pytest.approx(expected, abs=1e-5)


LOGITS = st.lists(st.floats(-50, 50), min_size=256, max_size=256).map(
    lambda values: torch.tensor(values)
)


@given(LOGITS, st.floats(0, 1, exclude_max=True), st.floats(1e-3, 1e3), st.integers(1, 256))
@settings(max_examples=100)
def test_choice_is_among_the_most_likely(
    logits: Tensor, uniform: float, temperature: float, top_k: int
) -> None:
    byte = Choice(temperature=temperature, top_k=top_k).choose(logits, uniform)
    assert int((logits > logits[byte]).sum()) < top_k


@given(LOGITS, st.floats(0, 1, exclude_max=True))
def test_without_temperature_and_with_one_byte_to_choose_from_it_is_the_likeliest(
    logits: Tensor, uniform: float
) -> None:
    for choice in (GREEDY, Choice(top_k=1), Choice(temperature=1e-300)):
        assert logits[choice.choose(logits, uniform)] == logits.max()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_bytes_are_chosen_as_often_as_they_are_probable(temperature: float) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0] + [-math.inf] * 252)
    expected = (logits.double() / temperature).softmax(0)
    choice, n = Choice(temperature=temperature), 4000
    chosen = Counter(choice.choose(logits, (k + 0.5) / n) for k in range(n))
    for byte in range(4):
        assert chosen[byte] / n == pytest.approx(expected[byte].item(), abs=2 / n)


def test_equal_seeds_give_equal_bytes_in_every_version() -> None:
    """Pinned: neither numpy nor torch draws the numbers."""
    logits = torch.linspace(3, 0, 256)

    class Fixed(Reader):
        def read(self, data: bytes) -> Tensor:
            return logits[None]

    reader = Fixed(model_of("e88"))
    reader.logits = logits
    chosen = [byte for byte, _ in islice(generate(reader, Choice(), seed=5), 3)]
    assert chosen == [76, 103, 119]
