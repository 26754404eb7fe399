"""Shares with their intervals, against Wilson's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

from groundray.analysis.measures.proportion import mean_over_classes, proportion_of
from groundray.analysis.result import Value


@pytest.mark.parametrize(("hits", "items"), [(0, 5), (7, 20), (197, 200), (20, 20)])
def test_the_interval_is_wilsons(hits: int, items: int) -> None:
    found = proportion_of(hits / items, items)
    z, p = 1.959963984540054, hits / items
    centre = (p + z * z / (2 * items)) / (1 + z * z / items)
    half = z / (1 + z * z / items) * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items))
    assert found.value == p
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_no_items_give_no_interval() -> None:
    assert proportion_of(0.0, 0) == Value(0.0)


def test_a_mean_over_classes_of_images_that_are_all_right_has_no_interval() -> None:
    truth = np.array([0, 0, 1, 1, 2, 2, 2])
    right = mean_over_classes(np.ones(7), truth).with_interval()
    assert right == Value(1.0)
    some = mean_over_classes(np.array([1, 0, 1, 1, 0, 1, 1.0]), truth).with_interval()
    assert some.low is not None
    assert some.low < some.value
