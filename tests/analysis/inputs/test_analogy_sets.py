"""Analogies in the layouts in which they are published, and those that cannot be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundray.analysis.inputs.analogy_sets import Analogies, Question, read_analogies

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "norms" / "analogies"


def read(folder: Path, text: str) -> Analogies:
    (folder / "own.txt").write_text(text)
    return read_analogies(folder / "own.txt")


def test_googles_text_has_sections(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        ": capital-common countries\nAthens Greece Oslo Norway\nOslo Norway Athens Greece\n"
        ": gram1\ncalm calmly ice_cream x\n",
    )
    assert found.questions == (
        Question("Athens", "Greece", "Oslo", "Norway", section="capital-common countries"),
        Question("Oslo", "Norway", "Athens", "Greece", section="capital-common countries"),
        Question("calm", "calmly", "ice cream", "x", section="gram1"),
    )
    assert found.left_out == {}
    assert found.source is not None
    assert found.source.layout == "four words a line in 2 sections; spaces"


def test_candidates_are_the_answers_to_choose_from(tmp_path: Path) -> None:
    found = read(tmp_path, "a,b,c,target,candidates\ncar,land,plane,sky,ocean|sky| ocean |road\nx,y,z,w,\n")
    assert found.questions[0] == Question("car", "land", "plane", "sky", ("ocean", "sky", "road"))
    assert found.questions[0].words == ("car", "land", "plane", "sky", "ocean", "road")
    assert found.questions[1].candidates == ()


@pytest.mark.parametrize(
    "text",
    [
        "# a set\na1\ta2\tb1\tb2\n# family\nboy\tgirl\tking\tqueen\n",
        "boy girl king queen\n",
        "b2,section,b1,a2,a1\nqueen,,king,girl,boy\n",
        "boy\tgirl\tking\tqueen\nboy\tgirl\tking\tqueen\n",
    ],
    ids=["comments", "no names", "any order", "twice"],
)
def test_four_words_in_any_table(tmp_path: Path, text: str) -> None:
    found = read(tmp_path, text)
    assert found.questions == (Question("boy", "girl", "king", "queen"),)
    assert found.left_out == ({"questions that stand twice": 1} if text.count("boy") == 2 else {})


def test_questions_without_all_words_are_counted(tmp_path: Path) -> None:
    found = read(tmp_path, "a,b,c,target\nboy,girl,king,\nboy,girl,king,queen\n")
    assert len(found.questions) == 1
    assert found.left_out == {"questions without four words": 1}
    assert found.source is not None
    assert (found.source.rows, found.source.used) == (2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (": one\na b c d\na b c\n", r"own\.txt line 3: expected four words, a b c and the target, got 3: 'a b c'"),
        (
            "a,b,c,target,candidates\nx,y,z,sky,sea|road\n",
            r"line 2: expected the target sky among the candidates, got sea",
        ),
        ("a,b,c,target,candidates\nx,y,z,sky,sky|sky\n", r"line 2: expected at least two candidates, got sky"),
        ("one two three\n", r"line 1: expected columns a, b, c, target, or four words a line, got 'one two three'"),
        ("a,b,c,target\nx,y,z\n", r"line 2: expected 4 fields as in the first row, got 3"),
        ("a,b,c,target\n", "names its columns, and has no row"),
        ("a,b,c,target\nx,y,,w\n", "expected analogies of four words, got none among 1 rows"),
        ("# nothing\n", "comments alone"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_the_published_files_are_read() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published analogies in {PUBLISHED}")
    visual = read_analogies(PUBLISHED / "visual.csv")
    assert len(visual.questions) == 13
    assert all(len(question.candidates) == 4 or "train" in question.given for question in visual.questions)
    google = read_analogies(PUBLISHED / "google-semantic-no-countries.tsv")
    assert len(google.questions) == 625
    assert google.questions[0] == Question("boy", "girl", "brother", "sister")
