"""Running totals of the bytes that the attempts of a run left on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

OTHER = "other"

# Not what every further attempt adds for good: a search keeps a fixed number of models.
_TRANSIENT = "model"

# What `clean` calls a kind of files, and the category in which their bytes were counted.
CATEGORY_OF_KIND: Mapping[str, str] = {
    "metrics": "metrics",
    "logs": "log",
    "pickles": "pickle",
    "checkpoints": "checkpoint",
    "models": "model",
    "temporaries": OTHER,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUse:
    """What a run's attempts wrote, by the ledger.

    `sizes` are bytes by category, less what cleaning freed; `written_bytes` is all but models that
    was ever written, by `evaluations` evaluations in `attempts` attempts.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    written_bytes: int = 0
    evaluations: int = 0
    attempts: int = 0

    @property
    def attempt_bytes(self) -> int | None:
        """What one attempt leaves on average, None before the first."""
        return -(-self.written_bytes // self.attempts) if self.attempts else None

    @property
    def evaluation_bytes(self) -> int | None:
        """What one evaluation leaves on average with all its attempts, None before the first."""
        return -(-self.written_bytes // self.evaluations) if self.evaluations else None

    def wrote(self, sizes: Mapping[str, int], *, new_evaluation: bool) -> "DiskUse":
        """Return the totals after one more attempt."""
        added = {name: self.sizes.get(name, 0) + size for name, size in sizes.items()}
        return replace(
            self,
            sizes={**self.sizes, **added},
            written_bytes=self.written_bytes + sum(sizes.values()) - sizes.get(_TRANSIENT, 0),
            evaluations=self.evaluations + new_evaluation,
            attempts=self.attempts + 1,
        )

    def freed(self, kind: str, freed_bytes: int) -> "DiskUse":
        """Return the totals after cleaning.

        What version 0.1 wrote is counted under `other`, so what its category does not hold is
        taken from there.
        """
        category = CATEGORY_OF_KIND.get(kind, OTHER)
        left = dict(self.sizes)
        for name in (category, OTHER):
            taken = min(freed_bytes, left.get(name, 0))
            freed_bytes -= taken
            if taken:
                left[name] -= taken
        return replace(self, sizes=left)
