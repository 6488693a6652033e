"""What `data info` and `data sample` say of a corpus is what a worker meets in it."""

import codecs
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elmanctl.cli.data import escaped
from elmanctl.jobs.data import ByteStream, held_out_windows
from elmanctl.run.corpus import describe
from elmanctl.run.split import find_split
from elmanctl.run.training import SAMPLERS
from tests.command_line import CommandLine, QuickCommandLine


@given(st.binary() | st.text().map(str.encode))
def test_escaped_bytes_move_no_cursor_and_can_be_read_back(data: bytes) -> None:
    text = escaped(data)
    assert text.isprintable()
    # The decoder of bytes literals.
    assert codecs.escape_decode(text.encode())[0] == data


def test_text_that_can_be_printed_is_left_alone() -> None:
    assert escaped("naïve 文 x\n\x1e".encode() + b"\xff\\") == "naïve 文 x\\n\\x1e\\xff\\\\"


def test_info_counts_documents_entropy_and_split(quick: QuickCommandLine, corpus: Path) -> None:
    done = quick("data", "info", str(corpus), "--set", "train.holdout=0.1", "--json")
    assert done.returncode == 0 and done.stderr == ""
    found = json.loads(done.stdout)
    data = corpus.read_bytes()
    documents = [part for part in data.split(b"\x1e") if part]
    shares = np.bincount(np.frombuffer(data, dtype=np.uint8)) / len(data)
    nats = -sum(share * math.log(share) for share in shares if share)
    assert found["documents"] == len(documents)
    assert found["size_bytes"] == found["entropy_bytes"] == len(data)
    assert found["unigram_nats"] == pytest.approx(nats)
    assert found["unigram_bits"] == pytest.approx(nats / math.log(2))
    assert 0.05 < found["held_out_documents"] / len(documents) < 0.15
    # With each held-out document goes one separator.
    separators = found["held_out_documents"]
    assert found["held_out_bytes"] + found["training_bytes"] + separators == len(data)
    assert found["fit"] is True


def test_info_of_a_protocol_without_held_out_text_counts_documents_too(
    quick: QuickCommandLine, corpus: Path
) -> None:
    done = quick("data", "info", str(corpus), "--protocol", "study-2026-01", "--json")
    found = json.loads(done.stdout)
    assert found["documents"] == sum(map(bool, corpus.read_bytes().split(b"\x1e")))
    assert (found["held_out_documents"], found["training_bytes"]) == (0, found["size_bytes"])


def test_info_says_why_a_search_would_refuse_the_corpus(quick: QuickCommandLine) -> None:
    Path("one").write_bytes(b"a document alone")
    done = quick("data", "info", "one")
    assert done.returncode == 0
    assert "documents    1\n" in done.stdout and "held out     0 documents, 0 bytes" in done.stdout
    assert "warning: only 0 of the 1 documents" in done.stderr
    assert json.loads(quick("data", "info", "one", "--json").stdout)["fit"] is False


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sample_prints_what_a_worker_reads(
    quick: QuickCommandLine, corpus: Path, sampler: str
) -> None:
    done = quick(
        *("data", "sample", str(corpus), "--sampler", sampler, "--seed", "7", "--step", "12"),
        *("--rows", "3", "--seq-len", "50", "--set", "train.batch=5", "--json"),
    )
    found = json.loads(done.stdout)
    assert (found["sampler"], found["seed"], found["step"], found["seq_len"]) == (
        sampler,
        7,
        12,
        50,
    )
    stream = ByteStream(corpus, find_split(describe(corpus), 0.02), sampler)
    rows = stream.rows(7, 12, 5, 50)[:3]
    texts = [codecs.escape_decode(window["text"].encode())[0] for window in found["windows"]]
    assert texts == [row.tobytes() for row in rows]


def test_sample_prints_what_is_held_out(quick: QuickCommandLine, corpus: Path) -> None:
    done = quick("data", "sample", str(corpus), "--held-out", "--rows", "6", "--seq-len", "40")
    split = find_split(describe(corpus), 0.02)
    windows = held_out_windows(corpus, split, count=512, seq_len=40)
    assert f"scored bytes {windows.scored_bytes}" in done.stderr
    head, *lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert head == ["WINDOW", "DOCUMENT", "SCORED", "TEXT"] and len(lines) == 6
    documents = [part for part in corpus.read_bytes().split(b"\x1e") if part]
    for number, (_, document, scored, text) in enumerate(lines):
        assert int(document) == windows.document[number]
        data = codecs.escape_decode(text.encode())[0]
        assert len(data) == int(scored) + 1
        # The first byte is the one before the window.
        assert any(data[1:] in content for content in documents)


REFUSED = {
    "missing": (("absent.bytes",), 3, "no such corpus file: ", "data pack"),
    "empty": (("empty",), 2, "/empty is empty", "data pack"),
    "folder": ((".",), 3, "no such corpus file", "data pack"),
    "sampler": (("few", "--sampler", "any"), 2, "windows, documents, stream, not `any`", None),
    "short": (("few",), 2, "shorter than one window of 513", "smaller seq_len"),
    "nothing held out": (("few", "--held-out"), 2, "/few is held out at", "holdout"),
    "many rows": (("few", "--rows", "17"), 2, "a step has 16 windows, not 17", "train.batch=17"),
    "step 0": (("few", "--step", "0"), 2, "0 is not in the range", None),
    "seed": (("few", "--held-out", "--seed", "1"), 2, "goes without", "the same for every"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sample_of_what_cannot_be_read_is_refused(quick: QuickCommandLine, case: str) -> None:
    words, code, message, hint = REFUSED[case]
    Path("empty").touch()
    Path("few").write_bytes(b"few bytes")
    done = quick("data", "sample", *words)
    assert done.returncode == code and message in done.stderr and done.stdout == ""
    assert hint is None or hint in done.stderr.partition("hint:")[2]
    assert "Traceback" not in done.stderr


def test_built_in_corpus_is_looked_at_without_torch(elmanctl: CommandLine) -> None:
    Path(elmanctl.folder / "torch.py").write_text("raise ImportError('no torch here')\n")
    for command in ("info", "sample"):
        done = elmanctl("data", command)
        assert done.returncode == 0, done.stderr
