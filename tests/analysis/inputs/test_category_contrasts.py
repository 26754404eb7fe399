"""Contrasts of sets of categories, read from tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundray.analysis.inputs.category_contrasts import read_contrasts

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "norms" / "semcat100.csv"
NAMES = ("people", "jobs", "dogs", "bodies_of_water")


def write(folder: Path, *rows: str) -> str:
    file = folder / "contrasts.csv"
    file.write_text("\n".join(("contrast,side,category", *rows)) + "\n")
    return str(file)


def test_a_table_of_contrasts(tmp_path: Path) -> None:
    rows = ("human,human,people", "human,other,*", "human,human,jobs", "wet,wet,bodies_of_water", "wet,dry,dogs")
    found = read_contrasts(write(tmp_path, *rows), NAMES)
    human, wet = found.every
    assert (human.name, human.first, human.other) == ("human", "human", "other")
    assert (human.of_first, human.of_other) == ({"people", "jobs"}, {"*"})
    assert (wet.of_first, wet.of_other) == ({"bodies_of_water"}, {"dogs"})
    assert found.source is not None
    assert found.source.rows == 5


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"SemCat's categories are not there: {PUBLISHED}")
def test_the_contrasts_that_are_built_in_are_of_semcats_categories() -> None:
    found = read_contrasts(None, ())
    assert [one.name for one in found.every] == ["human or not", "object or scene", "animate or not"]
    assert found.source is None
    named = {category for one in found.every for category in one.of_first | one.of_other} - {"*"}
    lines = PUBLISHED.read_text().splitlines()
    assert named <= {line.partition(",")[0] for line in lines}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("a,x,people", "a,y,cats"), r"line 3: expected a category of the norms \(bodies_of_water, dogs, .*got 'cats'"),
        (("a,x,people", "a,y,dogs", "a,z,jobs"), "line 4: expected two sides of 'a', x and y, got 'z' too"),
        (("a,x,people", "a,x,dogs"), "expected two sides of 'a', got 'x' alone"),
        (("a,x,people", "a,y,people"), "line 3: expected 'people' on one side of 'a', got it on x and y"),
        (("a,x,*", "a,y,*"), r"line 3: expected '\*' on one side of 'a'"),
        (("a,x,*", "a,x,dogs", "a,y,people"), r"expected \* or categories as 'x' of 'a', got both"),
        (("a,x,", "a,y,dogs"), "line 2: expected a contrast, a side and a category, got one that is empty"),
        ((), "names its columns, and has no row"),
    ],
)
def test_a_table_that_cannot_be_read_names_the_line(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_contrasts(write(tmp_path, *rows), NAMES)
    assert "contrasts.csv" in str(error.value)


def test_a_table_without_a_column(tmp_path: Path) -> None:
    (tmp_path / "contrasts.csv").write_text("contrast,category\na,people\n")
    with pytest.raises(ValueError, match=r"line 1: expected a column side, got the columns contrast, category"):
        read_contrasts(str(tmp_path / "contrasts.csv"), NAMES)
