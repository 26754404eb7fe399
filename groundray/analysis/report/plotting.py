"""The style of all figures: colours and shapes that are distinct without colour vision, panels, files."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, without yellow (faint on white) and black (invisible on a dark page)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6E6E6E")
BLUE, ORANGE, GREY = COLOURS[0], COLOURS[1], COLOURS[6]
SHAPES = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # as many as are coprime with the number of colours
INK, PAPER = "#1b1b1d", "#ffffff"  # foreground and background
SHADES = "cividis"
DPI = 150  # of PNG files

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # words come from files, and may contain a dollar sign
    "svg.fonttype": "path",  # a browser's own font may be wider than the measured text
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


Drawing = Callable[[], Figure]  # can be pickled


class Look(NamedTuple):
    """A colour and a shape of markers."""

    colour: str
    shape: str


def look(index: int) -> Look:
    """Return the look of the n-th item: unique up to 63 items."""
    return Look(COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)])


def marker(look: Look, hollow: bool = False) -> Line2D:
    """Return a legend's marker of a look."""
    face = PAPER if hollow else look.colour
    return Line2D([], [], color=look.colour, marker=look.shape, linestyle="", markersize=6, markerfacecolor=face)


def style() -> Any:
    """Return a context manager and decorator under which figures are made and written in this style."""
    return matplotlib.rc_context(STYLE)


def new(width: float, height: float) -> Figure:
    """Create an empty figure of a size in inches, with constrained layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(panel: Axes) -> None:
    """Remove a panel's superfluous spines, and add a faint grid behind its data."""
    panel.grid(alpha=0.25)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, handles: Mapping[str, Any] | None = None, columns: int = 8) -> None:
    """Add one legend below all panels.

    Args:
        handles: handles by label (default: all labelled artists of the panels).
        columns: maximum number of columns.
    """
    if handles is None:
        labelled: dict[str, Any] = {}
        for panel in figure.axes:
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
                labelled.setdefault(label, handle)
        handles = labelled
    if handles:
        ncols = min(columns, len(handles))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False)


def settle(figure: Figure) -> None:
    """Lay out the figure for good: later additions do not move its panels."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG on white."""
    content = io.BytesIO()
    with style():
        figure.savefig(content, format="png", dpi=DPI, metadata={"Software": None})
    return content.getvalue()


def file_content(figure: Figure, format: Literal["png", "svg", "pdf"]) -> bytes:
    """Return the figure as a file of its own, on white. Equal figures give equal bytes."""
    if format == "png":
        return png(figure)
    content = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else {"CreationDate": None}
    with style(), matplotlib.rc_context({"svg.hashsalt": "groundray", "pdf.fonttype": 42}):
        figure.savefig(content, format=format, dpi=DPI, metadata=metadata)
    return content.getvalue()


def svg(figure: Figure, key: str) -> str:
    """Return the figure as an `<svg>` element, in the page's text colour (`currentColor`) and background (`--paper`).

    Equal figures give equal bytes.

    Args:
        key: prefix of its ids, unique on the page.
    """
    content = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": key}):
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=no_metadata)
    element = content.getvalue()
    element = element[element.index("<svg") :]
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    prefix = re.sub(r"\W", "-", key)
    element = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", element)
    return element.replace(INK, "currentColor").replace(PAPER, "var(--paper, #ffffff)")


def rendered(drawing: Drawing, key: str) -> tuple[bytes, str]:
    """Return a picture as a PNG and as an `<svg>` element (`svg`)."""
    figure = drawing()
    return png(figure), svg(figure, key)
