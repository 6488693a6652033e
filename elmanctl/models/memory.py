"""About how much memory a training step takes, as arithmetic without torch.

The activations are those of backend `torch`.  tests/models/test_memory.py counts what autograd
saves there in float32.  For 43 configurations of all families at `dim` 128, and 15 of them also at
256, the estimate of a layer was 0.76 (LSTM) to 1.45 times that (LSTM with one set of biases), for
all but the LSTM 0.93 to 1.10 times.  Under autocast to bfloat16 layers kept 0.56 (transformer) to
1.04 (MinGRU) of what they keep in float32, because states and decays stay float32; the estimate
counts float32 for either.  The fast kernels on a GPU keep less than that: this is the upper side.
Backend `triton` of E88 and its relatives, for one, keeps what was projected and one state in 16
positions, and none of the keys, queries, deltas and read-outs of `saved_elements`.
"""

from elmanctl.models.config import VOCABULARY, FamilyConfig

# float32 each: the parameter, its gradient, and two buffers of schedule-free AdamW.
_BYTES_A_PARAMETER = 16

# Autocast keeps a copy of every weight for the length of a step.
_BYTES_OF_A_BF16_COPY = 2

_BYTES_A_NUMBER = 4

# The cross entropy keeps logits and their probabilities in float32.
_BYTES_A_LOGIT = 8


def training_memory_bytes(
    config: FamilyConfig, *, micro_batch: int, seq_len: int, precision: str
) -> int:
    """Return an estimate of the memory that a step holds at its fullest, in bytes.

    Parameters with what belongs to them in `precision` (fp32 or bf16), the activations that every
    layer keeps for its gradient beside the residual, and the logits.  What a library takes for
    itself is left out.
    """
    parameters = (
        VOCABULARY * config.dim
        + config.depth * config.layer_parameters()
        + config.norm_parameters()
    )
    copy = _BYTES_OF_A_BF16_COPY if precision == "bf16" else 0
    activations = micro_batch * seq_len * activation_bytes(config, seq_len)
    return (_BYTES_A_PARAMETER + copy) * parameters + activations


def activation_bytes(config: FamilyConfig, seq_len: int) -> int:
    """Return an estimate of what one token keeps for the gradient, in bytes."""
    layers = config.depth * (config.layer_activations(seq_len) + config.dim)
    return _BYTES_A_NUMBER * layers + _BYTES_A_LOGIT * VOCABULARY
