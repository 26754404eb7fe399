"""A proportion of items, with its interval."""

from __future__ import annotations

from scipy.stats import binomtest

from groundray.analysis.result import Value


def proportion_of(share: float, items: int) -> Value:
    """Return a proportion from 0 to 1 with Wilson's 95% interval (1927); without an interval if there are no items."""
    if items == 0:
        return Value(share)
    interval = binomtest(round(share * items), items).proportion_ci(method="wilson")
    return Value(share, float(interval.low), float(interval.high))
