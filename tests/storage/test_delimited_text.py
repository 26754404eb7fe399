"""Rows of delimited text: as the csv module reads them, and what cannot be read spoils one line alone."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundray.storage.delimited_text import delimited_rows

FIELD = st.text(st.sampled_from('ab ,;"\t|'), max_size=6).map(str.strip)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(",;\t|"))
def test_what_the_csv_module_writes_reads_back_equal(rows: list[list[str]], separator: str) -> None:
    rows = [row for row in rows if any(row)]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows(rows)
    lines = list(enumerate(out.getvalue().splitlines(), start=1))
    read = list(delimited_rows(lines, separator, 3))
    assert [row.problem for row in read] == [""] * len(rows)
    assert [[field.strip() for field in row.fields] for row in read] == rows


def test_a_line_that_cannot_be_read_spoils_itself_alone() -> None:
    text = 'a,"one\nb,two\nc,"th""ree, or\nmore"\nd\ne,f,g\nh,"i" j\nk,l,\nm,n'
    read = list(delimited_rows(enumerate(text.split("\n"), start=1), ",", 2))
    assert [(row.line, row.fields) for row in read if not row.problem] == [
        (2, ["b", "two"]),
        (3, ["c", 'th"ree, or\nmore']),
        (8, ["k", "l"]),
        (9, ["m", "n"]),
    ]
    assert [row.line for row in read if row.problem] == [1, 5, 6, 7]


@pytest.mark.parametrize("separator", ["\t", "|"])
def test_where_tabs_or_bars_separate_a_quote_is_text(separator: str) -> None:
    lines = [f'1.jpg{separator}"stop" says the sign', f'2.jpg{separator}"a ""dog"""', f'3.jpg{separator}5" pipe']
    read = list(delimited_rows(enumerate(lines, start=1), separator, 2))
    assert [row.fields[1] for row in read] == ['"stop" says the sign', 'a "dog"', '5" pipe']
