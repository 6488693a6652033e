"""Fingerprint of a training's state: what two trainings share if one can go on from the other."""

import hashlib
import json

from elmanctl.run.spec import AttemptSpec

# What may differ between an attempt and the one that resumes it: a step is the same whatever part
# of it is held in memory at once, wherever it is computed, and however many follow it.
_MAY_DIFFER = (
    *("run", "evaluation", "attempt", "micro_batch", "timeout_min", "heartbeat_s", "device"),
    *("checkpoint_min", "continues_from", "protocol", "budget", "keep", "keep_below"),
    *("micro_batches", "activation_checkpointing", "metrics", "stoppable"),
    *("gpus", "nodes", "parallel", "starts_from", "origin"),
)


def spec_fingerprint(spec: AttemptSpec, precision: str) -> str:
    """Return a digest of what two attempts must share for one to resume the other.

    `precision` is the one that is used, fp32 or bf16.
    """
    data = {key: value for key, value in spec.encode().items() if key not in _MAY_DIFFER}
    corpus = {key: data["data"][key] for key in ("sha256", "size_bytes")}
    if spec.training.exchange_every > 1:
        # Each rank makes steps of its own.
        data["ranks"] = spec.training.ranks
    text = json.dumps(data | {"data": corpus, "precision": precision}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
