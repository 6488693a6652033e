"""Recordings: evaluated points of earlier searches, from ledgers or from a file of JSON lines.

A line with `axes` begins a recording; the lines after it are its evaluations:

    {"name": "gru", "axes": {"depth": {"kind": "int", "low": 8, "high": 40}}}
    {"values": {"depth": 12}, "loss": 1.41}
    {"values": {"depth": 40}, "loss": null}
    {"values": {"depth": 13}, "invalid": true}

The axes are described as in `[search.axes]`.  A loss of null is a training that failed, an invalid
configuration one that was refused before it.
"""

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elmanctl import codec
from elmanctl.codec import json_field
from elmanctl.errors import ConfigError, ElmanError, NotFound, UsageError
from elmanctl.ledger.records import State
from elmanctl.ledger.run_state import RunState
from elmanctl.replay.objective import values_at
from elmanctl.search.fitness import feedback_on
from elmanctl.search.noise import pooled, sample_sd
from elmanctl.space.axis import Axis, Value
from elmanctl.space.space import SearchSpace
from elmanctl.verdicts.policy import Feedback

# Repeats of the better half of the configurations say what the noise is where it matters; with
# fewer degrees of freedom there, those of all do.
_LEAST_DEGREES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One evaluation: a point, and its loss; None for one that failed or was invalid."""

    point: tuple[float, ...]
    loss: float | None
    is_invalid: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The evaluations of a search, on its axes."""

    name: str
    axes: tuple[Axis, ...]
    evaluations: tuple[Recorded, ...]

    @property
    def losses(self) -> list[tuple[tuple[float, ...], float]]:
        """Every point with a loss, in order."""
        return [(each.point, each.loss) for each in self.evaluations if each.loss is not None]

    @property
    def invalid(self) -> list[tuple[float, ...]]:
        """Every point that was refused, in order."""
        return [each.point for each in self.evaluations if each.is_invalid]

    @property
    def failure_share(self) -> float:
        """The share of trainings that failed."""
        trained = [each for each in self.evaluations if not each.is_invalid]
        return sum(each.loss is None for each in trained) / max(1, len(trained))

    def noise(self) -> tuple[float, int] | None:
        """Return the standard deviation of repeats, and its degrees of freedom; None without any.

        Of the better half of the configurations, where they were repeated often enough: bad ones
        vary more.
        """
        groups: dict[tuple[Value, ...], list[float]] = {}
        for point, loss in self.losses:
            groups.setdefault(values_at(self.axes, point), []).append(loss)
        ordered = sorted(groups.values(), key=lambda losses: math.fsum(losses) / len(losses))
        for kept in (ordered[: (len(ordered) + 1) // 2], ordered):
            found = pooled(_Spread(n=len(losses), sd=sample_sd(losses)) for losses in kept)
            if found is not None and (found.degrees >= _LEAST_DEGREES or kept is ordered):
                return found.sd, found.degrees
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spread:
    n: int
    sd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The line that begins a recording."""

    axes: Mapping[str, object]
    name: str | None = json_field(default=None, omit=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """The line of an evaluation."""

    values: Mapping[str, object]
    loss: float | None = json_field(default=None, omit=True)
    invalid: bool = json_field(default=False, omit=True)


def recording_of(state: RunState) -> Recording:
    """Return what a run recorded: confirmations are repeats, answered repeats are nothing.

    Failures are those that the optimizer learns of; others say nothing about their point.  What was
    swept is an axis like the others.
    """
    found = []
    searched = SearchSpace.decode(state.run["space"])
    space = searched.whole
    swept = space.axes[len(searched.axes) :]
    for evaluation in state.evaluations.values():
        if evaluation.answer is not None:
            continue
        values = evaluation.hyperparameters
        point = (*evaluation.point, *(axis.position(values[axis.name]) for axis in swept))
        if evaluation.state is State.COMPLETED and evaluation.loss is not None:
            found.append(Recorded(point=point, loss=evaluation.loss))
        elif feedback_on(evaluation) is Feedback.LAST:
            found.append(Recorded(point=point, loss=None))
    return Recording(name=state.run["name"], axes=space.axes, evaluations=tuple(found))


def read_recordings(path: Path) -> list[Recording]:
    """Return the recordings in a file of JSON lines, which may be compressed by gzip.

    Raises NotFound, and UsageError that names the first line that cannot be read.
    """
    return list(_recordings(path))


def _recordings(path: Path) -> Iterator[Recording]:
    head: tuple[str, tuple[Axis, ...]] | None = None
    found: list[Recorded] = []
    number = 0
    for number, data in _lines(path):
        try:
            if isinstance(data, dict) and "axes" in data:
                if head is not None:
                    yield Recording(name=head[0], axes=head[1], evaluations=tuple(found))
                head, found = _head(data, path), []
            elif head is None:
                raise ConfigError("comes before any line with `axes`")
            else:
                found.append(_evaluation(data, head[1]))
        except ElmanError as exc:
            raise UsageError(f"{path} line {number}: {exc.message}", hint=exc.hint) from exc
    if head is None:
        raise UsageError(
            f"{path}: no line has `axes`",
            hint='begin with e.g. {"axes": {"depth": {"kind": "int", "low": 8, "high": 40}}}',
        )
    yield Recording(name=head[0], axes=head[1], evaluations=tuple(found))


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError as exc:
                        raise UsageError(f"{path} line {number}: not JSON: {exc}") from exc
    except FileNotFoundError as exc:
        raise NotFound(f"no such file: {path}") from exc
    except (OSError, UnicodeDecodeError, EOFError) as exc:
        raise UsageError(f"{path} cannot be read: {exc}") from exc


def _head(data: dict[str, Any], path: Path) -> tuple[str, tuple[Axis, ...]]:
    head = codec.decode(_Head, data, "recording", ConfigError)
    axes = tuple(Axis.decode(name, table) for name, table in head.axes.items())
    if not axes:
        raise ConfigError("a recording needs an axis")
    return head.name or path.name.partition(".")[0], axes


def _evaluation(data: object, axes: tuple[Axis, ...]) -> Recorded:
    line = codec.decode(_Line, data, "evaluation", ConfigError)
    missing = [axis.name for axis in axes if axis.name not in line.values]
    if missing:
        raise ConfigError(f"`values` lacks `{missing[0]}`")
    point = tuple(axis.position(line.values[axis.name]) for axis in axes)
    # What JSON has no number for, and some programs write all the same.
    is_finite = line.loss is not None and math.isfinite(line.loss)
    loss = line.loss if is_finite and not line.invalid else None
    return Recorded(point=point, loss=loss, is_invalid=line.invalid)
