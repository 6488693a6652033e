"""How large an operation is: sequences, positions, heads, and the state of one head."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of one call; an operation without matrix states has one key and one value a head."""

    batch: int
    length: int
    heads: int
    keys: int = 1
    values: int = 1

    @property
    def tokens(self) -> int:
        """Positions of all sequences together."""
        return self.batch * self.length

    @property
    def head_steps(self) -> int:
        """Positions of all heads of all sequences together."""
        return self.tokens * self.heads

    @property
    def label(self) -> str:
        """The size in letters, as in `B16 T512 H83 n32`."""
        if self.keys == self.values == 1:
            state = f"D{self.heads}"
        elif self.keys == self.values:
            state = f"H{self.heads} n{self.keys}"
        else:
            state = f"H{self.heads} K{self.keys} V{self.values}"
        return f"B{self.batch} T{self.length} {state}"


def matrix_size(batch: int, length: int, heads: int, keys: int, values: int | None = None) -> Size:
    """Return a size with matrix states, square where the values are left out."""
    return Size(
        batch=batch,
        length=length,
        heads=heads,
        keys=keys,
        values=keys if values is None else values,
    )
