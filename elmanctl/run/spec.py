"""What the worker of one attempt is asked to do: the contents of spec.json."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from elmanctl.constants import DEVICES, PRECISIONS
from elmanctl.errors import EnvironmentNotReady, InvalidConfiguration
from elmanctl.run.protocol import BETAS, Budget, Protocol

VERSION = 1

# Left out where they ask for nothing.
_OPTIONAL = ("checkpoint_min", "continues_from")

_ATTEMPT_FOLDER = re.compile(r"attempt-[1-9]\d*")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The corpus: where it is and which bytes it must hold."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSpec:
    """Everything a worker needs; the attempt's folder is where it was read from.

    `batch` is the sequences of one step and `micro_batch` those held in memory at once (0: all),
    `seq_len` the bytes predicted in one sequence.  `precision` auto is bf16 autocast over fp32
    weights on CUDA and fp32 on the CPU; `threads` 0 leaves the number to torch.
    `checkpoint_min` minutes part two checkpoints (0: none), and `continues_from` names the
    folders of earlier attempts whose checkpoints may be gone on from, the newest first.
    """

    run: str
    evaluation: str
    attempt: int
    level: str
    config: Mapping[str, Any]
    parameters_expected: int
    seed: int
    lr: float
    budget: Budget
    batch: int
    micro_batch: int = 0
    seq_len: int
    warmup_steps: int
    grad_clip: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = BETAS
    precision: str = "auto"
    data: DataSpec
    device: str = "auto"
    backend: str = "auto"
    threads: int = 0
    heartbeat_s: float = 10.0
    timeout_min: float
    checkpoint_min: float = 0.0
    continues_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("attempt", "parameters_expected", "batch", "seq_len"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "micro_batch", "warmup_steps", "threads"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "heartbeat_s", "timeout_min"):
            self._require(name, 0 < getattr(self, name) < math.inf, "above 0 and finite")
        for name in ("grad_clip", "weight_decay", "checkpoint_min"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "at least 0 and finite")
        self._require("betas", all(0 < beta < 1 for beta in self.betas), "between 0 and 1")
        self._require("precision", self.precision in PRECISIONS, f"one of {PRECISIONS}")
        self._require("device", self.device in DEVICES, f"one of {DEVICES}")
        folders = all(_ATTEMPT_FOLDER.fullmatch(name) for name in self.continues_from)
        self._require("continues_from", folders, "a list of names such as attempt-1")

    @property
    def tokens_per_step(self) -> int:
        """Bytes predicted in one step, whatever the micro-batch."""
        return self.batch * self.seq_len

    def protocol(self, precision: str) -> Protocol:
        """Return the protocol of this attempt when it runs in `precision` (fp32 or bf16)."""
        return Protocol(
            corpus_sha256=self.data.sha256,
            corpus_size_bytes=self.data.size_bytes,
            budget=self.budget,
            tokens_per_step=self.tokens_per_step,
            seq_len=self.seq_len,
            warmup_steps=self.warmup_steps,
            betas=self.betas,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            precision=precision,
        )

    def encode(self) -> dict[str, Any]:
        """Return the spec as plain data, for spec.json."""
        data = asdict(self) | {"budget": self.budget.encode(), "betas": list(self.betas)}
        data["continues_from"] = list(self.continues_from)
        # The frozen code of an older run refuses keys that it does not know.
        kept = {k: v for k, v in data.items() if v or k not in _OPTIONAL}
        return {"version": VERSION} | kept

    @classmethod
    def decode(cls, data: object) -> "AttemptSpec":
        """Read plain data; raise InvalidConfiguration naming the key that is wrong."""
        table = _Table(data, "spec")
        version = table.take("version", int)
        if version != VERSION:
            raise InvalidConfiguration(f"spec.version: {version}, this worker reads {VERSION}")
        corpus = _Table(table.take("data", dict), "spec.data")
        spec = cls(
            run=table.take("run", str),
            evaluation=table.take("evaluation", str),
            attempt=table.take("attempt", int),
            level=table.take("level", str),
            config=table.take("config", dict),
            parameters_expected=table.take("parameters_expected", int),
            seed=table.take("seed", int),
            lr=table.take("lr", float),
            budget=table.take_budget(),
            batch=table.take("batch", int),
            micro_batch=table.take("micro_batch", int),
            seq_len=table.take("seq_len", int),
            warmup_steps=table.take("warmup_steps", int),
            grad_clip=table.take("grad_clip", float),
            weight_decay=table.take("weight_decay", float),
            betas=table.take_pair("betas"),
            precision=table.take("precision", str),
            data=DataSpec(
                path=corpus.take("path", str),
                sha256=corpus.take("sha256", str),
                size_bytes=corpus.take("size_bytes", int),
            ),
            device=table.take("device", str),
            backend=table.take("backend", str),
            threads=table.take("threads", int),
            heartbeat_s=table.take("heartbeat_s", float),
            timeout_min=table.take("timeout_min", float),
            checkpoint_min=table.take_or("checkpoint_min", 0.0),
            continues_from=table.take_names("continues_from"),
        )
        corpus.refuse_the_rest()
        table.refuse_the_rest()
        return spec

    @classmethod
    def read(cls, path: Path) -> "AttemptSpec":
        """Read spec.json; raise EnvironmentNotReady when it cannot be read at all."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as exc:
            raise EnvironmentNotReady(f"cannot read {path}: {exc.strerror}") from exc
        try:
            return cls.decode(json.loads(text))
        except json.JSONDecodeError as exc:
            raise InvalidConfiguration(f"{path} is not JSON: {exc}") from exc

    def _require(self, name: str, is_met: bool, what: str) -> None:
        if not is_met:
            raise InvalidConfiguration(f"spec.{name}: {getattr(self, name)!r} is not {what}")


class _Table:
    """One JSON object that is read key by key; a wrong key or type is named by its path."""

    def __init__(self, data: object, path: str) -> None:
        if not isinstance(data, dict):
            raise InvalidConfiguration(f"{path}: not an object but {type(data).__name__}")
        self._rest: dict[str, Any] = dict(data)
        self._path = path

    def take(self, key: str, kind: type[_T]) -> _T:
        """Return the value of `key`; a whole number is accepted as a fraction."""
        if key not in self._rest:
            raise InvalidConfiguration(f"{self._path}.{key}: missing")
        value = self._rest.pop(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InvalidConfiguration(
                f"{self._path}.{key}: expected {kind.__name__}, not {type(value).__name__}"
            )
        return value

    def take_or(self, key: str, default: float) -> float:
        """Return a number that may be missing."""
        return self.take(key, float) if key in self._rest else default

    def take_names(self, key: str) -> tuple[str, ...]:
        """Return a list of texts that may be missing."""
        values = self.take(key, list) if key in self._rest else []
        if not all(isinstance(value, str) for value in values):
            raise InvalidConfiguration(f"{self._path}.{key}: expected texts, not {values}")
        return tuple(values)

    def take_budget(self) -> Budget:
        """Return the training budget."""
        try:
            return Budget.decode(self.take("budget", dict))
        except InvalidConfiguration as exc:
            raise InvalidConfiguration(f"{self._path}.budget: {exc.message}") from exc

    def take_pair(self, key: str) -> tuple[float, float]:
        """Return a list of two numbers."""
        values = self.take(key, list)
        if len(values) != 2 or not all(isinstance(value, float) for value in values):
            raise InvalidConfiguration(f"{self._path}.{key}: expected two numbers, not {values}")
        return (values[0], values[1])

    def refuse_the_rest(self) -> None:
        """Raise InvalidConfiguration when a key was not taken."""
        if self._rest:
            names = ", ".join(f"{self._path}.{key}" for key in sorted(self._rest))
            raise InvalidConfiguration(f"unknown: {names}")
