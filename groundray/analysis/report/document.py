"""The report of some analyses: one page that needs nothing else, the same pictures as PNG files, the same as JSON."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from groundray.analysis.report.figures import pictures
from groundray.analysis.report.plotting import png, svg
from groundray.analysis.result import Analysis, Cell, Difference, Measure, Table, Value

PAGE, JSON = "report.html", "report.json"
PAPER_MODELS = ("ungrounded", "grounded", "relational")
NOTHING, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Report:
    """What is reported of some models.

    Attributes:
        title: whose models they are.
        models: where each is from, by name, in the order in which they are shown.
        notes: what a reader must know of the whole, such as a control that is missing.
        skipped: analyses that were not made, with the reason.
        made_of: checksums of what was analysed.
    """

    title: str
    models: dict[str, str]
    analyses: tuple[Analysis, ...]
    notes: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)


class Drawn(NamedTuple):
    """A picture of the page: its title, its PNG file's name, and its `<svg>` element."""

    title: str
    file: str
    svg: Markup


def files(report: Report) -> Iterator[tuple[str, bytes]]:
    """The name and the content of each file of a report; the same bytes for the same findings."""
    drawn: dict[str, list[Drawn]] = {}
    for analysis in report.analyses:
        for name, title, figure in pictures(analysis, list(report.models)):
            key = name if name.startswith(analysis.name) else f"{analysis.name}-{name}"
            yield f"{key}.png", png(figure)
            drawn.setdefault(analysis.name, []).append(Drawn(title, f"{key}.png", Markup(svg(figure, key))))
    yield JSON, as_text(as_json(report)).encode()
    yield PAGE, _page(report, drawn).encode()


def as_json(report: Report) -> dict[str, Any]:
    """What a report says, of plain lists and numbers; what is not a finite number is None."""
    return finite(
        {
            "title": report.title,
            "models": report.models,
            "notes": list(report.notes),
            "skipped": report.skipped,
            "made_of": report.made_of,
            "analyses": {analysis.name: analysis_as_json(analysis) for analysis in report.analyses},
        }
    )


def analysis_as_json(analysis: Analysis) -> dict[str, Any]:
    """An analysis without its pictures, measures by their keys."""
    return finite(
        {
            "about": analysis.about,
            "left_out": analysis.left_out,
            "measures": {
                measure.key: {
                    "name": measure.name,
                    "items": measure.items,
                    "values": {model: vars(value) for model, value in measure.values.items()},
                    "published": measure.published,
                    "differences": [
                        {"first": one.first, "other": one.other, **vars(one.value), "p": one.p}
                        for one in measure.differences
                    ],
                }
                for measure in analysis.measures
            },
            "tables": [
                {"title": table.title, "columns": list(table.columns), "rows": [list(row) for row in table.rows]}
                for table in analysis.tables
            ],
        }
    )


def finite(tree: Any) -> Any:
    """The same with None for each number that is not finite, which JSON has no word for."""
    if isinstance(tree, dict):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, bool | str | int) or tree is None:
        return tree
    number = float(tree)
    return number if math.isfinite(number) else None


def as_text(content: Any) -> str:
    """JSON for a file."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def metrics(report: Report) -> dict[str, float]:
    """Every finite figure of a report by `analysis/ANALYSIS/MEASURE/MODEL`."""
    return {
        f"analysis/{analysis.name}/{measure.key}/{model}": float(value.value)
        for analysis in report.analyses
        for measure in analysis.measures
        for model, value in measure.values.items()
        if math.isfinite(value.value)
    }


def shown(cell: Cell) -> str:
    """A table's cell for a person: three decimals of numbers below a hundred, one above."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return NOTHING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return f"{cell:,}"
    return (f"{cell:.3f}" if abs(cell) < 100 else f"{cell:,.1f}").replace("-", MINUS)


def shown_interval(value: Value) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    if value.low is None or value.high is None:
        return ""
    return f"[{shown(float(value.low))}, {shown(float(value.high))}]"


def shown_p(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return NOTHING
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def compared(report: Report) -> tuple[list[str], list[str], list[tuple[Analysis, Measure]]]:
    """The columns of models and of published figures, and the rows, of the table that compares everything."""
    rows = [(analysis, measure) for analysis in report.analyses for measure in analysis.measures]
    measured = {model for _, measure in rows for model in measure.values}
    models = [model for model in report.models if model in measured]
    models += sorted(measured.difference(models))
    published = [model for model in PAPER_MODELS if any(model in measure.published for _, measure in rows)]
    return models, published, rows


def differences(report: Report) -> list[tuple[Analysis, Measure, Difference]]:
    """Every difference between two models."""
    return [
        (analysis, measure, difference)
        for analysis in report.analyses
        for measure in analysis.measures
        for difference in measure.differences
    ]


def _page(report: Report, drawn: dict[str, list[Drawn]]) -> str:
    environment = Environment(
        loader=PackageLoader("groundray.analysis.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": shown,
        "interval": shown_interval,
        "p": shown_p,
        "sortable": _sortable,
        "kinds": _kinds,
        "title_of": lambda name: name.replace("_", " ").capitalize(),
    }
    models, published, rows = compared(report)
    style, script = (
        (resources.files("groundray.analysis.report") / "page" / name).read_text("utf-8")
        for name in ("page.css", "page.js")
    )
    return environment.get_template("page.html").render(
        report=report,
        models=models,
        published=published,
        rows=rows,
        differences=differences(report),
        drawn=drawn,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _kinds(table: Table) -> list[str]:
    """How each column is set: the first stays in sight, numbers stand at the right."""
    numbers = [any(isinstance(cell, int | float) for cell in cells) for cells in zip(*table.rows, strict=True)]
    numbers += [False] * (len(table.columns) - len(numbers))
    return ["first" if place == 0 else "number" if number else "" for place, number in enumerate(numbers)]


def _sortable(cell: Cell) -> float | str:
    """What a cell is sorted by: its number, or nothing where it has none."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    return float(cell) if math.isfinite(cell) else ""
