"""The corpus stands beside every loss, and the built-in one is named after its Python."""

import csv
import io
import json
import platform
from pathlib import Path

import pytest

from elmanctl.cli.search_summary import print_summary
from elmanctl.run import corpus as corpora
from elmanctl.search.session import Session
from tests.command_line import QuickCommandLine

NAME = f"standard-library-{platform.python_version()}.bytes"
TINY = ("dim=16", "depth=1", "n_heads=2", "n_state=8", "--preset", "tiny", "--train-steps", "2")


def test_corpus_of_a_run_stands_wherever_its_losses_do(quick_with_runs: QuickCommandLine) -> None:
    quick = quick_with_runs
    sha256 = json.loads(quick("status", "finished", "--json").stdout)["run"]["corpus_sha256"]
    line = f"corpus.bytes, sha256 {sha256[:12]}, unigram entropy "
    assert line in quick("status", "finished").stderr
    assert f"  corpus      {line}" in quick("show", "finished", "best").stdout
    (head, *rows) = quick("status").stdout.splitlines()
    place = head.split("\t").index("CORPUS")
    assert {row.split("\t")[place] for row in rows} == {"corpus.bytes"}
    for words in (("show", "finished", "best"), ("ledger", "export", "finished")):
        told = json.loads(quick(*words, *(["--json"] if words[0] == "show" else [])).stdout)
        assert told["corpus"] == "corpus.bytes"
    table = csv.DictReader(io.StringIO(quick("ledger", "export", "finished", "--csv").stdout))
    assert {row["corpus"] for row in table} == {"corpus.bytes"}
    assert json.loads(quick("status", "--json").stdout)["runs"][0]["corpus"] == "corpus.bytes"


def test_corpus_stands_in_the_summary_of_a_search(
    quick_with_runs: QuickCommandLine, capsys: pytest.CaptureFixture[str]
) -> None:
    with Session.open(quick_with_runs.folder / "runs" / "finished") as session:
        print_summary(session.paths, session.state)
    assert "\n  corpus     corpus.bytes, sha256 " in capsys.readouterr().out


@pytest.mark.torch
def test_built_in_corpus_is_named_after_its_python_and_can_be_kept(
    quick: QuickCommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "BUILT_IN_LIMIT_BYTES", 6_000_000)
    trained = json.loads(quick("eval", "e88", *TINY, "--json").stdout)
    assert trained["corpus"] == NAME
    assert f"corpus        {NAME}\n" in quick("eval", "e88", *TINY, "--out", "again").stdout

    packed = json.loads(quick("data", "pack", "--builtin", "--json").stdout)
    assert packed["path"] == NAME and (quick.folder / NAME).stat().st_size == packed["size_bytes"]
    assert packed["sha256"] == trained["protocol"]["corpus_sha256"]
    assert packed["documents"] > 1
    # With another Python: the built-in corpus is another one, and the kept one is the same.
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    kept = ("--data", NAME, "--out", "kept", "--json")
    same = json.loads(quick("eval", "e88", *TINY, *kept).stdout)
    assert (same["corpus"], same["loss"], same["fingerprint"]) == (
        *(NAME, trained["loss"], trained["fingerprint"]),
    )
    plan = quick("search", "e88", "--local", "--preset", "tiny", "--dry-run", "--json")
    assert json.loads(plan.stdout)["data"]["name"] == "standard-library-3.99.0.bytes"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no folders of text"),
        (("--builtin", "."), "takes no folders"),
        ((".",), "no output file given"),
        (("--builtin", "-o", "elman.toml"), "elman.toml exists"),
    ],
)
def test_corpus_that_cannot_be_packed_is_refused(
    quick: QuickCommandLine, words: tuple[str, ...], message: str
) -> None:
    Path("elman.toml").write_text("", encoding="utf-8")
    done = quick("data", "pack", *words)
    assert done.returncode == 2 and message in done.stderr
