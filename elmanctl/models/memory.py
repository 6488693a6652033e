"""Estimated memory of a training step, computed without torch.

Activations are those of backend `torch`.  tests/models/test_memory.py counts what autograd saves
there in float32: for 43 configurations of all families at `dim` 128, and 15 of them also at 256,
the ratio of the estimate of a layer to that count was 0.76 (LSTM) to 1.45 (LSTM with one set of
biases), and 0.93 to 1.10 for all families but the LSTM.  Under autocast to bfloat16 layers saved
0.56 (transformer) to 1.04 (MinGRU) of that, because states and decays stay float32; the estimate
assumes float32 for both.  The fast kernels on a GPU save less, so this is an upper estimate: for
example, backend `triton` of E88 and its relatives saves the projections and one state per 16
positions, but none of the keys, queries, deltas and read-outs of `saved_elements`.
"""

from elmanctl.constants import VOCABULARY
from elmanctl.models.config import FamilyConfig

# In float32: the parameter, its gradient, and two buffers of schedule-free AdamW.
_BYTES_PER_PARAMETER = 16

# Autocast caches a copy of every weight during a step.
_BYTES_PER_BF16_COPY = 2

_BYTES_PER_ELEMENT = 4

# The cross entropy saves logits and probabilities in float32.
_BYTES_PER_LOGIT = 8


def training_memory_bytes(
    config: FamilyConfig,
    *,
    micro_batch: int,
    seq_len: int,
    precision: str,
    is_recomputing: bool = False,
) -> int:
    """Return the estimated peak memory of a training step, in bytes.

    It comprises parameters, gradients and optimizer state in `precision` (fp32 or bf16), the
    activations that layers save in addition to the residual stream, and the logits, but no
    workspace of libraries.  With `is_recomputing` only one layer has its activations at a time.
    """
    copy = _BYTES_PER_BF16_COPY if precision == "bf16" else 0
    a_token = recomputed_bytes if is_recomputing else activation_bytes
    activations = micro_batch * seq_len * a_token(config, seq_len)
    return (_BYTES_PER_PARAMETER + copy) * config.parameters() + activations


def activation_bytes(config: FamilyConfig, seq_len: int) -> int:
    """Return the estimated activation memory per token, in bytes."""
    layers = config.depth * (config.layer_activations(seq_len) + config.dim)
    return _BYTES_PER_ELEMENT * layers + _BYTES_PER_LOGIT * VOCABULARY


def recomputed_bytes(config: FamilyConfig, seq_len: int) -> int:
    """Return the same where the backward pass recomputes the activations of layers."""
    stream = config.depth * config.sublayers * config.dim
    layers = stream + config.layer_activations(seq_len)
    return _BYTES_PER_ELEMENT * layers + _BYTES_PER_LOGIT * VOCABULARY
