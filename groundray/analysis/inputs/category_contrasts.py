"""Contrasts: pairs of named sets of categories, such as humans against all others, that an axis may tell apart.

A table has the columns contrast, side and category, a row for each category of a side. A contrast has two sides. The
category `*` stands for all words that are in no category of the other side. The contrasts of the paper's axes
(`category_contrasts.csv` beside this file) are of SemCat's categories.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from groundray.analysis.inputs.delimited import Source, read_table, spaced

OTHERS = "*"
COLUMNS = ("contrast", "side", "category")


@dataclass(frozen=True)
class Contrast:
    """Two sets of categories.

    Attributes:
        first, other: names of the sides.
        of_first, of_other: their categories; OTHERS for all words that are in none of the other side's.
    """

    name: str
    first: str
    other: str
    of_first: frozenset[str]
    of_other: frozenset[str]


@dataclass(frozen=True)
class Contrasts:
    """The contrasts of a file.

    Attributes:
        source: what was read; None for those that are built in.
    """

    every: tuple[Contrast, ...]
    source: Source | None = None


def read_contrasts(url: str | None, categories: Iterable[str]) -> Contrasts:
    """Read contrasts of some categories.

    Args:
        url: path or URL of a table; None for the paper's. Of these, a contrast may have categories that are not there.

    Raises:
        ValueError: the table cannot be read, names a category that is not there or one of both sides, or a contrast has
            not two sides.
    """
    if url is None:
        with resources.as_file(resources.files("groundray.analysis.inputs") / "category_contrasts.csv") as file:
            return Contrasts(_read(str(file), None)[0])
    return Contrasts(*_read(url, frozenset(categories)))


def _read(url: str, categories: frozenset[str] | None) -> tuple[tuple[Contrast, ...], Source]:
    table = read_table(url, {name: (name,) for name in COLUMNS})
    found: dict[str, dict[str, dict[str, None]]] = {}
    for row in table.rows:
        name, side, category = (
            spaced(row.fields["contrast"]),
            spaced(row.fields["side"]),
            row.fields["category"].strip(),
        )
        if not (name and side and category):
            raise ValueError(f"{row.where}: expected a contrast, a side and a category, got one that is empty")
        if categories is not None and category != OTHERS and category not in categories:
            raise ValueError(
                f"{row.where}: expected a category of the norms ({', '.join(sorted(categories))}) or {OTHERS} for all "
                f"words that are not of the other side, got {category!r}"
            )
        sides = found.setdefault(name, {})
        if side not in sides and len(sides) == 2:
            raise ValueError(f"{row.where}: expected two sides of {name!r}, {' and '.join(sides)}, got {side!r} too")
        if both := next((other for other, of in sides.items() if other != side and category in of), None):
            raise ValueError(f"{row.where}: expected {category!r} on one side of {name!r}, got it on {both} and {side}")
        sides.setdefault(side, {})[category] = None
    for name, sides in found.items():
        if len(sides) != 2:
            raise ValueError(f"{url}: expected two sides of {name!r}, got {next(iter(sides))!r} alone")
        for side, of in sides.items():
            if OTHERS in of and len(of) > 1:
                raise ValueError(
                    f"{url}: expected {OTHERS} or categories as {side!r} of {name!r}, got both: {', '.join(of)}"
                )
    every = []
    for name, sides in found.items():
        (first, of_first), (other, of_other) = sides.items()
        every.append(Contrast(name, first, other, frozenset(of_first), frozenset(of_other)))
    return tuple(every), Source(url, table.layout, len(table.rows), len(table.rows), {})
