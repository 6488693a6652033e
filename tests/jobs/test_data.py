from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.jobs.data import ByteStream, held_out_windows
from elmanctl.run.corpus import describe
from elmanctl.run.split import find_split
from elmanctl.run.training import SAMPLERS

seeds = st.integers(0, 2**63)
steps = st.integers(1, 2**40)


@pytest.fixture
def stream(tmp_path: Path) -> ByteStream:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * 8)
    return ByteStream(path)


def test_the_windows_of_a_seed_and_step_never_change(stream: ByteStream) -> None:
    rows = stream.rows(42, 7, 6, 3)
    # From Philox4x64-10 with key 42 and counter (0, 7, 0, 0), modulo 2045 places.
    words = [
        8305950373989433421,
        5644400767158196621,
        10229095922241509741,
        648384940033509112,
        3292868096912206410,
        10244182320828609022,
    ]
    starts = [word % 2045 for word in words]
    assert rows.tolist() == [[(start + i) % 256 for i in range(4)] for start in starts]
    assert rows.dtype == np.uint8


# A fixture for all examples of a test, and examples however slowly they are drawn.
ALLOWED = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@settings(suppress_health_check=ALLOWED, max_examples=50)
@given(seed=seeds, step=steps, batch=st.integers(1, 40), smaller=st.integers(1, 40))
def test_a_smaller_batch_is_the_beginning_of_a_larger_one(
    stream: ByteStream, seed: int, step: int, batch: int, smaller: int
) -> None:
    rows = stream.rows(seed, step, max(batch, smaller), 8)
    assert (stream.rows(seed, step, smaller, 8) == rows[:smaller]).all()


@settings(suppress_health_check=ALLOWED, max_examples=50)
@given(seed=seeds, step=steps)
def test_other_steps_and_seeds_read_other_windows(stream: ByteStream, seed: int, step: int) -> None:
    rows = stream.rows(seed, step, 16, 8)
    assert (rows != stream.rows(seed, step + 1, 16, 8)).any()
    assert (rows != stream.rows(seed + 1, step, 16, 8)).any()


def test_every_place_of_the_corpus_is_read_and_nothing_beyond_it(tmp_path: Path) -> None:
    path = tmp_path / "few"
    path.write_bytes(bytes([1, 2, 3, 4, 5]))
    rows = ByteStream(path).rows(0, 1, 200, 2)
    assert {tuple(row) for row in rows.tolist()} == {(1, 2, 3), (2, 3, 4), (3, 4, 5)}


def test_a_corpus_of_exactly_one_window_will_do(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"abc")
    assert ByteStream(path).rows(0, 1, 2, 2).tolist() == [[97, 98, 99]] * 2


@pytest.mark.parametrize("data", [b"", b"ab"])
def test_a_corpus_shorter_than_a_window_is_invalid(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "short"
    path.write_bytes(data)
    with pytest.raises(InvalidConfiguration, match=f"{len(data)} bytes is shorter"):
        ByteStream(path).rows(0, 1, 1, 2)


def test_a_missing_corpus_means_the_environment_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentNotReady, match="No such file"):
        ByteStream(tmp_path / "missing")


@settings(suppress_health_check=ALLOWED, max_examples=50)
@given(seed=seeds, step=steps, ranks=st.integers(1, 9), sampler=st.sampled_from(SAMPLERS))
def test_ranks_share_the_rows_of_a_step(
    corpus: Path, seed: int, step: int, ranks: int, sampler: str
) -> None:
    stream = ByteStream(corpus, find_split(describe(corpus), 0.1), sampler)
    whole = stream.rows(seed, step, 16, 8)
    shared = [stream.rows(seed, step, 16, 8, rank=r, ranks=ranks) for r in range(ranks)]
    for rank, rows in enumerate(shared):
        assert (rows == whole[rank::ranks]).all()


@settings(suppress_health_check=ALLOWED, max_examples=50)
@given(
    reads=st.lists(st.tuples(seeds, steps, st.integers(1, 9)), max_size=6),
    seed=seeds,
    step=steps,
    sampler=st.sampled_from(SAMPLERS),
)
def test_windows_do_not_depend_on_what_was_read_before(
    corpus: Path, reads: list[tuple[int, int, int]], seed: int, step: int, sampler: str
) -> None:
    split = find_split(describe(corpus), 0.1)
    stream = ByteStream(corpus, split, sampler)
    for earlier_seed, earlier_step, batch in [*reads, (seed, step + 1, 3)]:
        stream.rows(earlier_seed, earlier_step, batch, 20)
    fresh = ByteStream(corpus, split, sampler)
    assert (stream.rows(seed, step, 4, 20) == fresh.rows(seed, step, 4, 20)).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stream_has_the_bytes_that_are_not_held_out(corpus: Path, sampler: str) -> None:
    split = find_split(describe(corpus), 0.1)
    data = corpus.read_bytes()
    trained = b"".join(data[start:end] for start, end in split.trained.tolist())
    around = trained + trained
    stream = ByteStream(corpus, split, sampler)
    for step in range(1, 20):
        for row in stream.rows(3, step, 8, 40):
            assert bytes(row) in around


def test_no_held_out_document_is_in_the_training_stream(corpus: Path) -> None:
    split = find_split(describe(corpus), 0.1)
    data = corpus.read_bytes()
    trained = b"".join(data[start:end] for start, end in split.trained.tolist()).split(b"\x1e")
    held_out = {data[start:end] for start, end in split.held_out.tolist()}
    assert held_out
    assert held_out.isdisjoint(trained)


def test_windows_without_a_split_are_those_of_the_whole_corpus(corpus: Path) -> None:
    whole = find_split(describe(corpus), 0.0)
    assert (
        ByteStream(corpus, whole).rows(1, 2, 8, 30) == ByteStream(corpus).rows(1, 2, 8, 30)
    ).all()


def test_sequential_windows_are_one_pass_from_a_document_on(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    data = b"\x1e".join(b"%03d" % number * 5 for number in range(400))
    path.write_bytes(data)
    stream = ByteStream(path, sampler="stream")
    start = int(np.random.RandomState(42).randint(0, len(data) - 1000))
    first = data.index(b"\x1e", start) + 1
    read = b"".join(bytes(row) for step in range(1, 40) for row in stream.rows(42, step, 4, 49))
    assert read == (data[first:] + data)[: len(read)]
    assert len(read) > len(data) - first


@pytest.mark.parametrize("width", [8, 16, 64])
def test_document_windows_do_not_begin_with_the_end_of_a_document(
    tmp_path: Path, width: int
) -> None:
    path = tmp_path / "corpus"
    lengths = [3, 40, 7, 200, 1, 15, 90] * 20
    letters = np.random.default_rng(1).integers(97, 123, sum(lengths), dtype=np.uint8).tobytes()
    ends = np.cumsum(lengths).tolist()
    data = b"\x1e".join(letters[end - size : end] for end, size in zip(ends, lengths, strict=True))
    path.write_bytes(data)
    stream = ByteStream(path, sampler="documents")
    whole = 0
    for step in range(1, 60):
        for row in stream.rows(5, step, 8, width - 1):
            text = bytes(row)
            place = data.index(text)
            inner = text[:-1].find(b"\x1e")
            starts_document = place == 0 or data[place - 1] == 0x1E
            assert inner < 0 or starts_document or place == len(data) - width
            whole += inner < 0
    assert whole > 100


def test_held_out_windows_predict_every_byte_of_a_document_once(corpus: Path) -> None:
    split = find_split(describe(corpus), 0.1)
    windows = held_out_windows(corpus, split, count=10**6, seq_len=16)
    data = corpus.read_bytes()
    documents = [data[start:end] for start, end in split.held_out.tolist()]
    found: dict[int, bytes] = {}
    for row, scored, number in zip(windows.rows, windows.scored, windows.document, strict=True):
        context = found.get(int(number), b"\x1e")[-1:]
        assert bytes(row[:1]) == context
        found[int(number)] = found.get(int(number), b"") + bytes(row[1 : scored + 1])
        assert set(row[scored + 1 :].tolist()) <= {0x1E}
    assert [found[number] for number in range(len(documents))] == documents
    assert windows.scored_bytes == split.held_out_bytes
    assert windows.documents == len(documents)


def test_chosen_windows_are_some_of_all_and_always_the_same(corpus: Path) -> None:
    split = find_split(describe(corpus), 0.1)
    every = {bytes(row) for row in held_out_windows(corpus, split, count=10**6, seq_len=16).rows}
    some = held_out_windows(corpus, split, count=50, seq_len=16)
    again = held_out_windows(corpus, split, count=50, seq_len=16)
    assert len(some.rows) == 50
    assert {bytes(row) for row in some.rows} <= every
    assert (some.rows == again.rows).all()
    assert (np.diff(some.document) >= 0).all()
