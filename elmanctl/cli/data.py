"""The `data` commands: pack a corpus, describe one, and print what a training step reads of it."""

from math import log
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from elmanctl.cli.completion import one_of
from elmanctl.cli.context import (
    JsonFlag,
    ProtocolOption,
    SetOption,
    command_group,
    resolve_settings,
)
from elmanctl.cli.output import (
    Column,
    columns,
    counted,
    hint,
    print_json,
    print_line,
    print_table,
    say,
    shown_count,
    spelled_bytes,
    warn,
)
from elmanctl.config import parse_assignments
from elmanctl.errors import ConfigError, InvalidConfiguration, UsageError
from elmanctl.run.corpus import CorpusInfo
from elmanctl.run.training import SAMPLERS, Training
from elmanctl.settings import Settings

app = command_group("data", "Make corpora and look at them")

CorpusArgument = Annotated[
    str | None, Argument(help="Corpus, a file of bytes; default: `data.path` or the built-in one")
]

# Windows that `sample` prints.
_ROWS = 4

# numpy takes a larger one for a float.
_LAST_STEP = 2**63 - 1


@app.command("pack")
def pack(
    folders: Annotated[list[Path] | None, Argument(help="Folders of text files")] = None,
    out: Annotated[
        Path | None,
        Option("-o", "--out", help="File to write; required without --builtin"),
    ] = None,
    builtin: Annotated[
        bool, Option("--builtin", help="Save the built-in corpus of this Python")
    ] = False,
    force: Annotated[bool, Option("--force", help="Replace an existing file")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Pack folders of text into one corpus, or save the built-in one

    Documents are separated by the byte 0x1e. Binary files, hidden folders and symlinks are skipped.
    The built-in corpus is the standard library of the Python that runs elmanctl, so it depends on
    the version of Python. `--builtin` saves it to a file, which gives the same losses anywhere.

    \b
    Examples:
        elmanctl data pack ~/books ~/notes -o corpus.bytes
        elmanctl data pack --builtin
    """
    from elmanctl.run.corpus import built_in_name, keep_built_in
    from elmanctl.run.corpus_packing import MET_BEFORE, pack_folders

    if builtin == bool(folders):
        raise UsageError(
            "`--builtin` takes no folders" if builtin else "no folders of text files given",
            hint="omit one of them" if builtin else "or save the built-in corpus with `--builtin`",
        )
    if out is None:
        if not builtin:
            raise UsageError("no output file given", hint="pass e.g. `-o corpus.bytes`")
        out = Path(built_in_name())
    if out.exists() and not force:
        raise UsageError(f"{out} exists", hint="pass `--force` to replace it")
    summary = keep_built_in(out) if builtin else pack_folders(folders or [], out)
    skipped = sum(summary.skipped.values())
    duplicates = summary.skipped.get(MET_BEFORE)
    if duplicates:
        warn(f"{duplicates} files are in two of the folders, and once in the corpus")
    if as_json:
        sizes = {key: getattr(summary, key) for key in ("size_bytes", "sha256", "documents")}
        print_json({"path": str(summary.path), **sizes, "skipped": dict(summary.skipped)})
        return
    print_line(
        f"{out}: {summary.documents} documents, {summary.size_bytes} bytes, "
        f"{skipped} files skipped, sha256 {summary.sha256}"
    )
    hint(f"search with it: `elmanctl search e88 --data {out} --params 480M --train-minutes 10`")


@app.command("info")
def info(
    ctx: Context,
    corpus: CorpusArgument = None,
    protocol: ProtocolOption = None,
    assigned: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show size, documents, entropy and split of a corpus

    The unigram entropy is the loss of a model that knows only how frequent each byte is. The split
    is that of `train.holdout`, the share of the documents that is held out by a hash of their
    content, the same for every search on the corpus.

    \b
    Examples:
        elmanctl data info corpus.bytes
        elmanctl data info --set train.holdout=0.1
    """
    settings, found = _corpus(ctx, corpus, {"train.protocol": protocol}, assigned)
    data, fault = _described(found, settings.train)
    if fault is not None:
        warn(fault.message)
        if fault.hint:
            hint(fault.hint)
    if as_json:
        print_json(data)
        return
    entropy = f"{data['unigram_nats']:.4f} nats/byte, {data['unigram_bits']:.4f} bits/byte"
    of_part = data["entropy_bytes"] < found.size_bytes
    part = f", of the first {spelled_bytes(data['entropy_bytes'])}" if of_part else ""
    for label, text in (
        ("corpus", data["path"]),
        ("sha256", found.sha256),
        ("size", spelled_bytes(found.size_bytes)),
        ("documents", shown_count(data["documents"])),
        ("entropy", f"{entropy} of single bytes{part}"),
        ("held out", _part(data["held_out_documents"], data["held_out_bytes"], found.size_bytes)),
        ("trained on", spelled_bytes(data["training_bytes"])),
        ("holdout", f"{data['holdout']:g} of the documents (`train.holdout`)"),
    ):
        print_line(f"{label:<12} {text}")


def _part(documents: int, size_bytes: int, total_bytes: int) -> str:
    share = size_bytes / total_bytes
    words = f"{shown_count(documents)} documents, {spelled_bytes(size_bytes)}"
    return f"{words} ({share:.2%} of the bytes)"


def _described(found: CorpusInfo, train: Training) -> tuple[dict[str, Any], ConfigError | None]:
    """Return a corpus as plain data, and why its split is unfit for a search."""
    from elmanctl.run.corpus import ENTROPY_LIMIT_BYTES, unigram_entropy
    from elmanctl.run.split import check_split, find_split, scan

    split = find_split(found, train.holdout)
    fault = None
    try:
        check_split(split, train.holdout)
    except ConfigError as exc:
        fault = exc
    nats = unigram_entropy(found.path)
    data = {
        "path": str(found.path),
        "sha256": found.sha256,
        "size_bytes": found.size_bytes,
        # Where nothing is held out, the split does not count them.
        "documents": split.documents if train.holdout else scan(found.path, 0.0)[0],
        "unigram_nats": nats,
        "unigram_bits": nats / log(2),
        "entropy_bytes": min(found.size_bytes, ENTROPY_LIMIT_BYTES),
        "holdout": train.holdout,
        "held_out_documents": len(split.held_out),
        "held_out_bytes": split.held_out_bytes,
        "training_bytes": split.trained_bytes,
        "fit": fault is None,
    }
    return data, fault


@app.command("sample")
def sample(
    ctx: Context,
    corpus: CorpusArgument = None,
    sampler: Annotated[
        str | None,
        Option(help="windows, documents or stream", autocompletion=one_of(SAMPLERS)),
    ] = None,
    seed: Annotated[int | None, Option(help="Training seed")] = None,
    step: Annotated[
        int | None, Option(help="Training step; default: 1", min=1, max=_LAST_STEP)
    ] = None,
    rows: Annotated[int, Option(help="Most windows to print", min=1)] = _ROWS,
    seq_len: Annotated[int | None, Option(help="Bytes predicted in one window")] = None,
    held_out: Annotated[
        bool, Option("--held-out", help="Print windows of the held-out documents instead")
    ] = False,
    protocol: ProtocolOption = None,
    assigned: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Print the windows of text that a training step reads

    They are what a worker reads with the same settings: the first of the `train.batch` windows of
    the step, each one byte longer than `train.seq_len`. Bytes that are not printable UTF-8 are
    written as in a Python literal, such as \\n or \\x1e.

    \b
    Examples:
        elmanctl data sample corpus.bytes --step 100
        elmanctl data sample --sampler documents --seq-len 200 --rows 8
        elmanctl data sample --held-out
    """
    if held_out and (sampler, seed, step) != (None, None, None):
        raise UsageError(
            "`--held-out` goes without `--sampler`, `--seed` and `--step`",
            hint="held-out windows are the same for every sampler, seed and step",
        )
    flags = {
        "train.protocol": protocol,
        "train.sampler": sampler,
        "train.seed": seed,
        "train.seq_len": seq_len,
    }
    settings, found = _corpus(ctx, corpus, flags, assigned)
    train = settings.train
    if held_out:
        head, windows = _held_out(found, train, rows)
    else:
        head, windows = _step(found, train, 1 if step is None else step, rows)
    if as_json:
        print_json({"path": str(found.path), **head, "windows": windows})
        return
    shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in head.items())
    say(f"{counted(len(windows), 'window')} of {found.path}: {shown}")
    names = [name for name in windows[0] if name != "text"]
    print_table(
        [
            *columns(*(name.upper() for name in names), right=True, dispensable=1),
            Column("TEXT", wraps=True),
        ],
        [[*(str(window[name]) for name in names), window["text"]] for window in windows],
    )


def _step(
    found: CorpusInfo, train: Training, step: int, rows: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from elmanctl.jobs.data import ByteStream
    from elmanctl.run.split import find_split

    if rows > train.batch:
        raise UsageError(
            f"a step has {train.batch} windows, not {rows}",
            hint=f"`--set train.batch={rows}` makes it larger",
        )
    if train.batch_rule is not None:
        warn(
            f"`train.batch_rule` {train.batch_rule} takes the windows of a step from the size of "
            f"the model; these are the first of {train.batch}"
        )
    stream = ByteStream(found.path, find_split(found, train.holdout), train.sampler)
    drawn = stream.rows(train.seed, step, train.batch, train.seq_len)[:rows]
    head = {"sampler": train.sampler, "seed": train.seed, "step": step, "seq_len": train.seq_len}
    texts = [escaped(row.tobytes()) for row in drawn]
    return head, [{"window": number, "text": text} for number, text in enumerate(texts)]


def _held_out(
    found: CorpusInfo, train: Training, rows: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from elmanctl.jobs.data import held_out_windows
    from elmanctl.run.split import find_split

    split = find_split(found, train.holdout)
    if not len(split.held_out):
        raise ConfigError(
            f"no document of {found.path} is held out at `train.holdout` {train.holdout:g}",
            hint="`elmanctl data info` shows its documents; raise `train.holdout`",
        )
    drawn = held_out_windows(found.path, split, count=train.val_windows, seq_len=train.seq_len)
    head = {
        "held_out_documents": len(split.held_out),
        "val_windows": len(drawn.rows),
        "scored_bytes": drawn.scored_bytes,
        "seq_len": train.seq_len,
    }
    parts = zip(drawn.rows[:rows], drawn.document, drawn.scored, strict=False)
    return head, [
        {
            "window": number,
            "document": int(document),
            "scored": int(scored),
            "text": escaped(row[: scored + 1].tobytes()),
        }
        for number, (row, document, scored) in enumerate(parts)
    ]


def escaped(data: bytes) -> str:
    """Return bytes as one line of printable text, which read as a bytes literal gives them back.

    Valid UTF-8 stays as it is, unless a character is a backslash or not printable.
    """
    text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    known = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return known.get(letter) or "".join(f"\\x{byte:02x}" for byte in letter.encode())


def _corpus(
    ctx: Context, path: str | None, flags: dict[str, Any], assigned: list[str] | None
) -> tuple[Settings, CorpusInfo]:
    """Return the settings of a command, and the corpus that they name; raises for an empty one."""
    from elmanctl.search.plan import find_corpus

    flags = {"data.path": path, **flags, **parse_assignments(assigned or [])}
    settings = resolve_settings(ctx, flags).settings
    found = find_corpus(settings)
    if not found.size_bytes:
        raise InvalidConfiguration(
            f"the corpus {found.path} is empty", hint="`elmanctl data pack` makes one from folders"
        )
    return settings, found
