"""A table reads back equal from any dialect in which it can be written; what is ambiguous is refused by line."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from groundray.analysis.inputs.delimited import is_missing, read_table
from groundray.storage.text_encoding import MARKS

COLUMNS = {"word": ("word",), "rating": ("rating", "conc_m")}
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], exclude_characters="\ufeff"), max_size=8)
WORD = TEXT.filter(lambda text: text.strip() and not text.lstrip().startswith("#") and '"' not in text)
NUMBER = st.one_of(
    st.none(), st.decimals(-999, 9999, places=2, allow_nan=False).map(float), st.integers(0, 9).map(float)
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[tuple[str, float | None, str]], bytes]:
    """Draw rows of word, rating and note, and the bytes of a file that holds them."""
    rows = draw(st.lists(st.tuples(WORD, NUMBER, TEXT), min_size=1, max_size=5))
    separator = draw(st.sampled_from([",", ";", "\t", " "]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    if separator in "\t ":  # where a quote is text unless it encloses a field
        rows = [(word, number, note.replace('"', "")) for word, number, note in rows]
    if separator == " ":
        quoting = csv.QUOTE_ALL
    mark = draw(st.sampled_from([".", ","])) if any(number is not None for _, number, _ in rows) else "."
    missing = draw(st.sampled_from(["", "NA", "#N/A", "nan", "-"]))
    order = draw(st.permutations([0, 1, 2]))

    def text(number: float | None) -> str:
        return missing if number is None else f"{number:.2f}".replace(".", mark)

    out = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end)
    names = ("Word", draw(st.sampled_from(["Conc.M", "rating", " RATING "])), "note")
    if draw(st.booleans()) and separator != " ":
        out.write(f"sep={separator}{end}")
    for row in (names, *((word, text(number), note) for word, number, note in rows)):
        writer.writerow([row[at] for at in order])
    bytes_of_mark, encoding = draw(st.sampled_from([(b"", "utf-8"), *MARKS]))
    return rows, bytes_of_mark + out.getvalue().encode(encoding)


@pytest.mark.thorough
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables())
def test_a_table_of_any_dialect_reads_back_equal(
    tmp_path: Path, drawn: tuple[list[tuple[str, float | None, str]], bytes]
) -> None:
    rows, content = drawn
    assume(any(number is not None for _, number, _ in rows))
    file = tmp_path / "table.csv"
    file.write_bytes(content)
    table = read_table(file, COLUMNS, numbers=("rating",))
    found = [(row.fields["word"], row.number_if_any("rating")) for row in table.rows]
    assert found == [(word.strip(), number) for word, number, _ in rows]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str | bytes) -> Path:
        file = tmp_path / "table.csv"
        file.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))
        return file

    return write


Write = Callable[..., Path]


def read(file: Path) -> list[tuple[str, float | None]]:
    table = read_table(file, COLUMNS, numbers=("rating",))
    return [(row.text("word"), row.number_if_any("rating")) for row in table.rows]


def test_a_quote_between_tabs_swallows_nothing(write: Write) -> None:
    file = write("word\trating\tnote", '"hello\t2.5\tx', "truth\t1.9\t", 'idea"\t1.5\t"hot', '"dog"\t4\t"a ""b"""')
    assert read(file) == [('"hello', 2.5), ("truth", 1.9), ('idea"', 1.5), ("dog", 4)]


def test_quoted_tabs_and_line_ends_are_read_where_nothing_else_fits(write: Write) -> None:
    file = write("word\trating\tnote", 'sun\t4\t"a\tb"', 'moon\t3\t"a', 'b"', "star\t2\tc")
    assert read(file) == [("sun", 4), ("moon", 3), ("star", 2)]
    assert read(write("word,rating,note", 'sun,4,"a', 'b, c"', "star,2,c")) == [("sun", 4), ("star", 2)]


def test_a_quote_in_csv_that_would_swallow_rows_is_an_error(write: Write) -> None:
    with pytest.raises(ValueError, match=r"table.csv line 2: a quote opens here and closes in line 4"):
        read(write("word,rating", '"hello,2.5', "truth,1.9", 'idea",1.5', "dog,4"))
    with pytest.raises(ValueError, match=r"table.csv line 3: expected a row of CSV"):
        read(write("word,rating", "dog,4", '"hello,2.5', "truth,1.9"))


@pytest.mark.parametrize(
    "lines",
    [
        ("word\trating", "dog\t4.85", "truth\t1.9"),
        ("\ufeffWord;Conc.M\r", "dog;4,85\r", "truth;1,9\r"),
        ("sep=;", "word;rating", "dog;4,85", "truth;1,9"),
        ('"sep=,"', "word,rating", "dog,4.85", "truth,1.9"),
        ("sep=|", "word|rating", "dog|4.85", "truth|1.9"),
        ('word, "rating"', 'dog, "4.85"', "truth , 1.9"),
        ("word,rating", '"dog","4,85"', '"truth","1,9"'),
        ("word,rating,", "dog,4.85,", "truth,1.9,"),
        ("word,rating", "dog,4.85,", "truth,1.9,"),
        ('"word" "rating"', '"1" "dog" 4.85', '"2" "truth" 1.9'),
        ("# Ratings, 2014", "# of words", "word,rating", "dog,4.85", "truth,1.9"),
        ("#word\trating", "dog\t4.85", "truth\t1.9"),
        ("rating;a,b;word", "4.85;x,y;dog", "1.9;,;truth"),
        ("Conc.M,word,word 2", "", " , , ", "4.85,dog,x", ",,", "1.9,truth,x"),
    ],
)  # fmt: skip
def test_files_that_mean_the_same(write: Write, lines: tuple[str, ...]) -> None:
    assert read(write(*lines)) == [("dog", 4.85), ("truth", 1.9)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("word,rating", '"dog","1,234"'), "line 2: .* which may be 1.234 or 1234"),
        (("word\trating", "dog\t1,234", "cat\t2,345"), "line 2: .* which may be 1.234 or 1234"),
        (("word\trating", "dog\t1.234,5"), "line 2: .* got '1.234,5': write it without thousands"),
        (("word\trating", "dog\t4,5", "cat\t4.5"), r"line 2: .* got '4,5' beside '4.5' \(line 3\)"),
        (("word;rating", "dog;4;5"), "line 2: expected 2 fields as in the first row, got 3"),
        (("word,rating", "dog,4,85", "cat,3,5"), "line 2: expected 2 fields as in the first row, got 3"),
        (("word,rating", "dog,#DIV/0!"), "line 2: expected a number as rating, got '#DIV/0!'"),
        (("name\tage", "dog\t4"), "line 1: expected a column word, got the columns name, age"),
        (("sep=;", "word,rating", "dog,4"), "line 2: expected a column word, got the columns word,rating"),
        ((b"\x1f\x8b\x08",), "expected text, got a gzip file: unpack it"),
        ((b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",), "got an Excel workbook: save its sheet as `CSV UTF-8`"),
        (("word,rating\0", "dog,4"), "line 1: expected UTF-8, it holds a NUL"),
    ],
)
def test_error_names_the_line(write: Write, lines: tuple[str | bytes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write(*lines))


def test_decimal_commas_may_have_three_decimals_where_semicolons_separate(write: Write) -> None:
    assert read(write("word;rating", "dog;1,234", "cat;2,345")) == [("dog", 1.234), ("cat", 2.345)]
    assert read(write("word\trating", "dog\t0,234", "cat\t2,345")) == [("dog", 0.234), ("cat", 2.345)]


@pytest.mark.parametrize("text", ["", "NA", "n/a", "#N/A", "NaN", "null", "None", ".", "-", " "])
def test_missing_numbers(text: str) -> None:
    assert is_missing(text)
