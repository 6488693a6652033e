"""Size of an operation: sequences, positions, heads, and the state of one head."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Size of one call; without matrix states a head has one key and one value."""

    batch: int
    length: int
    heads: int
    keys: int = 1
    values: int = 1

    @property
    def tokens(self) -> int:
        """Total positions of all sequences."""
        return self.batch * self.length

    @property
    def head_steps(self) -> int:
        """Total positions of all heads of all sequences."""
        return self.tokens * self.heads

    @property
    def label(self) -> str:
        """Short label, such as `B16 T512 H83 n32`."""
        if self.keys == self.values == 1:
            state = f"D{self.heads}"
        elif self.keys == self.values:
            state = f"H{self.heads} n{self.keys}"
        else:
            state = f"H{self.heads} K{self.keys} V{self.values}"
        return f"B{self.batch} T{self.length} {state}"


def matrix_size(batch: int, length: int, heads: int, keys: int, values: int | None = None) -> Size:
    """Return a size with matrix states, which are square by default."""
    return Size(batch=batch, length=length, heads=heads, keys=keys, values=values or keys)
