"""Spec of an attempt: everything its worker needs, as spec.json holds it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from elmanctl.bounds import bounds_of
from elmanctl.codec import decode, describe, encode, json_field
from elmanctl.errors import (
    ElmanError,
    EnvironmentNotReady,
    InvalidConfiguration,
    InvalidModel,
    os_errors_as,
)
from elmanctl.run.metrics_settings import MetricsSettings
from elmanctl.run.protocol import BETAS, Protocol
from elmanctl.run.saved_file import KINDS, SavedFile
from elmanctl.run.training import BUDGET_KINDS, Training

VERSION = 1

# The keys of version 0.1 in their order; later ones follow, and only where they ask for something.
_FIRST = (
    *("version", "run", "evaluation", "attempt", "level", "config", "parameters_expected"),
    *("seed", "lr", "budget", "batch", "micro_batch", "seq_len", "warmup_steps", "grad_clip"),
    *("weight_decay", "betas", "precision", "data", "device", "backend", "threads"),
    *("heartbeat_s", "timeout_min"),
)

_ATTEMPT_FOLDER = re.compile(r"attempt-[1-9]\d*")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The corpus: where it is and which bytes it must hold."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """Everything a worker needs; the attempt's folder is where it was read from.

    `training` is the run's, with the learning rate and the seed of the evaluation and the
    micro-batch of the attempt.  `precision` auto is bf16 autocast over fp32 weights on CUDA and
    fp32 on the CPU.  `continues_from` names the folders of earlier attempts whose checkpoints may
    be gone on from, the newest first.  `keep` names what is left behind of a completed training, of
    `KINDS`; the model only if its loss is below `keep_below`.  `starts_from` is the file of the
    state of another training, which is gone on from and stays; `origin` names that training.
    `micro_batches` are those that were found for this configuration when memory ran out before, by
    the name of the device.  `metrics` says where the numbers of each step go besides metrics.jsonl.
    A `stoppable` training notes its losses at the looks, and ends early where it is asked to.
    """

    run: str
    evaluation: str
    attempt: int
    level: str
    config: Mapping[str, Any]
    parameters_expected: int
    training: Training
    betas: tuple[float, float] = BETAS
    data: DataSpec
    timeout_min: int | float
    continues_from: tuple[str, ...] = json_field(default=(), omit=True)
    keep: tuple[str, ...] = json_field(default=(), omit=True)
    keep_below: float | None = json_field(default=None, omit=True)
    starts_from: str | None = json_field(default=None, omit=True)
    origin: Mapping[str, Any] = json_field(default_factory=dict, omit=True)
    micro_batches: Mapping[str, int] = json_field(default_factory=dict, omit=True)
    metrics: MetricsSettings = json_field(default=MetricsSettings(), omit=True)
    stoppable: bool = json_field(default=False, omit=True)

    def __post_init__(self) -> None:
        for name, bounds in bounds_of(Training).items():
            value = getattr(self.training, name)
            fault = bounds.refusal_below(value)
            if fault:
                raise InvalidConfiguration(f"`spec.{name}` {fault}")
        for name in ("attempt", "parameters_expected"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("timeout_min", 0 < self.timeout_min < math.inf, "above 0 and finite")
        self._require("betas", all(0 < beta < 1 for beta in self.betas), "between 0 and 1")
        folders = all(_ATTEMPT_FOLDER.fullmatch(name) for name in self.continues_from)
        self._require("continues_from", folders, "an array of names such as attempt-1")
        self._require("keep", set(self.keep) <= set(KINDS), f"an array of {', '.join(KINDS)}")

        known = all(rows >= 1 for rows in self.micro_batches.values())
        self._require("micro_batches", known, "a table of numbers of at least 1")

    def _require(self, name: str, is_met: bool, what: str) -> None:
        if not is_met:
            raise InvalidConfiguration(f"`spec.{name}` must be {what}, not {getattr(self, name)}")

    def protocol(self, precision: str) -> Protocol:
        """Return the protocol of this attempt when it runs in `precision` (fp32 or bf16)."""
        return Protocol(
            corpus_sha256=self.data.sha256,
            corpus_size_bytes=self.data.size_bytes,
            training=self.training,
            betas=self.betas,
            precision=precision,
        )

    def encode(self) -> dict[str, Any]:
        """Return the spec as one flat table of plain data, for spec.json."""
        own: dict[str, Any] = encode(self)
        training = own.pop("training")
        table = {key: value for key, value in training.items() if key not in BUDGET_KINDS} | own
        table |= {"version": VERSION, "budget": self.training.budget.encode()}
        return {key: table[key] for key in _FIRST} | table

    @classmethod
    def decode(cls, data: object) -> "AttemptSpec":
        """Read plain data; raise InvalidConfiguration naming the key that is wrong."""
        table = dict(decode(dict, data, "spec", InvalidConfiguration))
        version = decode(int, table.pop("version", None), "spec.version", InvalidConfiguration)
        if version != VERSION:
            raise InvalidConfiguration(f"`spec.version` is {version}, this worker reads {VERSION}")
        names = {item.name for item in fields(cls)} - {"training"}
        own = {key: table.pop(key) for key in names & table.keys()}
        table |= _budget(table.pop("budget", None))
        # In the file the keys of the training stand among the others, and errors say so.
        decode(Training, table, "spec", InvalidConfiguration)
        return decode(cls, own | {"training": table}, "spec", InvalidConfiguration)

    @classmethod
    def read(cls, path: Path) -> "AttemptSpec":
        """Read spec.json; raise EnvironmentNotReady when it cannot be read at all."""
        with os_errors_as(EnvironmentNotReady, f"cannot read {path}"):
            text = path.read_text(encoding="utf-8")
        try:
            return cls.decode(json.loads(text))
        except json.JSONDecodeError as exc:
            raise InvalidConfiguration(f"{path} is not JSON: {exc}") from exc


def spec_of(saved: SavedFile) -> AttemptSpec:
    """Return the spec of the training that a saved file is from; raises InvalidModel."""
    try:
        return AttemptSpec.decode(saved.card.spec)
    except InvalidConfiguration as exc:
        raise unreadable(saved, exc) from exc


def unreadable(saved: SavedFile, error: ElmanError) -> InvalidModel:
    """Return the error for a saved file whose training this version of elmanctl does not know."""
    versions = saved.card.result.get("versions")
    wrote = versions.get("elmanctl") if isinstance(versions, Mapping) else None
    return InvalidModel(
        f"{saved.path} is of a training that this elmanctl does not know: {error.message}",
        hint=f"elmanctl {wrote} wrote it; use that one, or a newer one"
        if wrote
        else "use the elmanctl that wrote it, or a newer one",
    )


def _budget(data: object) -> dict[str, float]:
    """Return the field of `Training` that a spec's budget sets."""
    table = decode(dict, data, "spec.budget", InvalidConfiguration)
    if len(table) != 1 or not table.keys() <= set(BUDGET_KINDS):
        raise InvalidConfiguration(
            f"`spec.budget` names exactly one of {', '.join(BUDGET_KINDS)}, not {describe(table)}"
        )
    ((kind, amount),) = table.items()
    number = int if kind in ("steps", "tokens") else float
    return {kind: decode(number, amount, f"spec.budget.{kind}", InvalidConfiguration)}
