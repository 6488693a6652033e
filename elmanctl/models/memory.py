"""About how much memory a training step takes, as arithmetic without torch."""

from elmanctl.models.config import VOCABULARY, FamilyConfig

# float32 each: the parameter, its gradient, and two buffers of schedule-free AdamW.
_BYTES_A_PARAMETER = 16

# The cross entropy keeps logits and their probabilities in float32.
_BYTES_A_LOGIT = 8


def training_memory_bytes(
    config: FamilyConfig, *, micro_batch: int, seq_len: int, precision: str
) -> int:
    """Return an estimate of the memory that a step holds at its fullest, in bytes.

    Parameters with what belongs to them, the activations that every layer keeps for its gradient
    in `precision` (fp32 or bf16) beside a residual in float32, and the logits.  What a library
    takes for itself is left out.
    """
    parameters = (
        VOCABULARY * config.dim
        + config.depth * config.layer_parameters()
        + config.norm_parameters()
    )
    each = 2 if precision == "bf16" else 4
    a_token = config.depth * (each * config.layer_activations(seq_len) + 4 * config.dim)
    tokens = micro_batch * seq_len
    return _BYTES_A_PARAMETER * parameters + tokens * (a_token + _BYTES_A_LOGIT * VOCABULARY)
