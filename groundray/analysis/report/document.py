"""The report of several analyses: a self-contained page, its pictures as PNG files, its tables as CSV and LaTeX files,
and its numbers as JSON."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from groundray.analysis.measures.statistics import slug
from groundray.analysis.report import summary
from groundray.analysis.report.figures import pictures
from groundray.analysis.report.numbers import format_interval, format_number, format_p
from groundray.analysis.report.plotting import Drawing, rendered
from groundray.analysis.report.summary import Summary, summarize
from groundray.analysis.report.table_files import table_files
from groundray.analysis.result import Analysis, Cell, Difference, Measure, ReadOff, Table
from groundray.data.processes import call_in_processes
from groundray.storage.seals import seal_document

PAGE, JSON, SUMMARY = "report.html", "report.json", "summary.png"
FEWEST_DIVIDED = 6  # pictures, of half a second each, that are worth a second for each process to start
FILES = "files"  # key of the JSON file: names of all files of the report
PAPER_MODELS = ("ungrounded", "grounded", "relational")


@dataclass(frozen=True)
class Report:
    """Analyses of some models.

    Attributes:
        title: name of the run, or of the models.
        models: origin of each model, by name, in the order of display.
        notes: remarks on the whole report, such as a missing control.
        skipped: analyses that were not made, with the reason.
        made_of: checksums of the analysed models and data.
    """

    title: str
    models: dict[str, str]
    analyses: tuple[Analysis, ...]
    notes: tuple[str, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    made_of: dict[str, str] = field(default_factory=dict)


class Drawn(NamedTuple):
    """A picture of the page: its title, the name of its PNG file, and its `<svg>` element."""

    title: str
    file: str
    svg: Markup


def files(report: Report, processes: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each file of a report. Its JSON lists them. Equal reports give equal bytes.

    Args:
        processes: number of processes that draw the pictures of a report with many.
    """
    overview, models = summary_of(report), list(report.models)
    places: list[tuple[str, str]] = []  # of each picture, its part of the page and its title
    drawings: list[tuple[Drawing, str]] = []
    if overview.rows:
        title = "Key measures with 95% intervals, each on its own scale; hollow: published by the paper"
        places.append(("summary", title))
        drawings.append((partial(summary.draw, overview, models), SUMMARY.removesuffix(".png")))
    for analysis in report.analyses:
        for name, title, drawing in pictures(analysis, models):
            places.append((analysis.name, title))
            drawings.append((drawing, name if name.startswith(analysis.name) else f"{analysis.name}-{name}"))
    drawn: dict[str, list[Drawn]] = {}
    names = [JSON, PAGE]
    with contextlib.closing(_rendered(drawings, processes)) as pairs:
        for (part, title), (_, key), (content, element) in zip(places, drawings, pairs, strict=True):
            names.append(f"{key}.png")
            yield f"{key}.png", content
            drawn.setdefault(part, []).append(Drawn(title, f"{key}.png", Markup(element)))
    for name, content in table_files(report.analyses):
        names.append(name)
        yield name, content
    yield JSON, as_text(seal_document({**as_json(report), FILES: sorted(names)})).encode()
    yield PAGE, _page(report, overview, drawn).encode()


def _rendered(drawings: Sequence[tuple[Drawing, str]], processes: int) -> Generator[tuple[bytes, str], None, None]:
    """Yield each picture as a PNG and as an `<svg>` element. What processes cannot draw is drawn here."""
    done = 0
    if processes > 1 and len(drawings) >= FEWEST_DIVIDED:
        with contextlib.suppress(OSError), contextlib.closing(call_in_processes(rendered, drawings, processes)) as made:
            for pair in made:
                done += 1
                yield pair
    yield from (rendered(*drawing) for drawing in drawings[done:])


def summary_of(report: Report) -> Summary:
    """Return the summary that opens a report."""
    return summarize(report.analyses, list(report.models))


def as_json(report: Report) -> dict[str, Any]:
    """Return a report as plain lists and numbers; a number that is not finite becomes None."""
    overview = summary_of(report)
    return finite(
        {
            "title": report.title,
            "models": report.models,
            "notes": list(report.notes),
            "skipped": report.skipped,
            "made_of": report.made_of,
            "summary": {
                "control": overview.control,
                "treatment": overview.treatment,
                "sentences": list(overview.sentences),
                "measures": [f"{row.kind.analysis}/{row.measure.key}" for row in overview.rows],
            },
            "analyses": {analysis.name: analysis_as_json(analysis) for analysis in report.analyses},
        }
    )


def analysis_as_json(analysis: Analysis) -> dict[str, Any]:
    """Return an analysis without its pictures, its measures by key."""
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
                    "published_read_off": [name for name, one in measure.published.items() if isinstance(one, ReadOff)],
                    "differences": [
                        {"first": pair.first, "other": pair.other, **vars(pair.value), "p": pair.p}
                        for pair in measure.differences
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
    """Replace each number that is not finite by None, since JSON cannot hold it."""
    if isinstance(tree, dict):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, bool | str | int) or tree is None:
        return tree
    number = float(tree)
    return number if math.isfinite(number) else None


def as_text(content: Any) -> str:
    """Format JSON for a file."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def metrics(report: Report) -> dict[str, float]:
    """Return every finite figure of a report, by `analysis/ANALYSIS/MEASURE/MODEL`."""
    return {
        f"analysis/{analysis.name}/{measure.key}/{slug(model)}": float(value.value)
        for analysis in report.analyses
        for measure in analysis.measures
        for model, value in measure.values.items()
        if math.isfinite(value.value)
    }


def compared(report: Report) -> tuple[list[str], list[str], list[tuple[Analysis, Measure]]]:
    """Return the comparison of all measures: its columns of models, its columns of published figures, and its rows."""
    rows = [(analysis, measure) for analysis in report.analyses for measure in analysis.measures]
    measured = {model for _, measure in rows for model in measure.values}
    models = [model for model in report.models if model in measured]
    models += sorted(measured.difference(models))
    published = [model for model in PAPER_MODELS if any(model in measure.published for _, measure in rows)]
    return models, published, rows


def differences(report: Report) -> list[tuple[Analysis, Measure, Difference]]:
    """Return every difference between two models."""
    return [
        (analysis, measure, difference)
        for analysis in report.analyses
        for measure in analysis.measures
        for difference in measure.differences
    ]


def _page(report: Report, overview: Summary, drawn: dict[str, list[Drawn]]) -> str:
    environment = Environment(
        loader=PackageLoader("groundray.analysis.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "shown": format_number,
        "interval": format_interval,
        "p": format_p,
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
        summary=overview,
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
    """Return the style of each column: the first stays in view, numbers are right-aligned."""
    numbers = [any(isinstance(cell, int | float) for cell in cells) for cells in zip(*table.rows, strict=True)]
    numbers += [False] * (len(table.columns) - len(numbers))
    return ["first" if index == 0 else "number" if number else "" for index, number in enumerate(numbers)]


def _sortable(cell: Cell) -> float | str:
    """Return the sort key of a cell: its number, or its text, or nothing."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    return float(cell) if math.isfinite(cell) else ""
