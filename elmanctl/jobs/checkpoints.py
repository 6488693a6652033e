"""Checkpoints of one attempt: resuming from the newest, writing when due, removing at the end."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from elmanctl.errors import InvalidModel
from elmanctl.jobs.checkpoint import Content, Position, Trained, capture, read, save
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.shards import shards_beside
from elmanctl.jobs.signals import Warned
from elmanctl.run.paths import AttemptPaths
from elmanctl.run.saved_file import CHECKPOINT
from elmanctl.run.spec import AttemptSpec

logger = logging.getLogger(__name__)

# The largest share of the time that checkpoints of a second and more take: on a slow disk there are
# fewer than asked for.
MOST_STALL = 0.03
_SHORT_S = 1.0


class Checkpoints:
    """The checkpoints of a worker: every `train.checkpoint_min`, and the last if it is kept.

    `is_restart`: an earlier start of the same job may have left one in the attempt's own folder.
    `warned` is set when the end is near, which makes a checkpoint due at once.  `note` is called
    with the step of each checkpoint, and with the error if it could not be written.
    """

    def __init__(
        self,
        paths: AttemptPaths,
        spec: AttemptSpec,
        *,
        is_restart: bool,
        warned: Warned,
        note: Callable[[int, str | None], None],
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._paths = paths
        self._spec = spec
        self._interval_s = spec.training.checkpoint_min * 60 or math.inf
        self._keeps_last = CHECKPOINT in spec.keep
        self._earlier = [AttemptPaths(paths.folder.parent / n) for n in spec.continues_from]
        self._sources: list[tuple[str, Path, dict[str, Any]]] = [
            (one.folder.name, one.checkpoint, {"attempt": int(name.removeprefix("attempt-"))})
            for name, one in zip(spec.continues_from, self._earlier, strict=True)
        ]
        if is_restart:
            own = (paths.folder.name, paths.checkpoint, {"attempt": spec.attempt})
            self._sources.insert(0, own)
        self._note = note
        self._warned = warned
        self._last = time.monotonic()
        self._took_s = 0.0
        self._continued_from: dict[str, Any] | None = None
        self._reasons: list[str] = []
        self._written = 0
        if self._ranks.is_first:
            _remove(_temporaries(paths))

    def find(self, trained: Trained) -> Content | None:
        """Return the newest state that fits, None if the training starts from scratch.

        Raises InvalidModel where the one that a longer training was asked to go on from does not:
        days of training are not begun anew because a file is damaged.
        """
        for name, path, origin in self._sources:
            content, reason = read(path, trained)
            step = 0 if content is None else int(content.state["position"]["steps"])
            if self._ranks.least(step) < self._ranks.most(step) and content is not None:
                content, reason = None, "another rank cannot read its checkpoint, or reads another"
            if content is not None:
                self._continued_from = {**origin, "step": step}
                logger.info("resuming from the checkpoint of %s, step %d", name, step)
                break
            self._reasons.append(f"{name}: {reason}")
            logger.warning("not resuming from %s: %s", name, reason)
        if self._continued_from is None and self._spec.starts_from is not None:
            content = self._asked_for(Path(self._spec.starts_from), trained)
        self._last = time.monotonic()
        return content if self._continued_from else None

    def _asked_for(self, path: Path, trained: Trained) -> Content:
        """Return the state of another training that this one was asked to go on from."""
        content, reason = read(path, trained)
        if self._ranks.any(content is None) or content is None:
            raise InvalidModel(
                f"cannot go on from {path}: {reason or 'another rank cannot read it'}",
                hint="`elmanctl eval --from` a file of kind model begins at step 1",
            )
        step = int(content.state["position"]["steps"])
        source = self._spec.origin.get("source", str(path))
        self._continued_from = {"source": source, "step": step}
        logger.info("going on from %s, step %d", path, step)
        return content

    @property
    def steps_before(self) -> int:
        """The number of steps made by earlier starts or attempts."""
        return 0 if self._continued_from is None else int(self._continued_from["step"])

    @property
    def is_due(self) -> bool:
        """Whether a checkpoint is due."""
        rest_s = self._took_s / MOST_STALL if self._took_s > _SHORT_S else 0.0
        interval_s = max(self._interval_s, rest_s)
        return self._warned.is_pending or time.monotonic() - self._last >= interval_s

    def write(self, trained: Trained, position: Position) -> None:
        """Write a checkpoint; if that fails, the training continues without it."""
        self._warned.is_pending = False
        began = time.monotonic()
        try:
            content = capture(trained, position)
            size_bytes = save(content, self._paths.checkpoint, self._spec, self._ranks)
        except (OSError, RuntimeError) as exc:
            # An error of the GPU itself is raised again by the next step.
            error = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)
            logger.warning("the checkpoint of step %d was not written: %s", position.steps, error)
            self._note(position.steps, error)
            self._took_s = time.monotonic() - began
        else:
            took_s = self._took_s = time.monotonic() - began
            logger.info(
                "checkpoint of step %d: %.1f MB in %.2f s", position.steps, size_bytes / 1e6, took_s
            )
            self._written += 1
            self._note(position.steps, None)
            if self._ranks.is_first:
                self._remove_earlier()
        # The interval starts now: on a slow disk the training must still make progress.
        self._last = time.monotonic()

    def write_last(self, trained: Trained, position: Position) -> None:
        """Write the state at the end of the budget, for a longer training, if it is kept."""
        if self._keeps_last:
            self.write(trained, position)

    def record(self) -> dict[str, Any]:
        """Return the entries of the result about checkpoints."""
        reasons = {"not_continued": "; ".join(self._reasons)} if self._reasons else {}
        written = {"checkpoints_written": self._written}
        return {"continued_from": self._continued_from, **reasons, **written}

    def discard(self) -> None:
        """Remove the checkpoints of this attempt, unless the last is kept, and earlier ones."""
        path = self._paths.checkpoint
        own = [] if self._keeps_last else [path, *shards_beside(path)]
        _remove([*own, *_temporaries(self._paths)])
        self._remove_earlier()

    def _remove_earlier(self) -> None:
        for paths in self._earlier:
            path = paths.checkpoint
            _remove([path, *shards_beside(path), *_temporaries(paths)])


def _temporaries(paths: AttemptPaths) -> Iterator[Path]:
    """Yield the partial files of workers that were killed while they wrote."""
    yield from sorted(paths.folder.glob(f"{paths.checkpoint.stem}*{paths.checkpoint.suffix}.*.tmp"))


def _remove(files: Iterator[Path] | list[Path]) -> None:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as exc:
            logger.warning("%s was not removed: %s", path, exc.strerror)
