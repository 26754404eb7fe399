"""Tables as CSV and LaTeX: every number, every character, and names of files that do not collide."""

from __future__ import annotations

import csv
import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import NASTY, analyses

from groundray.analysis.report.table_files import MOST_ROWS, latex, table_files
from groundray.analysis.result import Analysis, Difference, Measure, ReadOff, Table, Value


def read(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def made(*tables: Table, measures: tuple[Measure, ...] = ()) -> dict[str, bytes]:
    return dict(table_files([Analysis("axes", "About.", measures, tables)]))


def body(content: bytes) -> list[str]:
    """The rows of a LaTeX table."""
    return content.decode().partition("\\midrule\n")[2].partition("\\bottomrule")[0].splitlines()


def test_csv_has_whole_numbers_and_texts_as_they_are() -> None:
    rows = ((NASTY, 1 / 3, 1234567, None), ('a "b", c', math.nan, 0, "line\nend"), ("é", 1e-17, -5, "-"))
    found = read(made(Table("Words: all", ("word", "x", "n", "note"), rows))["tables/axes-words-all.csv"])
    assert found == [
        ["word", "x", "n", "note"],
        [NASTY, "0.3333333333333333", "1234567", ""],
        ['a "b", c', "", "0", "line\nend"],
        ["é", "1e-17", "-5", "-"],
    ]
    assert float(found[1][1]) == 1 / 3


def test_latex_is_a_table_of_booktabs_with_numbers_as_shown() -> None:
    rows = (("50% of $x_1$", 1 / 3, 1234), ("[a] *", -0.25, None))
    assert made(Table("T", ("word", "x & y", "n"), rows))["tables/axes-t.tex"].decode() == (
        "% T; needs \\usepackage{booktabs}\n"
        "\\begin{tabular}{lrr}\n"
        "\\toprule\n"
        "word & x \\& y & n \\\\\n"
        "\\midrule\n"
        "50\\% of \\$x\\_1\\$ & 0.333 & 1,234 \\\\\n"
        "{[}a{]} {*} & $-$0.250 & -- \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
    )


@given(st.text())
@settings(deadline=None, max_examples=60)
def test_escaped_text_has_no_special_character_of_latex(text: str) -> None:
    """What is left without the escapes, and without the braces that they write, is plain."""
    escaped = latex(text)
    assert "\n" not in escaped
    commands = r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}|\\[&%$#_{}]"
    plain = re.sub(commands + r"|\{[\[\]*]\}|\$-\$|\$\\approx\$|~", "", escaped)
    assert not set(plain) & set("\\{}$&#%_^~<>|[]*")


def test_a_long_latex_table_is_cut_and_says_so() -> None:
    found = made(Table("Long", ("n",), tuple((number,) for number in range(MOST_ROWS + 5))))
    assert len(body(found["tables/axes-long.tex"])) == MOST_ROWS
    assert f"the first {MOST_ROWS} of {MOST_ROWS + 5} rows" in found["tables/axes-long.tex"].decode()
    assert len(read(found["tables/axes-long.csv"])) == MOST_ROWS + 6


def test_measures_have_a_row_for_each_model_and_say_how_they_were_published() -> None:
    measure = Measure(
        "f1/all",
        "F1",
        1353,
        {"a": Value(0.5, 0.25, 0.75), "b": Value(math.nan)},
        (Difference("a", "b", Value(0.1, 0.05, 0.2), p=0.0004),),
        {"a": ReadOff(0.1), "paper": 0.2},
    )
    found = made(measures=(measure,))
    assert read(found["tables/axes-measures.csv"])[1:] == [
        ["f1/all", "F1", "1353", "a", "0.5", "0.25", "0.75", "0.1", "read off"],
        ["f1/all", "F1", "1353", "b", "", "", "", "", ""],
        ["f1/all", "F1", "1353", "paper", "", "", "", "0.2", "printed"],
    ]
    assert body(found["tables/axes-measures.tex"]) == [
        "F1 & 1,353 & 0.500 {[}0.250, 0.750{]} & -- & $\\approx$0.100 & 0.200 \\\\"
    ]
    assert read(found["tables/axes-differences.csv"])[1:] == [
        ["f1/all", "F1", "1353", "b", "a", "0.1", "0.05", "0.2", "0.0004"]
    ]
    assert body(found["tables/axes-differences.tex"]) == [
        "F1 & b & a & 0.100 & {[}0.050, 0.200{]} & \\textless{} .001 \\\\"
    ]


@pytest.mark.parametrize("title", ["Same", "S" * 300, "../../etc/passwd", "///"])
def test_names_of_files_are_plain_and_differ(title: str) -> None:
    tables = (Table(title, ("n",), ((1,),)), Table(title.upper(), ("n",), ((2,),)), Table(title, ("n",), ()))
    found = made(*tables)
    assert len(found) == 6
    assert all(re.fullmatch(r"tables/axes[a-z0-9-]*\.(csv|tex)", name) for name in found)
    assert max(map(len, found)) < 100
    assert [read(content)[1:] for name, content in found.items() if name.endswith("csv")] == [[["1"]], [["2"]], []]


def test_every_analysis_has_its_own_files() -> None:
    found = dict(table_files(analyses()))
    assert len(found) == 10
    assert {name.partition("-")[0] for name in found} == {"tables/axes", "tables/categories"}
