"""How every figure of groundray looks: colours and shapes that colour-blind people tell apart, panels, files."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's, without yellow, which is faint on paper, and black, which is not seen on a dark page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E")
BLUE, ORANGE, GREY = COLOURS[0], COLOURS[1], COLOURS[6]
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # a number that has no factor in common with that of colours
INK, PAPER = "#1b1b1d", "#ffffff"  # of letters and lines, and of what lies behind them
SHADES = "cividis"
DPI = 150  # of a PNG

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # words come from files, and may hold a dollar sign
    "svg.fonttype": "path",  # else a browser's own letters may be wider than the room that was measured for them
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


class Look(NamedTuple):
    """A colour and a shape of markers."""

    colour: str
    shape: str


def look(place: int) -> Look:
    """The look of the n-th of several things: its own up to 63 of them."""
    return Look(COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)])


def style() -> Any:
    """A block or a function in which figures are made, and written to files, in this style."""
    return matplotlib.rc_context(STYLE)


def new(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which arranges what it holds by itself."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(panel: Axes) -> None:
    """Take off a panel what says nothing, and lay a faint grid behind what it shows."""
    panel.grid(alpha=0.25)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, handles: Mapping[str, Any] | None = None, columns: int = 8) -> None:
    """Name once, below all panels, what they show.

    Args:
        handles: by label; by default those of what the panels have drawn with one.
        columns: at most.
    """
    if handles is None:
        found: dict[str, Any] = {}
        for panel in figure.axes:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        handles = found
    if handles:
        ncols = min(columns, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False)


def settle(figure: Figure) -> None:
    """Arrange the figure once for all: what is drawn into its panels later does not move them."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def png(figure: Figure) -> bytes:
    """The figure on white."""
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def svg(figure: Figure, key: str) -> str:
    """The figure as an `<svg>` element for a page, in the page's own colours of letters (`currentColor`) and background
    (`--paper`), the same bytes each time.

    Args:
        key: sets its ids apart from those of the page's other figures.
    """
    content = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": key}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    element = content.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    prefix = re.sub(r"\W", "-", key)
    element = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    return element.replace(INK, "currentColor").replace(PAPER, "var(--paper, #ffffff)")
