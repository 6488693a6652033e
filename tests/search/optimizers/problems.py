"""Problems for the tests of optimizers, and their losses."""

from elmanctl.search.optimizers.port import Point, Problem
from elmanctl.space.coordinate import Coordinate

INTEGER = Coordinate(low=-0.5, high=9.5, integer=True)
SHARE = Coordinate(low=0.0, high=1.0, integer=False)
# Few values, so that points repeat within a generation.
SMALL = Coordinate(low=-0.5, high=3.5, integer=True)

CASES: dict[str, tuple[Coordinate, ...]] = {
    "one integer": (SMALL,),
    "one share": (SHARE,),
    "three integers": (INTEGER, INTEGER, SMALL),
    "integers and shares": (INTEGER, SHARE, SMALL, SHARE),
}


def problem(coordinates: tuple[Coordinate, ...], population: int = 6, seed: int = 5) -> Problem:
    """Return a problem that starts in the middle."""
    middle = tuple(4.0 if c is INTEGER else 1.0 if c is SMALL else 0.5 for c in coordinates)
    return Problem(
        coordinates=coordinates,
        start=middle,
        sigma=0.3,
        population=population,
        seed=seed,
        budget=20 * population,
        design=2 * population,
        starts=2,
    )


def loss(point: Point) -> float:
    """Return a sum of squares with its least value near the lower bounds."""
    return sum((x - 0.2 * (i + 1)) ** 2 for i, x in enumerate(point))


def every(point: Point) -> bool:
    """Accept every point."""
    return True


def some(point: Point) -> bool:
    """Refuse about a third of all points, by their digits alone."""
    return int(sum(point) * 1000) % 3 != 1
