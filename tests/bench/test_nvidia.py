from pathlib import Path

import pytest

from elmanctl.bench import nvidia

NAMES = ("clocks.sm", "power.draw", "temperature.gpu")


def test_values_come_with_their_units_and_by_name() -> None:
    assert nvidia.parse(NAMES, "1980 MHz, 412.05 W, 51\n") == {
        "clocks.sm": "1980 MHz",
        "power.draw": "412.05 W",
        "temperature.gpu": "51",
    }


@pytest.mark.parametrize("line", ["", "No devices were found", "1980 MHz, 412 W"])
def test_answer_that_is_not_the_one_asked_for_is_none(line: str) -> None:
    assert nvidia.parse(NAMES, line) == {}


def test_what_the_card_does_not_tell_is_left_out() -> None:
    assert nvidia.parse(NAMES, "1980 MHz, [N/A], 51") == {
        "clocks.sm": "1980 MHz",
        "temperature.gpu": "51",
    }


def tool(folder: Path, text: str) -> None:
    path = folder / nvidia.TOOL
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_tool_is_asked_for_the_names_on_one_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    tool(tmp_path, f'echo "$@" >{tmp_path}/asked; echo "1 MHz, 2 W, 3"')
    assert nvidia.query(NAMES, "GPU-4")["power.draw"] == "2 W"
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["--id=GPU-4", f"--query-gpu={','.join(NAMES)}", "--format=csv,noheader"]


@pytest.mark.parametrize("text", ["echo no driver; exit 9", "exit 0"])
def test_tool_that_fails_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    tool(tmp_path, text)
    assert nvidia.query(NAMES, "0") == {}


def test_machine_without_the_tool_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia.query(NAMES, "0") == {}


def test_tool_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "exec sleep 60")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(nvidia, "_TIMEOUT_S", 0.2)
    assert nvidia.query(NAMES, "0") == {}
