"""Training of one attempt, from its spec to the entries of its result.

This is the part of the worker that needs torch.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from elmanctl import clock
from elmanctl.codec import encode
from elmanctl.jobs import tensor_file
from elmanctl.jobs.checkpoints import Checkpoints
from elmanctl.jobs.data import ByteStream, HeldOutWindows, held_out_windows
from elmanctl.jobs.device import (
    choose_device,
    device_name,
    held_by_others_bytes,
    use_threads,
)
from elmanctl.jobs.early_stop import EarlyStop
from elmanctl.jobs.micro_batch import MicroBatch
from elmanctl.jobs.outcome import TrainOutcome
from elmanctl.jobs.parallel import whole
from elmanctl.jobs.ranks import Ranks
from elmanctl.jobs.signals import Warned
from elmanctl.jobs.train import train, versions
from elmanctl.jobs.training_loop import Report
from elmanctl.ledger.records import Verdict
from elmanctl.models.registry import build_model, decode_config
from elmanctl.run.corpus import CorpusInfo, corpus_name, verify
from elmanctl.run.paths import AttemptPaths, RunPaths
from elmanctl.run.saved_file import CHECKPOINT, MODEL, Card
from elmanctl.run.spec import AttemptSpec
from elmanctl.run.split import Split, check_split, find_split

logger = logging.getLogger(__name__)


class AttemptTraining:
    """The training of an attempt, its checkpoints, and the model that it keeps."""

    def __init__(
        self,
        paths: AttemptPaths,
        spec: AttemptSpec,
        *,
        is_restart: bool,
        warned: Warned,
        note: Callable[[int, str | None], None],
        ranks: Ranks | None = None,
        early_stop: EarlyStop | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._early_stop = early_stop
        self._paths = paths
        self._spec = spec
        self._compared_by: str | None = None
        self._kept: dict[str, Any] = {}
        self._micro_batch: MicroBatch | None = None
        self._memory: dict[str, Any] = {}
        self._checkpoints = None
        if spec.training.checkpoint_min or CHECKPOINT in spec.keep:
            self._checkpoints = Checkpoints(
                paths, spec, is_restart=is_restart, warned=warned, note=note, ranks=self._ranks
            )

    def run(self, report: Report) -> tuple[Verdict, dict[str, Any]]:
        """Train, and return the verdict and the entries of the result."""
        spec, training = self._spec, self._spec.training
        use_threads(training.threads)
        split = self._verified_split()
        device = choose_device(training.device, self._ranks.gpu)
        name, others_bytes = device_name(device), held_by_others_bytes(device)
        # The ranks may have unlike devices, and make as many forward passes.
        remembered = self._ranks.least(spec.micro_batches.get(name, training.batch))
        self._micro_batch = MicroBatch(training, remembered=remembered)
        self._memory = {"device_name": name}
        if others_bytes is not None:
            self._memory["held_by_others_bytes"] = others_bytes
        model = build_model(
            decode_config(spec.level, spec.config),
            seed=training.seed,
            backend=training.backend,
            device=device.type,
        )
        outcome = train(
            model,
            ByteStream(Path(spec.data.path), split, training.sampler),
            spec,
            report,
            self._checkpoints,
            self._held_out(split),
            self._keep_model if MODEL in spec.keep else None,
            self._micro_batch,
            self._ranks,
            self._early_stop,
        )
        verdict = outcome.verdict(
            f"{self._paths.name_in_run}/{self._paths.metrics.name}",
            steps_before=0 if self._checkpoints is None else self._checkpoints.steps_before,
        )
        return verdict, self._entries(outcome) | self._kept

    def record(self) -> dict[str, Any]:
        """Return the entries of the result about memory and checkpoints, of a failed one too."""
        return {
            **self._memory,
            **({} if self._micro_batch is None else self._micro_batch.record()),
            **({} if self._checkpoints is None else self._checkpoints.record()),
        }

    def discard(self) -> None:
        """Remove the checkpoints that nothing needs once the result is written."""
        if self._checkpoints is not None:
            self._checkpoints.discard()

    def _verified_split(self) -> Split:
        data, holdout = self._spec.data, self._spec.training.holdout
        corpus = CorpusInfo(path=Path(data.path), size_bytes=data.size_bytes, sha256=data.sha256)
        self._compared_by = verify(corpus)
        split = find_split(corpus, holdout, RunPaths(self._paths.run_folder).split)
        check_split(split, holdout)
        return split

    def _held_out(self, split: Split) -> HeldOutWindows | None:
        if not len(split.held_out):
            return None
        training, path = self._spec.training, Path(self._spec.data.path)
        return held_out_windows(path, split, count=training.val_windows, seq_len=training.seq_len)

    def _entries(self, outcome: TrainOutcome) -> dict[str, Any]:
        spec, training = self._spec, self._spec.training
        protocol = spec.protocol(outcome.precision)
        return {
            **encode(outcome),
            **({"origin": dict(spec.origin)} if spec.origin else {}),
            "seed": training.seed,
            "lr": training.lr,
            "protocol_name": training.protocol,
            "protocol": protocol.encode(),
            "fingerprint": protocol.fingerprint,
            "corpus": corpus_name(Path(spec.data.path)),
            "corpus_compared_by": self._compared_by,
            "versions": versions(),
        }

    def _keep_model(self, outcome: TrainOutcome, model: nn.Module) -> None:
        """Write the averaged weights, unless others are better; without room, go on without."""
        below = self._spec.keep_below
        if outcome.loss is None or (below is not None and outcome.loss >= below):
            return
        tensors = model.state_dict()
        for name, tensor in tensors.items() if self._ranks.count > 1 else ():
            # The first rank puts the model together on the host; no GPU need hold all of it.
            together = whole(tensor)
            tensors[name] = together.cpu() if self._ranks.is_first else together[:0]
        if not self._ranks.is_first:
            return
        card = Card(
            kind=MODEL,
            spec=self._spec.encode(),
            result=self._entries(outcome),
            saved_at=clock.to_text(clock.now()),
        )
        try:
            size_bytes = tensor_file.write(self._paths.model, tensors, card)
        except OSError as exc:
            logger.warning("the model was not kept: %s", exc.strerror)
            self._kept = {"model_not_kept": exc.strerror}
        else:
            logger.info("kept the model, %.1f MB", size_bytes / 1e6)
            self._kept = {"model_size_bytes": size_bytes}
