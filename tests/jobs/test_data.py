from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.jobs.data import ByteStream

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
