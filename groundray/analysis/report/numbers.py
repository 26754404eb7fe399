"""Numbers as a report prints them."""

from __future__ import annotations

import math

from groundray.analysis.result import Cell, ReadOff, Value

MISSING, MINUS, ABOUT = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{ALMOST EQUAL TO}"


def format_number(cell: Cell) -> str:
    """Format a table's cell: numbers below 100 with three decimals, others with one; `≈` before a number that was read
    off a figure; text as it is."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return MISSING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    shown = (f"{cell:.3f}" if abs(cell) < 100 else f"{cell:,.1f}").replace("-", MINUS)
    return f"{ABOUT}{shown}" if isinstance(cell, ReadOff) else shown


def format_interval(value: Value) -> str:
    """Format an interval as `[low, high]`; empty if there is none."""
    if value.low is None or value.high is None:
        return ""
    return f"[{format_number(float(value.low))}, {format_number(float(value.high))}]"


def format_p(p: float | None) -> str:
    """Format a p value with three decimals, `< .001` below that."""
    if p is None or not math.isfinite(p):
        return MISSING
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"
