"""Pruning of models: a controller removes those that better ones have overtaken."""

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from elmanctl.ledger.disk import Found
from elmanctl.ledger.records import Evaluation
from elmanctl.run.frozen_code import knows_spec_key
from elmanctl.run.saved_file import MODEL
from elmanctl.search.cleaning import remove_planned
from elmanctl.search.file_owners import MODELS, OwnedFile
from elmanctl.search.kept_models import kept_evaluations, model_attempt, most_kept
from elmanctl.search.session import Session


class ModelPruning:
    """Keeps the models of a run that a controller drives to those of the best."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._knows = knows_spec_key(session.paths.code, "keep")
        self._is_due = True
        # Those that may have to go: all that are on record, and then each new one.
        self._present = {
            e.id for e in session.state.evaluations.values() if model_attempt(e) is not None
        }

    def asked(self) -> Mapping[str, Any]:
        """Return the fields of the specs of attempts from now on, by which models are kept."""
        session = self._session
        disk, search = session.settings.disk, session.settings.search
        if not self._knows or not disk.keep_models:
            return {}
        kept = kept_evaluations(session.state, disk, search)
        is_full = len(kept) >= most_kept(disk, search)
        return {"keep": (MODEL,), "keep_below": kept[-1].loss if is_full else None}

    def add(self, evaluation: Evaluation) -> None:
        """Note that an attempt was judged, which may have left a model."""
        if model_attempt(evaluation) is not None:
            self._present.add(evaluation.id)
        # The end of a confirmation changes which ones are kept, too.
        self._is_due = True

    def prune(self) -> None:
        """Remove the models of finished evaluations that are not to be kept, and record it."""
        if not self._is_due:
            return
        self._is_due = False
        session, settings = self._session, self._session.settings
        kept = {e.id for e in kept_evaluations(session.state, settings.disk, settings.search)}
        evaluations = session.state.evaluations
        overtaken = {e for e in self._present - kept if evaluations[e].state.is_finished}
        files = [file for name in sorted(overtaken) if (file := self._file(name)) is not None]
        if files:
            remove_planned(session, files)
        self._present -= overtaken

    def _file(self, name: str) -> OwnedFile | None:
        attempt = model_attempt(self._session.state.evaluations[name])
        assert attempt is not None
        path = self._session.paths.attempt(name, attempt.number).model
        with suppress(FileNotFoundError, NotADirectoryError):
            parts = path.relative_to(self._session.paths.folder).parts
            return OwnedFile(
                found=Found(parts=parts, status=os.lstat(path)),
                category=MODEL,
                kind=MODELS,
                evaluation=name,
                attempt=attempt,
            )
        return None
