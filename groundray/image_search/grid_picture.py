"""The picture of many searches (`grid.py`): thumbnails, bars and words at measured places, in inches.

One query over alpha: each found image stands once, in a row of its own, beside a bar over the alphas at which it is
among the nearest. Several images by several words: a cell for each pair, the words above and the images at the left.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import matplotlib.colors
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.textpath import TextToPath
from PIL import Image

from groundray.analysis.report.plotting import BLUE, GREY, INK, PAPER, file_content, new, style
from groundray.image_search.errors import BadQuery
from groundray.image_search.grid import Found, Grid, GridAnswer, GridQuery, cell_shape, found_over_alpha
from groundray.image_search.query import Hit

Format = Literal["png", "svg", "pdf"]
FORMATS: tuple[Format, ...] = ("png", "svg", "pdf")

# inches
EDGE, GAP = 0.2, 0.08
SMALL, LARGE = 0.62, 1.35  # sides of thumbnails: of a row's image, of the query's
BARS, NARROWEST, WIDEST = 7.4, 0.075, 0.9  # width of all bars, and least and greatest of one alpha's
NUMBERED = 0.17  # least width of one alpha that holds a rank
CELLS, SMALLEST, LARGEST = 11.0, 0.62, 1.3  # width of all cells, and least and greatest side of their thumbnails
EVERY = (1, 2, 5, 10, 20, 50, 100, 200)  # one of so many alphas has its value written
LABEL = 1.7  # width at which an id beside a bar is broken
TITLE, TEXT, NOTE = 12.0, 9.0, 8.5  # points
WORDS = ((18, 22.0), (48, 15.0), (10_000, TEXT))  # sizes of a query's text, up to a number of characters

PANEL = "#f1f2f4"  # behind cells
FADE = 0.78  # of the last rank's colour: 0 is as the first's, 1 white


def format_of(path: str) -> Format:
    """Return the format that a file's ending names.

    Raises:
        BadQuery: it names none of FORMATS.
    """
    ending = path.rsplit("/", 1)[-1].rpartition(".")[2].lower()
    for format in FORMATS:
        if ending == format:
            return format
    raise BadQuery(f"grid: expected a file that ends with {', '.join(f'.{each}' for each in FORMATS)}, got {path!r}")


def picture(grid: Grid, format: Format) -> bytes:
    """Return the file of the picture of a grid."""
    return file_content(draw(grid), format)


@style()
def draw(grid: Grid) -> Figure:
    """Return the figure of a grid: bars over alpha for one image and one text, else cells."""
    return _bars(grid) if grid.query.over_alpha else _cells(grid)


def _bars(grid: Grid) -> Figure:
    asked, found = grid.query, found_over_alpha(grid.answers)
    (image,), (text,) = asked.images, asked.texts
    step = min(WIDEST, max(NARROWEST, BARS / len(asked.alphas)))
    left = EDGE + SMALL + GAP  # of the first alpha
    right = left + max(step * len(asked.alphas), 5.2)  # of the header
    labels = [wrap(each.id, LABEL, NOTE) for each in found]
    ends = [
        left + step * (max(each.ranks) + 1) + GAP + _widest(lines, NOTE)
        for each, lines in zip(found, labels, strict=True)
    ]
    title = wrap(f"The {asked.k} nearest of {grid.pool:,} images at each alpha", right - EDGE, TITLE)
    order = "images by their cosine with Q" + ", the nearest ranked again by their match" * grid.ranked_again
    note = wrap(
        f"Q = (1 - alpha) Q_image + alpha Q_text, {order}. A bar covers the alphas at which its image is found"
        f"{', a number is its rank' if step >= NUMBERED else ''}; darker is nearer.{_limits(asked)}",
        right - EDGE,
        NOTE,
    )
    name, size = wrap(image.name, LARGE + 0.9, NOTE), _word_size(text)
    words = wrap(text, right - left - LARGE - 1.6, size)
    header = max(LARGE + GAP + _tall(name, NOTE), _tall(words, size))
    top = EDGE + _tall(title, TITLE) + _tall(note, NOTE) + 2 * GAP
    first = top + header + 0.4  # of the rows
    heights = [max(SMALL, _tall(lines, NOTE)) + GAP for lines in labels]
    below = 0.45 if sum(heights) > 5 else 0.0  # alphas again, below many rows
    values = [f"{alpha:g}" for alpha in asked.alphas]
    sheet = Sheet(max([right + _widest(values, NOTE) / 2, *ends]) + EDGE, first + sum(heights) + below + EDGE)

    sheet.words(title, EDGE, EDGE, TITLE)
    sheet.words(note, EDGE, EDGE + _tall(title, TITLE) + GAP, NOTE, GREY)
    sheet.thumbnail(grid.query_thumbnails[0], left, top, LARGE, LARGE, "left")
    sheet.words(name, left, top + LARGE + GAP, NOTE, GREY)
    sheet.words(words, right, top + max(0.0, (LARGE - _tall(words, size)) / 2), size, align="right")
    sheet.arrow(left + LARGE + 0.2, right - _widest(words, size) - 0.2, top + LARGE / 2)

    _alphas(sheet, values, left, step, first, first + sum(heights), twice=below > 0)
    y = first
    for each, lines, height in zip(found, labels, heights, strict=True):
        _bar(sheet, grid, each, left, step, y, height, lines)
        y += height
    return sheet.figure


def _alphas(
    sheet: Sheet, values: Sequence[str], left: float, step: float, top: float, bottom: float, twice: bool
) -> None:
    """Write the values of alpha, as many as have room, above all rows, and below them too; lines lead to them."""
    widest, tall = _widest(values, NOTE), _tall(["0"], NOTE)
    every = next(count for count in EVERY if count * step >= widest + GAP or count > len(values))
    for y in (top - 0.1 - tall, bottom + 0.1)[: 1 + twice]:
        sheet.words(["alpha"], left - GAP - max(0.0, (widest - step) / 2), y, NOTE, GREY, "right")
        for number in range(0, len(values), every):
            sheet.words([values[number]], left + step * (number + 0.5), y, NOTE, align="center")
    for number in range(0, len(values) + 1, every):
        sheet.line((left + step * number, top), (left + step * number, bottom))


def _bar(
    sheet: Sheet, grid: Grid, found: Found, left: float, step: float, top: float, height: float, label: Sequence[str]
) -> None:
    """Draw a found image, its bar, and its id."""
    start, end = min(found.ranks), max(found.ranks) + 1
    middle, thick = top + height / 2, 0.3
    sheet.line((left + step * start, middle), (left + step * end, middle), BLUE, zorder=2)
    for number, rank in found.ranks.items():
        share = (rank - 1) / max(1, grid.query.k - 1)
        sheet.box(left + step * number, middle - thick / 2, step, thick, faded(BLUE, FADE * share))
        if step >= NUMBERED:
            ink = PAPER if share < 0.6 else INK
            sheet.words([str(rank)], left + step * (number + 0.5), middle - _tall(["0"], NOTE) / 2, NOTE, ink, "center")
    sheet.thumbnail(
        grid.thumbnails[found.id], left + step * start - GAP / 2 - SMALL, middle - SMALL / 2, SMALL, SMALL, "right"
    )
    x, y = left + step * end + GAP, middle - _tall(label, NOTE) / 2
    sheet.box(
        x - GAP / 2, y, _widest(label, NOTE) + GAP, _tall(label, NOTE), PAPER
    )  # the lines of the alphas end there
    sheet.words(label, x, y, NOTE)


def _cells(grid: Grid) -> Figure:
    asked = grid.query
    across, down = cell_shape(asked.k)
    side = min(LARGEST, max(SMALLEST, CELLS / (across * len(asked.columns) + 1)))
    answers = {(answer.image, answer.text): answer for answer in grid.answers}
    captions = {
        key: [[*wrap(hit.id, side, NOTE), f"{ranked_by(hit):.2f}"] for hit in answer.hits]
        for key, answer in answers.items()
    }
    thumb = [  # of each row: a thumbnail and the longest text below one
        side
        + GAP / 2
        + max((_tall(lines, NOTE) for column in asked.columns for lines in captions.get((name, column), [])), default=0)
        for name in (image and image.name for image in asked.rows)
    ]
    width = across * (side + GAP) + GAP  # of a cell
    names = [wrap(image.name, side, NOTE) if image else wrap("words alone", side, TEXT) for image in asked.rows]
    heights = [
        max(down * (each + GAP) + GAP, (side + GAP if image else 0) + GAP + _tall(lines, NOTE))
        for each, image, lines in zip(thumb, asked.rows, names, strict=True)
    ]
    sizes = [min(15.0, _word_size(text)) if text else TEXT for text in asked.columns]
    headings = [
        wrap(text if text else "image alone", width - GAP, size)
        for text, size in zip(asked.columns, sizes, strict=True)
    ]
    heading = max(_tall(lines, size) for lines, size in zip(headings, sizes, strict=True)) + 2 * GAP
    left = EDGE + (side + 2 * GAP if asked.images else 0.0)
    right = left + len(asked.columns) * (width + GAP) - GAP
    title, note = _cells_title(grid, max(right - EDGE, 3.4))
    top = EDGE + _tall(title, TITLE) + _tall(note, NOTE) + 2 * GAP + heading
    sheet = Sheet(max(right, EDGE + 3.4) + EDGE, top + sum(height + GAP for height in heights) - GAP + EDGE)

    sheet.words(title, EDGE, EDGE, TITLE)
    sheet.words(note, EDGE, EDGE + _tall(title, TITLE) + GAP, NOTE, GREY)
    for column, (lines, size) in enumerate(zip(headings, sizes, strict=True)):
        middle = left + column * (width + GAP) + width / 2
        colour = INK if asked.columns[column] else GREY
        sheet.words(lines, middle, top - GAP - _tall(lines, size), size, colour, "center")
    thumbnails, y = iter(grid.query_thumbnails), top
    for row, (image, lines, height) in enumerate(zip(asked.rows, names, heights, strict=True)):
        if image:
            sheet.thumbnail(next(thumbnails), EDGE, y + GAP, side, side, "left")
            sheet.words(lines, EDGE, y + side + 1.5 * GAP, NOTE, GREY)
        elif asked.images:
            sheet.words(lines, EDGE, y + height / 2 - _tall(lines, TEXT) / 2, TEXT, GREY)
        for column, text in enumerate(asked.columns):
            key = (image and image.name, text)
            if key in answers:
                x = left + column * (width + GAP)
                sheet.box(x, y, width, height, PANEL if image and text else faded(BLUE, 0.88), rounded=True)
                _cell(sheet, grid, answers[key], captions[key], x + GAP, y + GAP, side, thumb[row] + GAP)
        y += height + GAP
    return sheet.figure


def _cells_title(grid: Grid, width: float) -> tuple[list[str], list[str]]:
    asked = grid.query
    mixed = f" at alpha {asked.alphas[0]:g}" if asked.images and asked.texts else ""
    nearest = "nearest image" if asked.k == 1 else f"{asked.k} nearest images"
    score = "match, in standard deviations above the pool's mean" if grid.ranked_again else "cosine with the query"
    mix = ", Q = (1 - alpha) Q_image + alpha Q_text" if mixed else ""
    note = f"Below each image its id and its {score}{mix}.{_limits(asked)}"
    return wrap(f"The {nearest} of {grid.pool:,}{mixed}", width, TITLE), wrap(note, width, NOTE)


def _limits(asked: GridQuery) -> str:
    """Return what found images should not show and which conditions they meet, as sentences; empty if there is none."""
    without = f" Without {asked.without}." if asked.without else ""
    return f"{without} Only {', '.join(map(str, asked.filter.conditions))}." if asked.filter else without


def ranked_by(hit: Hit) -> float:
    """Return the number that a found image is ranked by."""
    return hit.score if hit.match is None else hit.match


def _cell(
    sheet: Sheet,
    grid: Grid,
    answer: GridAnswer,
    captions: Sequence[Sequence[str]],
    left: float,
    top: float,
    side: float,
    height: float,
) -> None:
    """Draw the images of a cell, best first, with what is below each."""
    across, _ = cell_shape(grid.query.k)
    for place, (hit, lines) in enumerate(zip(answer.hits, captions, strict=True)):
        x, y = left + place % across * (side + GAP), top + place // across * height
        sheet.thumbnail(grid.thumbnails[hit.id], x, y, side, side, "center")
        sheet.words(lines, x + side / 2, y + side + GAP / 2, NOTE, align="center")


class Sheet:
    """A figure on which things are placed in inches from the top left corner."""

    def __init__(self, width: float, height: float):
        self.figure = new(width, height)
        self.figure.set_layout_engine("none")
        self.figure.suppressComposite = True  # an SVG or PDF keeps each thumbnail, at its own resolution
        self.panel = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.panel.set_axis_off()

    def thumbnail(
        self,
        encoded: bytes,
        left: float,
        top: float,
        width: float,
        height: float,
        align: Literal["left", "center", "right"],
    ) -> None:
        """Draw a whole picture, as large as fits into a box; in its middle from top to bottom."""
        pixels = Image.open(io.BytesIO(encoded)).convert("RGB")
        scale = min(width / pixels.width, height / pixels.height)
        wide, high = pixels.width * scale, pixels.height * scale
        x = left + {"left": 0.0, "center": 0.5, "right": 1.0}[align] * (width - wide)
        y = top + (height - high) / 2
        self.panel.imshow(pixels, extent=(x, x + wide, y + high, y), aspect="auto", zorder=3)

    def words(
        self,
        lines: Sequence[str],
        x: float,
        top: float,
        size: float,
        colour: str = INK,
        align: Literal["left", "center", "right"] = "left",
    ) -> None:
        """Write lines below each other, from a height on."""
        for number, line in enumerate(lines):
            baseline = top + (number + 0.8) * _line(size)
            self.panel.text(x, baseline, line, size=size, color=colour, ha=align, va="baseline", zorder=4)

    def box(self, left: float, top: float, width: float, height: float, colour: str, rounded: bool = False) -> None:
        """Fill a rectangle."""
        if rounded:
            shape = FancyBboxPatch(
                (left + 0.05, top + 0.05), width - 0.1, height - 0.1, "round,pad=0.05", facecolor=colour, linewidth=0
            )
        else:
            shape = Rectangle((left, top), width, height, facecolor=colour, edgecolor=PAPER, linewidth=0.5, zorder=3)
        self.panel.add_patch(shape)

    def line(
        self, start: tuple[float, float], end: tuple[float, float], colour: str = "#dddee2", zorder: float = 1
    ) -> None:
        """Draw a thin line."""
        self.panel.plot(*zip(start, end, strict=True), color=colour, linewidth=0.7, zorder=zorder)

    def arrow(self, left: float, right: float, y: float) -> None:
        """Draw an arrow to the right, if there is room."""
        if right - left > 0.3:
            shape = FancyArrowPatch((left, y), (right, y), arrowstyle="-|>", mutation_scale=14, color=GREY, linewidth=1)
            self.panel.add_patch(shape)


def wrap(text: str, width: float, size: float) -> list[str]:
    """Return the lines of a text, each at most so many inches wide; a longer word is broken where it has to be."""
    lines: list[str] = []
    for word in text.split() or [""]:
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
            continue
        while len(word) > 1 and text_width(word, size) > width:
            most = max((n for n in range(1, len(word)) if text_width(word[:n], size) <= width), default=1)
            cut = next((n for n in range(most, most // 3, -1) if word[n - 1] in "/_-."), most)  # as in a file's name
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    return lines


@lru_cache(10_000)
def text_width(text: str, size: float) -> float:
    """Return the width of a text in inches."""
    width, *_ = TextToPath().get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / 72


def faded(colour: str, share: float) -> str:
    """Return a colour mixed with a share of white."""
    red, green, blue = (part + (1 - part) * share for part in matplotlib.colors.to_rgb(colour))
    return matplotlib.colors.to_hex((red, green, blue))


def _line(size: float) -> float:
    """Return the height of a line in inches."""
    return 1.25 * size / 72


def _tall(lines: Sequence[str], size: float) -> float:
    return len(lines) * _line(size)


def _widest(lines: Sequence[str], size: float) -> float:
    return max(text_width(line, size) for line in lines)


def _word_size(text: str) -> float:
    return next(size for most, size in WORDS if len(text) <= most)
