"""`data pack`: pack a corpus from folders, or save the built-in one."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from elmanctl.cli.context import JsonFlag, command_group
from elmanctl.cli.output import hint, print_json, print_line, warn
from elmanctl.errors import UsageError

app = command_group("data", "Make corpora")


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
