"""Pruning of models: a controller removes those that better ones have overtaken."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from elmanctl.ledger.disk import Found, category_of
from elmanctl.ledger.records import Attempt, Evaluation
from elmanctl.run.frozen_code import knows_spec_key
from elmanctl.run.saved_file import MODEL
from elmanctl.search.cleaning import remove_planned
from elmanctl.search.file_owners import MODELS, OwnedFile
from elmanctl.search.kept_models import kept_files, loss_to_beat
from elmanctl.search.session import Session


class ModelPruning:
    """Keeps the models of a run that a controller drives to those of the best."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._knows = knows_spec_key(session.paths.code, "keep")
        self._is_due = True
        # Those that may have left a model, whole or in part: all on record, then each new one.
        self._evaluations = {
            e.id for e in session.state.evaluations.values() if any(map(_has_left, e.attempts))
        }

    def asked(self) -> Mapping[str, Any]:
        """Return the fields of the specs of attempts from now on, by which models are kept."""
        session = self._session
        if not self._knows or not session.settings.disk.keep_models:
            return {}
        return {"keep": (MODEL,), "keep_below": loss_to_beat(session.state, session.settings)}

    def add(self, evaluation: Evaluation) -> None:
        """Note that an attempt was judged, which may have left a model."""
        if any(map(_has_left, evaluation.attempts)):
            self._evaluations.add(evaluation.id)
            self._is_due = True

    def prune(self, *, is_end: bool = False) -> None:
        """Remove what finished evaluations have left that is not to be kept, and record it.

        At the end of a search fewer are kept, since it is known which one has won.
        """
        if not self._is_due and not is_end:
            return
        self._is_due = False
        session, evaluations = self._session, self._session.state.evaluations
        finished = {name for name in self._evaluations if evaluations[name].state.is_finished}
        if not finished:
            return
        kept = kept_files(session.paths, session.state, session.settings)
        found = [file for name in sorted(finished) for file in self._files(evaluations[name])]
        if overtaken := [file for file in found if Path(*file.found.parts) not in kept]:
            remove_planned(session, overtaken)
        self._evaluations -= finished - {file.evaluation for file in found if file not in overtaken}

    def _files(self, evaluation: Evaluation) -> Iterator[OwnedFile]:
        """Yield the models of an evaluation, with those that a killed worker was writing."""
        root = self._session.paths
        for attempt in filter(_has_left, evaluation.attempts):
            folder = root.attempt(evaluation.id, attempt.number).folder
            with suppress(FileNotFoundError, NotADirectoryError):
                for path in sorted(folder.iterdir()):
                    if category_of(path.name) == MODEL:
                        parts = path.relative_to(root.folder).parts
                        yield OwnedFile(
                            found=Found(parts=parts, status=path.lstat()),
                            category=MODEL,
                            kind=MODELS,
                            evaluation=evaluation.id,
                            attempt=attempt,
                        )


def _has_left(attempt: Attempt) -> bool:
    """Whether an attempt had left a model, or a part of one, when it was judged."""
    return MODEL in attempt.sizes or "model_size_bytes" in (attempt.result or {})
