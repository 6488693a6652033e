"""Observations read a log only where it adds something."""

from pathlib import Path
from typing import Any

import pytest

from elmanctl.ledger.files import write_json
from elmanctl.run.paths import RunPaths
from elmanctl.verdicts import log_tail as module
from elmanctl.verdicts.judge import judge
from elmanctl.verdicts.observation import observe


def result_of(kind: str, **more: Any) -> dict[str, Any]:
    return {"verdict": {"kind": kind, "evidence": [{"text": "the worker's words"}]}, **more}


@pytest.mark.parametrize(
    "result", [result_of("completed", loss=2.5), result_of("completed"), result_of("diverged")]
)
def test_log_is_not_opened_where_it_would_add_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]
) -> None:
    def refuse(path: Path) -> Any:
        raise AssertionError(f"{path} was opened")

    paths = RunPaths(tmp_path).attempt("g000-e00", 1)
    paths.folder.mkdir(parents=True)
    write_json(paths.result, result)
    log = tmp_path / "7_0_0_log.out"
    log.write_text("step 10 loss 2.5\n", encoding="utf-8")
    monkeypatch.setattr(module, "open_regular", refuse)
    seen = observe(paths, log, None, root=tmp_path, limit_s=60.0)
    kind = result["verdict"]["kind"]
    said = kind if kind == "diverged" or "loss" in result else "undetermined"
    assert judge(seen).kind == said


def test_log_of_a_failure_is_opened(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path).attempt("g000-e00", 1)
    paths.folder.mkdir(parents=True)
    write_json(paths.result, result_of("python_error"))
    log = tmp_path / "7_0_0_log.out"
    log.write_text("step 10 loss 2.5\nthe worker's words\n", encoding="utf-8")
    quotes = judge(observe(paths, log, None, root=tmp_path, limit_s=60.0)).evidence
    assert [(quote.file, quote.line) for quote in quotes][1:] == [("7_0_0_log.out", 2)]


def test_log_of_a_lost_rank_is_read_instead_of_that_of_rank_0(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path).attempt("g000-e00", 1)
    paths.folder.mkdir(parents=True)
    write_json(paths.heartbeat, {"lost_rank": {"rank": 3, "count": 4, "node": "n2", "how": "x"}})
    log = tmp_path / "7_0_0_log.out"
    log.write_text("RuntimeError: Connection closed by peer\n", encoding="utf-8")
    seen = observe(paths, log, None, root=tmp_path, limit_s=60.0)
    assert seen.log is not None and seen.log.file == "7_0_0_log.out"
    (tmp_path / "7_0_3_log.out").write_text("MemoryError\n", encoding="utf-8")
    seen = observe(paths, log, None, root=tmp_path, limit_s=60.0)
    assert seen.log is not None and seen.log.lines[0] == "MemoryError"
