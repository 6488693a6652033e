"""The `sample` command: text from a kept model, byte by byte."""

import base64
import math
import secrets
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from typer import Argument, Context, Option

from elmanctl import load
from elmanctl.cli.completion import compared_names, one_of
from elmanctl.cli.context import JsonFlag, load_readable, runs_folder
from elmanctl.cli.output import ByteWriter, print_json, say
from elmanctl.cli.saved import identity
from elmanctl.constants import DEVICES, VOCABULARY
from elmanctl.errors import EnvironmentNotReady, Faults, UsageError, os_errors_as
from elmanctl.models.registry import decode_config
from elmanctl.run.corpus_packing import SEPARATOR
from elmanctl.run.saved_file import Card, read_header
from elmanctl.search.named_model import find_named_model

# Short enough to be typed again.
_SEED_BITS = 31


def sample(
    ctx: Context,
    kept_model: Annotated[
        str,
        Argument(
            metavar="MODEL",
            help="Model: a file, a folder, RUN/EVAL, or RUN for its best",
            autocompletion=compared_names,
        ),
    ],
    prompt: Annotated[str | None, Option(help="Beginning of the document; default none")] = None,
    prompt_file: Annotated[
        str | None, Option(help="File with the bytes of the prompt; - is stdin")
    ] = None,
    n_bytes: Annotated[int, Option("--bytes", help="Bytes to generate", min=0)] = 200,
    temperature: Annotated[float, Option(help="0: always the most likely byte")] = 1.0,
    top_k: Annotated[
        int | None, Option(help="Choose among so many bytes only", min=1, max=VOCABULARY)
    ] = None,
    seed: Annotated[
        int | None, Option(help="Seed of the choices; default a new one", min=0)
    ] = None,
    count: Annotated[int, Option(help="Number of texts, from seeds in a row", min=1)] = 1,
    one_document: Annotated[
        bool, Option("--one-document", help="Stop where the model ends the document")
    ] = False,
    device: Annotated[
        str, Option(help="cpu, cuda, cuda:N or auto", autocompletion=one_of(DEVICES))
    ] = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Generate text with a kept model

    The prompt begins a document and is read once; each byte after it takes one step from the
    states of the layers. What follows the prompt is printed, byte by byte.

    \b
    Examples:
        elmanctl sample e88-480m --prompt "def main("
        elmanctl sample e88-480m/g012-e03 --prompt-file notes.txt --bytes 500 --temperature 0.8
        elmanctl sample model.safetensors --prompt "import os" --bytes 0 --json  # score a text
    """
    faults = Faults()
    with faults:
        _check_temperature(temperature)
    with faults:
        begin = SEPARATOR + _prompt_bytes(prompt, prompt_file)
    faults.raise_any()
    path = find_named_model(kept_model, runs_folder(ctx), load_readable)
    card = read_header(path).card
    loaded = load(path, device=device)

    # Their modules need torch, of which `load` has found that it is there.
    from elmanctl.jobs.device import use_threads
    from elmanctl.jobs.sampling import Choice, Reader, generate, log_probabilities

    use_threads(card.spec["threads"])
    _warn_of_length(card, len(begin) + n_bytes)
    reader = Reader(loaded)
    logits = reader.read(begin)
    first_seed = secrets.randbits(_SEED_BITS) if seed is None else seed
    choice = Choice(temperature=temperature, top_k=top_k or VOCABULARY)

    def texts() -> Iterator[tuple[int, Iterator[tuple[int, float]]]]:
        for number in range(count):
            own_seed = first_seed + number
            endless = generate(reader.fork(), choice, seed=own_seed)
            yield own_seed, _document(islice(endless, n_bytes), one_document)

    if as_json:
        of_prompt = log_probabilities(logits[:-1], begin[1:]) if len(begin) > 1 else []
        print_json(
            {
                "model": identity(path, card),
                "device": str(logits.device),
                "backend": loaded.backend,
                "temperature": temperature,
                "top_k": choice.top_k,
                "prompt": {
                    **_text_data(begin[1:]),
                    "nats_per_byte": -fmean(of_prompt) if of_prompt else None,
                    "log_probabilities": of_prompt,
                },
                "samples": [_sample_data(own_seed, chosen) for own_seed, chosen in texts()],
            }
        )
        return
    for number, (own_seed, chosen) in enumerate(texts()):
        if temperature and (seed is None or count > 1):
            say(f"seed {own_seed}")
        _write(chosen, is_first=number == 0)


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise UsageError(
            f"`--temperature` must be at least 0 and finite, not {temperature:g}",
            hint="0 takes the most likely byte, 1 the model's own probabilities",
        )


def _prompt_bytes(text: str | None, file: str | None) -> bytes:
    """Return the bytes of the prompt; raises UsageError, or EnvironmentNotReady for its file."""
    if text is not None and file is not None:
        raise UsageError("`--prompt` and `--prompt-file` exclude each other", hint="keep one")
    if file is None:
        try:
            return (text or "").encode()
        except UnicodeEncodeError as exc:
            raise UsageError(
                "`--prompt` is not UTF-8", hint="pass other bytes with `--prompt-file FILE`"
            ) from exc
    with os_errors_as(EnvironmentNotReady, f"cannot read the prompt in {file}"):
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    if not data:
        name = "stdin" if file == "-" else file
        raise UsageError(
            f"`--prompt-file`: {name} is empty",
            hint="leave the option out to begin a document without a prompt",
        )
    return data


def _warn_of_length(card: Card, n_bytes: int) -> None:
    """Say what a text longer than the windows of the training means."""
    seq_len = card.spec["seq_len"]
    if n_bytes <= seq_len:
        return
    config = decode_config(card.spec["level"], card.spec["config"])
    grows = config.layer_state_size(2) > config.layer_state_size(1)
    memory = "; its state grows with every byte" if grows else ""
    say(f"the model was trained on windows of {seq_len} bytes, and reads up to {n_bytes}{memory}")


def _document(chosen: Iterator[tuple[int, float]], one: bool) -> Iterator[tuple[int, float]]:
    """Yield what is chosen, up to the end of the document if only one is wanted."""
    for byte, log_probability in chosen:
        if one and byte == SEPARATOR[0]:
            return
        yield byte, log_probability


def _write(chosen: Iterator[tuple[int, float]], *, is_first: bool) -> None:
    """Write a text as it comes; in a pipe a separator stands between two, as in a corpus."""
    writer = ByteWriter()
    if not is_first:
        writer.part(SEPARATOR)
    try:
        for byte, _ in chosen:
            writer.write(bytes([byte]))
    finally:
        # After Ctrl-C, too, what follows begins a line.
        writer.end()


def _sample_data(seed: int, chosen: Iterator[tuple[int, float]]) -> dict[str, Any]:
    pairs = list(chosen)
    data = bytes(byte for byte, _ in pairs)
    return {"seed": seed, **_text_data(data), "log_probabilities": [each for _, each in pairs]}


def _text_data(data: bytes) -> dict[str, Any]:
    """Return bytes as JSON can hold them: readable, and exact."""
    return {
        "text": data.decode(errors="backslashreplace"),
        "base64": base64.b64encode(data).decode(),
    }
