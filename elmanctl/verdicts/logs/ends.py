"""Declared end of a run: the last step that a log announced, for logs without a final line; pure.

A run announces how far it goes: `step 900/1000`, `epoch 3/3`, a progress bar, `max_steps=1000`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from elmanctl.verdicts.logs.reading import Piece, Reading

_OF = re.compile(
    r"(?i)\b(step|iter|iteration|epoch|update)s?(?:\(train\)|\b)\W{0,8}(\d{1,12})\]?\s{0,4}(?:/|of)\s{0,4}(\d{1,12})\b"
)
# The bars of tqdm and both of Keras.
_BAR = re.compile(r"\b(\d{1,12})/(\d{1,12})\s{1,4}(?:\[\d|\[=|━|- \d+m?s\b)")
_EPOCH = re.compile(r"(?i)\bepoch\b")
_STEP = re.compile(
    r"(?i)\b(?:step|iter|iteration|num_updates)\b\W{0,4}(\d{1,12})\b(?!\s{0,4}(?:/|of\b))"
)
_BOUND = re.compile(
    r"(?i)\b(?:max|total|num|train|training)[_ -](?:\w{1,20}[_ -]){0,2}"
    r"(?:steps|iters|iterations|updates)\b\W{1,6}(\d{1,12})\b"
    r"|\bfor (\d{1,12}) (?:steps|iterations|updates)\b"
)


def declared_end(found: Reading) -> Piece | None:
    """Return the piece that shows that the last announced step is done, None where none does.

    Every counter of the log must be at its end, that of the training included: a loss is printed
    with the last count, or after it.
    """
    if not found.losses or not found.losses[-1].finite:
        return None
    last_loss = found.losses[-1].piece
    counts = _counts(found.counters)
    of_epoch = _full_epoch(counts)
    if of_epoch is not None and of_epoch.offset >= last_loss.offset:
        return of_epoch
    counts = {name: count for name, count in counts.items() if not count.only_of_epoch}
    if not counts:
        return _at_bound(found, last_loss)
    if any(not count.is_full for count in counts.values()):
        return None
    # Counters that ran while losses were printed; loading comes before them, testing after.
    ends = [
        count.last
        for name, count in counts.items()
        if count.first.offset <= last_loss.offset
        and (
            last_loss.offset <= count.last.offset
            # After a full bar a summary may print the loss once more.
            or (name.startswith("bar") and not found.continues_after(count.last))
        )
    ]
    return ends[-1] if ends else None


@dataclass(slots=True)
class _Count:
    """The first and the last state of a counter with a known end."""

    first: Piece
    last: Piece
    count: int
    total: int
    of_epoch: bool = False

    @property
    def only_of_epoch(self) -> bool:
        """Whether it shows only that some epoch is over."""
        return self.of_epoch and self.is_full

    @property
    def is_full(self) -> bool:
        return self.count >= self.total


def _counts(pieces: Iterable[Piece]) -> dict[str, _Count]:
    """Return the counters; a bar that restarts, or names an epoch, counts within an epoch only."""
    counts: dict[str, _Count] = {}
    for piece in pieces:
        seen = [
            (unit.lower(), count, total, False) for unit, count, total in _OF.findall(piece.text)
        ]
        bar = _BAR.search(piece.text)
        if bar is not None and int(bar[2]) > 0:
            name = f"bar of {bar[2]}"
            before = counts.get(name)
            again = before is not None and (before.of_epoch or int(bar[1]) < before.count)
            seen.append((name, bar[1], bar[2], again or _EPOCH.search(piece.text) is not None))
        for name, count, total, of_epoch in seen:
            first = counts[name].first if name in counts else piece
            counts[name] = _Count(first, piece, int(count), int(total), of_epoch)
    return counts


def _full_epoch(counts: Mapping[str, _Count]) -> Piece | None:
    """Return the piece that shows that the last epoch, named by an earlier line, is over."""
    epochs = counts.get("epoch")
    if epochs is None or not all(count.is_full for count in counts.values()):
        return None
    bars = [
        count.last
        for count in counts.values()
        if count.only_of_epoch and count.last.offset >= epochs.last.offset
    ]
    return bars[-1] if bars else None


def _at_bound(found: Reading, last_loss: Piece) -> Piece | None:
    bounds = [int(a or b) for piece in found.bounds for a, b in _BOUND.findall(piece.text)]
    steps = [int(step) for step in _STEP.findall(last_loss.text)]
    if bounds and steps and steps[0] in bounds:
        return last_loss
    return None
