"""The report: it holds every result, executes nothing from the data, and needs no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from made_up import MODELS, NASTY, analyses

from groundray.analysis.report.document import (
    FEWEST_DIVIDED,
    Report,
    as_json,
    files,
    finite,
    metrics,
)
from groundray.analysis.report.numbers import format_interval, format_number, format_p
from groundray.analysis.result import Analysis, Measure, ReadOff, Value
from groundray.storage.seals import seal_document

Row = list[tuple[str, dict[str, str]]]


class Page(HTMLParser):
    """The elements of a page, and its tables as rows of cells with text and attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[Row]] = []
        self._cell: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.tags.append((tag, known))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []
            self.tables[-1][-1].append(("", known))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            text = " ".join("".join(self._cell).split())
            self.tables[-1][-1][-1] = (text, self.tables[-1][-1][-1][1])
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture(scope="module")
def report() -> Report:
    return Report(
        title=NASTY,
        models={model: f"runs/{NASTY}/language-{model}" for model in MODELS},
        analyses=analyses(),
        notes=(f"no control {NASTY}",),
        skipped={"similarity": f"no word pairs in {NASTY}"},
    )


@pytest.fixture(scope="module")
def made(report: Report) -> dict[str, bytes]:
    return dict(files(report))


@pytest.fixture(scope="module")
def page(made: dict[str, bytes]) -> Page:
    return Page(made["report.html"].decode())


@pytest.mark.thorough
def test_pictures_drawn_by_processes_are_the_same(report: Report, made: dict[str, bytes]) -> None:
    assert sum(name.endswith(".png") for name in made) >= FEWEST_DIVIDED
    assert dict(files(report, processes=2)) == made


@pytest.mark.thorough
def test_pictures_that_a_process_cannot_draw_are_drawn_here(
    report: Report, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a script whose main module starts it again in each process."""

    def call(function: Any, calls: Any, _: int) -> Iterator[Any]:
        yield function(*calls[0])
        raise OSError("one of 2 processes was killed")

    monkeypatch.setattr("groundray.analysis.report.document.call_in_processes", call)
    assert dict(files(report, processes=2)) == made


def test_everything_is_in_files_and_pictures_are_png(made: dict[str, bytes]) -> None:
    drawn = ["axes-measures", "axes-pc2-pc3", "categories-measures", "categories-silhouette", "categories-tsne"]
    drawn += ["categories-most-improved", "summary"]
    tables = [f"tables/{name}" for name in ("axes-measures", "axes-differences", "axes-words-along-pc1")]
    tables += [f"tables/{name}" for name in ("categories-measures", "categories-differences")]
    names = [f"{name}.png" for name in drawn] + [f"{name}.{ending}" for name in tables for ending in ("csv", "tex")]
    assert sorted(made) == sorted([*names, "report.html", "report.json"])
    assert json.loads(made["report.json"])["files"] == sorted(made)
    assert all(made[f"{name}.png"].startswith(b"\x89PNG") for name in drawn)


def test_words_from_files_are_escaped(made: dict[str, bytes], page: Page) -> None:
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "<script>alert" not in made["report.html"].decode()
    assert any(NASTY in text for table in page.tables for row in table for text, _ in row)


def test_nothing_is_fetched(page: Page) -> None:
    fetched = [
        value
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "srcset", "data")
        and not value.startswith(("#", "data:image/"))
    ]
    assert fetched == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "embed"}
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_comparison_holds_every_figure(page: Page) -> None:
    groups, head, *rows = page.tables[0]
    assert [(text, cell.get("colspan")) for text, cell in groups] == [("", "2"), ("measured", "4"), ("published", "3")]
    assert [text for text, _ in head] == ["measure", "items", *MODELS, "ungrounded", "grounded", "relational"]
    assert all(cell["aria-sort"] == "none" for _, cell in head)
    first = [text for text, _ in rows[0]]
    assert first[:3] == ["axes PC1 and concreteness, words: Pearson r", "52", "0.100 [0.050, 0.140]"]
    assert first[-3:] == ["0.104", "0.661", "0.695"]
    not_a_number = rows[2]
    assert [text for text, _ in not_a_number][4:6] == ["–", "1"]  # noqa: RUF001
    assert not_a_number[4][1]["data-sort"] == ""
    assert len(rows) == 4


def test_every_difference_has_its_interval_and_p(page: Page) -> None:
    head, *rows = page.tables[1]
    assert [text for text, _ in head] == ["measure", "more of", "than of", "difference", "low", "high", "p"]
    assert len(rows) == 3 * 6
    assert [text for text, _ in rows[0]] == [
        "axes PC1 and concreteness, words: Pearson r",
        "text-only",
        "ungrounded",
        "0.150",
        "0.010",
        "0.400",
        "< .001",
    ]
    assert rows[0][-1][1]["data-sort"] == "0.0004"


def test_numbers_in_tables_can_be_sorted(page: Page) -> None:
    head, first, second = page.tables[2]
    assert [text for text, _ in head] == ["word", "grounded", "rating"]
    assert [cell["class"] for _, cell in first] == ["first", "number", "number"]
    assert [cell["data-sort"] for _, cell in first] == [NASTY, "30.86", "4.97"]
    assert second[2][1]["data-sort"] == ""


def test_omitted_items_and_skipped_analyses_are_listed(made: dict[str, bytes]) -> None:
    text = made["report.html"].decode()
    assert "<b>3</b> words out of vocabulary" in text
    assert "<b>similarity</b> was not made: no word pairs in" in text
    assert "no control &lt;script&gt;" in text


def test_json_holds_the_same_numbers_and_null_for_nan(report: Report, made: dict[str, bytes]) -> None:
    content = json.loads(made["report.json"], parse_constant=pytest.fail)
    assert content == seal_document({**as_json(report), "files": sorted(made)})
    axes = content["analyses"]["axes"]
    grounded = axes["measures"]["pc1/words/pearson"]["values"]["grounded"]
    assert grounded == pytest.approx({"value": 0.4, "low": 0.35, "high": 0.44})
    assert axes["measures"]["pc1/words/pearson"]["differences"][0]["p"] == 0.0004
    assert axes["measures"]["nan"]["values"]["grounded"]["value"] is None
    assert axes["tables"][0]["rows"][1] == ["zebra", 24.7, None]
    assert axes["left_out"] == {"words out of vocabulary": 3, "duplicates": 0}
    assert len(content["summary"]["sentences"]) == 1
    assert content["skipped"].keys() == {"similarity"}


def test_a_published_number_says_whether_it_was_printed_or_read_off() -> None:
    found = Measure("f1", "F1", 3, {"grounded": Value(0.1)}, (), {"ungrounded": ReadOff(0.05), "grounded": 0.102})
    made = dict(files(Report("r", {"grounded": "g"}, (Analysis("norms", "F1.", (found,)),))))
    own = json.loads(made["report.json"])["analyses"]["norms"]["measures"]["f1"]
    assert own["published"] == {"ungrounded": 0.05, "grounded": 0.102}
    assert own["published_read_off"] == ["ungrounded"]
    (row,) = Page(made["report.html"].decode()).tables[0][2:]
    assert [text for text, _ in row[-2:]] == ["≈0.050", "0.102"]


@pytest.mark.thorough
def test_equal_reports_give_equal_bytes(report: Report, made: dict[str, bytes]) -> None:
    assert dict(files(report)) == made


def test_metrics_are_finite_and_named_by_analysis_and_measure(report: Report) -> None:
    found = metrics(report)
    assert found["analysis/axes/pc1/words/pearson/grounded"] == pytest.approx(0.4)
    assert "analysis/axes/nan/grounded" not in found
    assert found["analysis/axes/nan/relational"] == 1


def test_an_empty_report_is_a_page() -> None:
    made = dict(files(Report("empty", {}, ())))
    assert set(made) == {"report.html", "report.json"}


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),  # noqa: RUF001
        (math.nan, "–"),  # noqa: RUF001
        (-0.25, "−0.250"),  # noqa: RUF001
        (1234, "1,234"),
        (489.25, "489.2"),
        (ReadOff(0.102), "≈0.102"),
        (ReadOff(0), "≈0.000"),
        ("oven", "oven"),
    ],
)
def test_cells(cell: str | float | None, text: str) -> None:
    assert format_number(cell) == text


def test_intervals_and_p() -> None:
    assert format_interval(Value(1.0, 0.5, 1.5)) == "[0.500, 1.500]"
    assert format_interval(Value(1.0)) == ""
    assert [format_p(p) for p in (None, 0.0001, 0.0123, 0.5, 1.0)] == ["–", "< .001", ".012", ".500", "1"]  # noqa: RUF001
    assert finite({"a": (math.inf, 1, True, "x", None)}) == {"a": [None, 1, True, "x", None]}
