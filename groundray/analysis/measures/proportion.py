"""A share of items, with its interval."""

from __future__ import annotations

from scipy.stats import binomtest

from groundray.analysis.result import Value


def share_of(share: float, items: int) -> Value:
    """A share from 0 to 1 of some items, with Wilson's 95% interval (1927); without one of no item."""
    if items == 0:
        return Value(share)
    interval = binomtest(round(share * items), items).proportion_ci(method="wilson")
    return Value(share, float(interval.low), float(interval.high))
