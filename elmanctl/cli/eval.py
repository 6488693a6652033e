"""The `eval` command: one training in the foreground, of a configuration or of one on record."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from elmanctl.cli import output
from elmanctl.cli.assignments import model_fields
from elmanctl.cli.completion import backends, compared_names, model_names, one_of
from elmanctl.cli.context import (
    JsonFlag,
    PresetOption,
    ProtocolOption,
    SetOption,
    load_readable,
    resolve_settings,
    runs_folder,
)
from elmanctl.cli.evaluation_view import watching
from elmanctl.config import parse_assignments, refuse_outside
from elmanctl.constants import DEVICES
from elmanctl.errors import UsageError
from elmanctl.folders import shown as shown_path
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.spec import AttemptSpec
from elmanctl.search.longer_training import Source, find_source, longer_spec
from elmanctl.search.single_evaluation import (
    Prepared,
    prepare_again,
    prepare_longer,
    prepare_once,
    train_prepared,
)

_SHOWN_OF_RESULT = (
    *("loss", "val_loss", "val_loss_se", "bits_per_byte", "last100_loss", "protocol_name"),
    *("fingerprint", "corpus", "steps", "tokens", "tokens_per_s"),
    *("parameters", "backend", "device", "precision"),
)

# What a training on record may be changed in; all else stays as it was.
_CHANGEABLE = ("train.", "metrics.", "data.path")


def evaluate(
    ctx: Context,
    level: Annotated[
        str | None,
        Argument(help="Model, e.g. e88 or E75h7n24", autocompletion=model_names),
    ] = None,
    assignments: Annotated[
        list[str] | None, Argument(help="Fields of the model and lr, e.g. dim=64 lr=1e-2")
    ] = None,
    source: Annotated[
        str | None,
        Option(
            "--from",
            metavar="NAME",
            help="Train one on record: RUN/EVAL, RUN for its best, a folder or a file of eval",
            autocompletion=compared_names,
        ),
    ] = None,
    again: Annotated[
        Path | None,
        Option("--resume", help="Go on with an interrupted evaluation in this folder"),
    ] = None,
    train_minutes: Annotated[float | None, Option(help="Training time in minutes")] = None,
    train_steps: Annotated[int | None, Option(help="Training steps")] = None,
    train_tokens: Annotated[int | None, Option(help="Training bytes")] = None,
    train_flops: Annotated[float | None, Option(help="Training FLOPs")] = None,
    protocol: ProtocolOption = None,
    data: Annotated[str | None, Option(help="Corpus: a file of bytes")] = None,
    preset: PresetOption = None,
    device: Annotated[
        str | None, Option(help="cpu, cuda or auto", autocompletion=one_of(DEVICES))
    ] = None,
    backend: Annotated[
        str | None,
        Option(help="Implementation; default the best", autocompletion=backends),
    ] = None,
    seed: Annotated[int | None, Option(help="Seed of the training run")] = None,
    keep_state: Annotated[
        bool,
        Option(help="Keep the last state, to train longer from: 12 bytes a parameter"),
    ] = True,
    out: Annotated[Path | None, Option(help="Folder for the results")] = None,
    assigned: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Train and score one configuration in the foreground

    It runs the worker's code without Slurm and without a search, and keeps the model. With --from
    the configuration, the seed and the protocol are those of an evaluation on record; from a state
    that `eval` has kept it goes on as if it had never stopped. It writes a checkpoint every 10
    minutes, from which --resume goes on after an interruption.

    \b
    Examples:
        elmanctl eval e88 dim=64 depth=2 n_heads=4 n_state=16 lr=1e-2 --preset tiny
        elmanctl eval --from e88-480m/g012-e03 --train-minutes 600
        elmanctl eval --resume runs/eval-e88-20261201-120000
    """
    flags = {
        "train.minutes": train_minutes,
        "train.steps": train_steps,
        "train.tokens": train_tokens,
        "train.flops": train_flops,
        "train.protocol": protocol,
        "train.device": device,
        "train.backend": backend,
        "train.seed": seed,
        "data.path": data,
        **parse_assignments(assigned or []),
    }
    given = {key: value for key, value in flags.items() if value is not None}
    _check_one_beginning(level, source, again)
    if again is not None:
        _refuse_changes(given, preset, out, "--resume")
        prepared = prepare_again(again)
    elif source is not None:
        prepared = _from_record(ctx, source, given, preset, out, keeps_state=keep_state)
    else:
        settings = resolve_settings(ctx, flags, preset).settings
        fields = model_fields(assignments, with_lr=True)
        assert level is not None
        prepared = prepare_once(level, fields, settings, out=out, keeps_state=keep_state)
    _train(prepared, as_json=as_json)
    if level is not None and not as_json:
        output.hint(f"see what a search can vary with `elmanctl models {prepared.spec.level}`")


def _check_one_beginning(level: str | None, source: str | None, again: Path | None) -> None:
    given = {
        f"the model `{level}`": level is not None,
        "`--from`": source is not None,
        "`--resume`": again is not None,
    }
    named = [words for words, is_given in given.items() if is_given]
    if len(named) > 1:
        raise UsageError(
            f"{' and '.join(named)} do not go together",
            hint="`--from` and `--resume` name all: the model, its fields and its learning rate",
        )
    if not named:
        raise UsageError(
            "there is nothing to train",
            hint="name a model and its fields, e.g. `elmanctl eval e88 dim=64`, or an evaluation "
            "on record with `--from`",
        )


def _from_record(
    ctx: Context,
    name: str,
    given: Mapping[str, Any],
    preset: str | None,
    out: Path | None,
    *,
    keeps_state: bool,
) -> Prepared:
    others = [key for key in given if not key.startswith(_CHANGEABLE)]
    if preset is not None or "train.protocol" in given:
        others.append("--preset" if preset is not None else "--protocol")
    if others:
        raise UsageError(
            f"`--from` takes `{others[0]}` from the record",
            hint="`--set train.KEY=VALUE` changes one setting; `metrics.*` and `data.path` can be "
            "changed too",
        )
    refuse_outside(given)
    source = find_source(name, runs_folder(ctx), load_readable)
    spec = longer_spec(name, source, given, data=given.get("data.path"), keeps_state=keeps_state)
    prepared = prepare_longer(spec, runs_folder(ctx), out=out)
    output.say(_beginning(source, spec))
    return prepared


def _beginning(source: Source, spec: AttemptSpec) -> str:
    """Return one line on where a longer training begins."""
    if spec.starts_from is not None:
        return f"goes on from step {spec.origin['step']:,} of {shown_path(Path(spec.starts_from))}"
    if source.state is None:
        return f"{source.place} has kept no state, so the training begins at step 1"
    return (
        f"the state of {source.place} is of another configuration, seed, learning rate, precision "
        "or corpus, so the training begins at step 1"
    )


def _refuse_changes(
    given: Mapping[str, Any], preset: str | None, out: Path | None, option: str
) -> None:
    others = [*given, *(["--preset"] if preset else []), *(["--out"] if out else [])]
    if others:
        raise UsageError(
            f"`{option}` goes on with what was begun, so `{others[0]}` cannot be changed",
            hint="`--from FOLDER` trains it with other settings, in a folder of its own",
        )


def _train(prepared: Prepared, *, as_json: bool) -> None:
    folder, shown = prepared.paths.folder, shown_path(prepared.paths.folder)
    output.say(f"trains in {shown}")
    try:
        with watching(prepared.paths, prepared.spec):
            result = train_prepared(prepared)
    except KeyboardInterrupt:
        output.hint(f"continue with `elmanctl eval --resume {shown}`")
        raise
    if as_json:
        output.print_json({"folder": str(folder), **result})
        return
    output.say(f"saved in {shown}")
    for key in _SHOWN_OF_RESULT:
        if result.get(key) is not None:
            output.print_line(f"{key:<13} {result[key]}")
    if reason := result.get("model_not_kept"):
        output.warn(f"the model was not kept: {reason}")
    else:
        output.print_line(f"{'model':<13} {shown_path(prepared.paths.model)}")
        output.hint(f"read what it writes with `elmanctl sample {shown}`")
    if AttemptPaths(folder).checkpoint.exists():
        output.hint(f"train it longer with `elmanctl eval --from {shown}` and a larger budget")
