"""Text from a kept model, on a pipe and on a terminal, and what is refused."""

import base64
import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from elmanctl import clock
from elmanctl.cli import output
from elmanctl.models.params import count_parameters
from elmanctl.run.saved_file import CHECKPOINT, MODEL, Card
from elmanctl.run.spec import AttemptSpec
from tests.cli.test_bad_input import assert_refused
from tests.command_line import CommandLine, QuickCommandLine
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.torch

CONFIG = {"dim": 16, "depth": 1, "n_heads": 2, "n_state": 4}
GREEDY = ("--temperature", "0", "--bytes", "8", "--json")


@pytest.fixture
def card(make_spec: Callable[..., AttemptSpec]) -> Card:
    """The card of a model that was kept."""
    spec = make_spec(
        level="e88", config=CONFIG, parameters_expected=count_parameters("e88", CONFIG)
    )
    return Card(kind=MODEL, spec=spec.encode(), saved_at=clock.to_text(clock.now()))


@pytest.fixture
def model(card: Card, tmp_path: Path) -> Path:
    """A kept model, of random weights."""
    return write(tmp_path / "model.safetensors", card)


def write(path: Path, card: Card) -> Path:
    """Write a model of random weights with this card."""
    from elmanctl.jobs import tensor_file
    from elmanctl.models.registry import build_model, decode_config

    config = decode_config(card.spec["level"], card.spec["config"])
    tensor_file.write(path, build_model(config, seed=1).state_dict(), card)
    return path


def raw(
    elmanctl: CommandLine, *words: str, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `sample` as a process, with bytes on stdin and from stdout."""
    return subprocess.run(
        [sys.executable, "-m", "elmanctl", "sample", *words],
        cwd=elmanctl.folder,
        env=elmanctl.environment,
        input=given,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_bytes_go_to_a_pipe_as_they_are(
    elmanctl: CommandLine, quick: QuickCommandLine, model: Path
) -> None:
    words = (model.name, "--seed", "3", "--bytes", "40", "--count", "2")
    prompt = b"a\xff\x00"
    (quick.folder / "prompt").write_bytes(prompt)
    done = raw(elmanctl, *words, "--prompt-file", "-", given=prompt)
    data = told(quick("sample", *words, "--prompt-file", "prompt", "--json"))
    texts = [base64.b64decode(sample["base64"]) for sample in data["samples"]]
    assert done.stdout == b"\x1e".join(texts)
    assert [len(text) for text in texts] == [40, 40]
    assert base64.b64decode(data["prompt"]["base64"]) == prompt
    assert [sample["seed"] for sample in data["samples"]] == [3, 4]
    # The second text is the one of its seed, whatever came before.
    alone = (model.name, "--prompt-file", "prompt", "--seed", "4", "--bytes", "40", "--json")
    assert told(quick("sample", *alone))["samples"] == data["samples"][1:]


def test_without_a_seed_it_tells_the_one_that_gives_the_same_again(
    quick: QuickCommandLine, model: Path
) -> None:
    words = ("sample", model.name, "--bytes", "20", "--json")
    first, second = (told(quick(*words))["samples"] for _ in range(2))
    assert first != second
    seed = str(first[0]["seed"])
    assert told(quick(*words, "--seed", seed))["samples"] == first


def test_text_ends_with_the_document_where_that_is_asked(
    quick: QuickCommandLine, model: Path
) -> None:
    words = ("sample", model.name, "--temperature", "1000", "--bytes", "1500", "--seed", "1")
    whole, cut = (
        base64.b64decode(told(quick(*words, "--json", *more))["samples"][0]["base64"])
        for more in ((), ("--one-document",))
    )
    assert len(whole) == 1500 and b"\x1e" in whole
    assert cut == whole.partition(b"\x1e")[0]


def test_terminal_gets_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    writer = output.ByteWriter()
    writer.part(b"\x1e")
    for byte in "a\x1b[31m\r\u00e4\u202e\n".encode() + b"\xff\x1e\xe2\x82":
        writer.write(bytes([byte]))
    writer.end()
    assert capsys.readouterr().out == "a\\x1b[31m\\x0dä\\u202e\n\\xff\\x1e\\xe2\\x82\n"


def test_ctrl_c_on_a_terminal_ends_the_line(elmanctl: CommandLine, model: Path) -> None:
    words = ("sample", model.name, "--temperature", "1000", "--bytes", "1000000", "--seed", "1")
    here, there = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "elmanctl", *words],
        cwd=elmanctl.folder,
        env={**elmanctl.environment, "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=there,
        stderr=there,
        start_new_session=True,
    )
    os.close(there)
    shown = b""
    while shown.count(b"\\x1e") < 2:
        shown += os.read(here, 4096)
    child.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while chunk := os.read(here, 4096):
            shown += chunk
    os.close(here)
    assert child.wait() == 130
    # Beside the ends of lines and tabs no control character reached the terminal.
    assert not set(shown) & (set(range(0x20)) - set(b"\t\r\n")) and 0x7F not in shown
    assert shown.endswith(b"\r\n") and b"Traceback" not in shown


def test_reader_that_goes_away_is_no_fault(elmanctl: CommandLine, model: Path) -> None:
    program = f"{sys.executable} -m elmanctl sample {model} --seed 1 --bytes 100000 | head -c 3"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program}"],
        env=elmanctl.environment,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, len(done.stdout)) == (0, 3), done.stderr


def test_longer_texts_than_in_training_are_announced(
    quick: QuickCommandLine, model: Path, card: Card
) -> None:
    done = quick("sample", model.name, *GREEDY, "--prompt", "1234567")
    assert "windows" not in done.stderr
    done = quick("sample", model.name, *GREEDY, "--prompt", "12345678")
    assert done.stderr == "the model was trained on windows of 16 bytes, and reads up to 17\n"
    config = {"dim": 16, "depth": 1, "n_heads": 2}
    write(model, replace(card, spec={**card.spec, "level": "transformer", "config": config}))
    done = quick("sample", model.name, *GREEDY, "--prompt", "12345678")
    assert done.stderr.endswith("; its state grows with every byte\n")


BAD: dict[str, tuple[tuple[str, ...], int, str, str | None]] = {
    "no such file": (("a.safetensors",), 3, "there is no file a.safetensors", None),
    "no such name": (("absent",), 3, "no run, evaluation or folder `absent`", "elmanctl status"),
    "folder without a model": (("empty",), 3, "empty holds no model", "kept as model.safetensors"),
    "folder of a training": (("begun",), 3, "begun holds no model", "has not ended"),
    "no model": (("text.safetensors",), 2, "is no saved model", None),
    "another version": (("newer.safetensors",), 2, "is of version 2", "the elmanctl that wrote"),
    "cut": (("cut.safetensors",), 2, "bytes, ", "copy it again"),
    "damaged": (("damaged.safetensors",), 2, "is damaged: the checksum of", "copy it again"),
    "checkpoint": (("begun/checkpoint.safetensors",), 2, "is a checkpoint, not a model", "beside"),
    "empty prompt": (
        ("model.safetensors", "--prompt-file", "nothing"),
        *(2, "`--prompt-file`: nothing is empty", "leave the option out"),
    ),
    "no prompt on stdin": (
        ("model.safetensors", "--prompt-file", "-"),
        *(2, "`--prompt-file`: stdin is empty", "leave the option out"),
    ),
    "absent prompt": (
        ("model.safetensors", "--prompt-file", "absent"),
        *(4, "cannot read the prompt in absent: No such file", None),
    ),
    "two prompts": (
        ("model.safetensors", "--prompt", "a", "--prompt-file", "nothing"),
        *(2, "exclude each other", "keep one"),
    ),
    "prompt in no encoding": (
        ("model.safetensors", "--prompt", "caf\udce9"),
        *(2, "`--prompt` is not UTF-8", "`--prompt-file FILE`"),
    ),
    "cold": (("model.safetensors", "--temperature", "-1"), 2, "at least 0 and finite", "0 takes"),
    "no number": (("model.safetensors", "--temperature", "nan"), 2, "not nan", "0 takes"),
    "no device": (("model.safetensors", "--device", "tpu"), 2, "no device `tpu`", "cpu, cuda"),
    "absent device": (("model.safetensors", "--device", "cuda:9"), 4, "torch sees", None),
    "negative count": (("model.safetensors", "--bytes", "-1"), 2, "--bytes", "elmanctl sample -h"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_sampled_is_refused(
    name: str, quick: QuickCommandLine, model: Path, card: Card
) -> None:
    folder = quick.folder
    data = model.read_bytes()
    (folder / "text.safetensors").write_text("no model\n" * 9)
    (folder / "cut.safetensors").write_bytes(data[:-5])
    (folder / "damaged.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    write(folder / "newer.safetensors", replace(card, version=2))
    (folder / "empty").mkdir()
    (folder / "begun").mkdir()
    write(folder / "begun" / "checkpoint.safetensors", replace(card, kind=CHECKPOINT))
    (folder / "nothing").touch()
    arguments, code, message, hint = BAD[name]
    assert_refused(quick("sample", *arguments, "--seed", "1"), code, message, hint)


def test_run_is_named_by_itself_by_its_evaluation_and_by_its_folders(
    quick_with_runs: QuickCommandLine, model: Path
) -> None:
    # The script that drove these runs left files that only have the names of models.
    run = quick_with_runs.folder / "runs" / "finished"
    (file,) = run.rglob("model.safetensors")
    evaluation = file.parents[1].name
    names = ("finished", "fin", f"finished/{evaluation}", "finished/best", "runs/finished")
    paths = (f"runs/finished/{evaluation}", str(run), str(file.parent), str(file))
    for name in (*names, *paths):
        done = quick_with_runs("sample", name)
        assert_refused(done, 2, f"{evaluation}/attempt-1/model.safetensors is no saved model")
    shutil.copy(model, file)
    data = told(quick_with_runs("sample", "finished", *GREEDY))
    assert Path(data["model"]["file"]).resolve() == file.resolve()


def test_run_without_its_model_is_refused_with_the_way_to_one(
    quick_with_runs: QuickCommandLine,
) -> None:
    run = quick_with_runs.folder / "runs" / "finished"
    (file,) = run.rglob("model.safetensors")
    evaluation = file.parents[1].name
    cleaned = quick_with_runs("clean", "finished", "--keep-models", "0", "--yes")
    assert cleaned.returncode == 0 and not file.exists(), cleaned.stderr
    done = quick_with_runs("sample", "finished")
    assert_refused(
        done, 3, f"the model of {evaluation} of `finished` was removed", "--keep-models N"
    )
    assert_refused(quick_with_runs("sample", str(file.parent)), 3, "holds no model", "kept as")
    done = quick_with_runs("sample", "interrupted-search/g000-e02")
    assert_refused(done, 3, "g000-e02 of `interrupted-search` has no model: it is failed", "show")
    done = quick_with_runs("sample", "finished/g009-e00")
    assert_refused(done, 3, "no evaluation `g009-e00` in run `finished`")


def test_non_utf8_argument_of_a_shell_is_refused(elmanctl: CommandLine, model: Path) -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"elmanctl", b"sample", b"x", b"--prompt", b"caf\xe9"],
        cwd=elmanctl.folder,
        env=elmanctl.environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2 and b"`--prompt` is not UTF-8" in done.stderr


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from elmanctl.__main__ import main
main()
"""


def test_without_torch_a_model_is_shown_and_not_sampled(elmanctl: CommandLine, model: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *words],
            cwd=elmanctl.folder,
            env=elmanctl.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("sample", model.name, "--seed", "1")
    assert_refused(done, 4, "what a model needs cannot be imported here: ", "pip install 'torch")
    shown = run("show", model.name)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("model.safetensors: model of g000-e00 of tiny, ")
