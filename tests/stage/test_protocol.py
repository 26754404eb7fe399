"""The criterion for a stage's best epoch."""

from __future__ import annotations

import itertools
import math

import pytest

from groundray.stage.protocol import Best

NAN, INF = math.nan, math.inf
# validations of successive epochs, and the index of the best one with each mode
COURSES = {
    (3.0, 1.0, 2.0): {"min": 1, "max": 0},
    (NAN, 3.0, 1.0): {"min": 2, "max": 1},
    (3.0, NAN, 1.0): {"min": 2, "max": 0},
    (3.0, 1.0, NAN): {"min": 1, "max": 0},
    (INF, 3.0, 4.0): {"min": 1, "max": 2},
    (3.0, INF, 4.0): {"min": 0, "max": 2},
    (-INF, 3.0, 4.0): {"min": 1, "max": 2},
    (3.0, -INF, 4.0): {"min": 0, "max": 2},
    (NAN, INF, -INF): {"min": None, "max": None},
    (2.0, 2.0): {"min": 0, "max": 0},
}


def best_of(criterion: Best, values: tuple[float, ...]) -> int | None:
    best: int | None = None
    for epoch, value in enumerate(values):
        if criterion.beats(value, None if best is None else values[best]):
            best = epoch
    return best


@pytest.mark.parametrize(("values", "mode"), list(itertools.product(COURSES, ("min", "max"))))
def test_value_that_is_not_finite_is_never_the_best(values: tuple[float, ...], mode: str) -> None:
    assert best_of(Best("loss", mode), values) == COURSES[values][mode]


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("former", [NAN, INF, -INF])
def test_finite_value_beats_a_former_best_that_is_not_finite(mode: str, former: float) -> None:
    """As an earlier version may have left it in a checkpoint."""
    assert Best("loss", mode).beats(1.0, former)
    assert not Best("loss", mode).beats(NAN, former)
