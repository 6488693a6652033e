"""Whether a worker's result belongs to the attempt in whose folder it lies; pure."""

from collections.abc import Mapping

_SHOWN = 100


def find_mismatch(
    result: Mapping[str, object], *, evaluation: str, attempt: int, parameters: int
) -> str | None:
    """Return what shows that a result is another attempt's, None when nothing does.

    Workers of elmanctl 0.1 do not write whose result it is; the parameters they do.
    """
    expected: tuple[tuple[str, object], ...] = (
        ("evaluation", evaluation),
        ("attempt", attempt),
        ("parameters_expected", parameters),
        ("parameters", parameters),
    )
    for key, wanted in expected:
        if key in result and result[key] != wanted:
            found = repr(result[key])[:_SHOWN]
            return f"the result is of {key} {found}, not {wanted!r}"
    return None
