"""Compared results: the rows of a comparison, from ledgers and the folders of `elmanctl eval`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from elmanctl.errors import Faults, InvalidConfiguration, NotFound, UsageError
from elmanctl.ledger.records import Evaluation, State
from elmanctl.ledger.run_state import RunState
from elmanctl.models.params import flops_per_token, state_size
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.progress import read_table
from elmanctl.run.protocol import BETAS, Protocol
from elmanctl.run.spec import AttemptSpec
from elmanctl.search.comparison import Basis, Row
from elmanctl.search.confirmation import best_of, standing
from elmanctl.search.effective_settings import effective_settings
from elmanctl.search.estimate import by_estimate
from elmanctl.search.selection import find_evaluation

Result = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """One result, its protocol and its seed, and the folder that it is from."""

    source: str
    result: Result
    seed: int
    protocol: Mapping[str, Any]
    fingerprint: str


def row_of_run(paths: RunPaths, state: RunState, name: str | None = None) -> Row:
    """Return the row of a run's winner, or of the evaluation that is named.

    The winner is the confirmed one, or else the evaluation of the lowest loss.  Raises NotFound
    for an unknown evaluation, and where there is no loss.
    """
    run = state.run
    chosen = best_of(state, standing(state)) if name is None else find_evaluation(state, name)
    if chosen is None:
        raise NotFound(
            f"run `{run['name']}` has no completed evaluation",
            hint=f"`elmanctl status {run['name']}` shows why",
        )
    basis, same = _same(state, chosen)
    trained = [
        _trained_of(paths, state, each, result)
        for each in same
        if (result := _result_of(each)) is not None
    ]
    if not trained:
        raise NotFound(
            f"{chosen.id} of run `{run['name']}` is {chosen.state.value}, so it has no loss",
            hint=f"`elmanctl show {run['name']} {chosen.id}` shows why"
            if chosen.state.is_finished
            else "wait for it, or name another",
        )
    row = _row(
        item=f"{paths.folder.name}/{chosen.id if chosen.confirms else chosen.configuration}",
        model=str(run["model"]),
        config=chosen.config,
        lr=chosen.lr,
        parameters=chosen.parameters,
        basis=basis,
        trained=trained,
    )
    return replace(row, searched=len(state.ranked())) if basis == "lowest of a search" else row


def rows_of_folders(folders: Iterable[Path]) -> list[Row]:
    """Return the rows of results of `elmanctl eval`: one for each configuration and protocol.

    Raises NotFound for a folder without a result, UsageError for one that is named twice.
    """
    found: dict[str, tuple[AttemptSpec, list[_Trained]]] = {}
    faults = Faults()
    seen: set[Path] = set()
    for folder in folders:
        with faults:
            if folder.resolve() in seen:
                raise UsageError(f"{folder} is named twice")
            seen.add(folder.resolve())
            trained, spec = _trained_in(folder)
            parts = (spec.level, dict(spec.config), spec.training.lr, trained.fingerprint)
            key = json.dumps(parts, sort_keys=True)
            found.setdefault(key, (spec, []))[1].append(trained)
    faults.raise_any()
    return [
        _row(
            item=Path(trained[0].source).name,
            model=spec.level,
            config=spec.config,
            lr=spec.training.lr,
            parameters=spec.parameters_expected,
            basis="evaluation",
            trained=trained,
        )
        for spec, trained in found.values()
    ]


def _same(state: RunState, chosen: Evaluation) -> tuple[Basis, list[Evaluation]]:
    """Return what the losses of an evaluation's configuration are taken from.

    The values among which a search chose are biased, so they count only without confirmations.
    """
    if chosen.confirms is not None:
        return "evaluation", [chosen]
    same = state.same_configuration(chosen.configuration)
    confirmations = [
        again for each in same for again in _completed(state.confirmations_of(each.id))
    ]
    if confirmations:
        return "confirmations", confirmations
    is_best = chosen.configuration in {each.configuration for each in by_estimate(state)[:1]}
    measured = [each for each in same if each.answer is None]
    return "lowest of a search" if is_best else "evaluation", measured


def _completed(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    return [each for each in evaluations if _result_of(each) is not None]


def _result_of(evaluation: Evaluation) -> Result | None:
    """Return the result of the newest completed attempt, None if there is none."""
    if evaluation.state is not State.COMPLETED:
        return None
    results = [a.result for a in evaluation.attempts if a.state is State.COMPLETED and a.result]
    return results[-1] if results else None


def _trained_of(
    paths: RunPaths, state: RunState, evaluation: Evaluation, result: Result
) -> _Trained:
    """Return a result of a run; its protocol follows from the settings of the run.

    The ledger keeps the fingerprint alone.
    """
    data, training = state.run["data"], effective_settings(state).train
    protocol = Protocol(
        corpus_sha256=data["sha256"],
        corpus_size_bytes=data["size_bytes"],
        training=training,
        betas=BETAS,
        precision=str(result.get("precision", training.precision)),
    )
    return _trained(paths.evaluation(evaluation.id), result, evaluation.seed, protocol)


def _trained_in(folder: Path) -> tuple[_Trained, AttemptSpec]:
    """Return the result in the folder of an `elmanctl eval`, and its spec."""
    paths = AttemptPaths(folder)
    result = read_table(paths.result)
    if result is None:
        raise NotFound(
            f"{folder} has no readable result.json",
            hint="`elmanctl eval` writes it at its end; it is running, or was interrupted",
        )
    kind = (result.get("verdict") or {}).get("kind")
    if kind != State.COMPLETED:
        raise NotFound(f"the evaluation in {folder} is {kind}, so it has no loss")
    spec = AttemptSpec.read(paths.spec)
    protocol = spec.protocol(str(result.get("precision", spec.training.precision)))
    return _trained(folder, result, spec.training.seed, protocol), spec


def _trained(folder: Path, result: Result, seed: int, protocol: Protocol) -> _Trained:
    if not isinstance(result.get("loss"), int | float):
        raise NotFound(f"the result in {folder} has no loss")
    return _Trained(
        source=str(folder),
        result=result,
        seed=seed,
        protocol=protocol.encode(),
        fingerprint=str(result.get("fingerprint", protocol.fingerprint)),
    )


def _row(
    *,
    item: str,
    model: str,
    config: Mapping[str, object],
    lr: float,
    parameters: int,
    basis: Basis,
    trained: Sequence[_Trained],
) -> Row:
    """Return a row of results, one for each seed, all under the protocol of the first."""
    first = trained[0]
    kept: dict[int, _Trained] = {}
    left_out = []
    for each in trained:
        if each.fingerprint != first.fingerprint:
            left_out.append(f"{each.source}: another protocol, {each.fingerprint}")
        elif each.seed in kept:
            left_out.append(f"{each.source}: seed {each.seed} again")
        else:
            kept[each.seed] = each
    seq_len = int(first.protocol["seq_len"])
    flops = None
    # A family may have no count.
    with suppress(InvalidConfiguration):
        flops = flops_per_token(model, config, seq_len=seq_len, training=True)
    return Row(
        item=item,
        model=model,
        config=config,
        lr=lr,
        parameters=parameters,
        protocol=first.protocol,
        fingerprint=first.fingerprint,
        basis=basis,
        results={seed: each.result for seed, each in sorted(kept.items())},
        sources=tuple(each.source for _, each in sorted(kept.items())),
        left_out=tuple(left_out),
        state_elements_per_layer=state_size(model, config, seq_len=seq_len),
        flops_per_token=flops,
    )
