"""Word pairs in the layouts of published sets, and files that could be read in two ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from groundray.analysis.inputs.word_pairs import read_pairs

PAIRS = (
    ("sun", "sunlight", 9.1), ("car", "automobile", 8.9), ("river", "water", 8.0), ("ice cream", "snow", 4.5),
    ("noon", "string", 0.6), ("cat", "dog", 6.5),
)  # fmt: skip
Row = tuple[str, str, float]


def context(word: str) -> str:
    return f'he said "the <b> {word} </b> is old'


# a line of each layout, of a pair and its number, and the row of names
LAYOUTS: dict[str, tuple[Callable[[int, Row], str], str | None]] = {
    "tabs": (lambda _, p: f"{p[0]}\t{p[1]}\t{p[2]}", None),
    "commas": (lambda _, p: f"{p[0]},{p[1]},{p[2]}", None),
    "semicolons": (lambda _, p: f"{p[0]};{p[1]};{p[2]}", None),
    "spaces": (lambda _, p: f"{p[0].replace(' ', '_')}   {p[1]}  {p[2]}", None),
    "named, spaces": (lambda _, p: f"{p[0].replace(' ', '_')} {p[1]} {p[2]}", "word1 word2 score"),
    "European Excel": (lambda _, p: f"{p[0]};{p[1]};{str(p[2]).replace('.', ',')}", "\ufeffword1;word2;score"),
    "quoted": (lambda _, p: f'"{p[0]}","{p[1]}","{p[2]}"', '"word1","word2","score"'),
    "pandas": (lambda n, p: f"{n},{p[0]},{p[1]},{p[2]}", ",word1,word2,score"),
    "pandas, nameless": (lambda n, p: f"{n},{p[0]},{p[1]},{p[2]}", None),
    "R": (lambda n, p: f'"{n + 1}" "{p[0]}" "{p[1]}" {p[2]}', '"word1" "word2" "score"'),
    "SimLex": (lambda _, p: f"{p[0]}\t{p[1]}\tN\t{p[2]}\t2.7\t2.8\t2\t7.2\t1\t1.2",
               "word1\tword2\tPOS\tSimLex999\tconc(w1)\tconc(w2)\tconcQ\tAssoc(USF)\tSimAssoc333\tSD(SimLex)"),
    "SimVerb": (lambda n, p: f"{p[0]}\t{p[1]}\tV\t{p[2]}\t{('SYNONYMS', 'NONE')[n % 2]}", None),
    "WordSim": (lambda _, p: f"{p[0]},{p[1]},{p[2]}", "Word 1,Word 2,Human (mean)"),
    "WordSim agreed": (lambda n, p: f"{'tTsMih'[n]}\t{p[0]}\t{p[1]}\t{p[2]}", None),
    "WordSim agreed, with comments": (lambda n, p: f"{'tTsMih'[n]}\t{p[0]}\t{p[1]}\t{p[2]}",
                                      "# kinds of relation\n#\n# i: identical, s: synonyms\n"),
    "MEN lemmas": (lambda _, p: f"{p[0].replace(' ', '_')}-n {p[1]}-n {p[2]}", None),
    "SCWS": (lambda n, p: "\t".join([str(n + 1), p[0], "n", p[1], "n", context(p[0]), context(p[1]), str(p[2]),
                                     *(["0.0"] + ["10.0"] * 9)]), None),
    "a part of SCWS": (lambda n, p: f"{(7, 3, 91, 12, 60, 5)[n]}\t{p[0]}\tn\t{p[1]}\tv\t{p[2]}", None),
    "RareWords": (lambda _, p: f"{p[0]}\t{p[1]}\t{p[2]}\t0\t10\t{round(p[2])}", None),
    "score first": (lambda _, p: f"{p[2]}\t{p[0]}\t{p[1]}", None),
    "named by the score alone": (lambda _, p: f"{p[0]},{p[1]},{p[2]},1", "a,b,Relatedness,raters"),
    "another name of the score": (lambda _, p: f"{p[0]},{p[1]},{p[2]}", "word1,word2,liking"),
    "two columns word": (lambda _, p: f"{p[0]},{p[1]},{p[2]}", "word,word,score"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_pairs_as_they_are_published(tmp_path: Path, layout: str, end: str) -> None:
    line, names = LAYOUTS[layout]
    lines = [*([names] if names else []), *(line(number, pair) for number, pair in enumerate(PAIRS))]
    file = tmp_path / "pairs"
    file.write_bytes(end.join(lines).replace("\n", end).encode())
    found = read_pairs(file)
    assert list(zip(found.first, found.second, found.score.tolist(), strict=True)) == list(PAIRS)
    assert (found.repeated, found.left_out) == (0, {})
    assert found.source is not None
    assert (found.source.rows, found.source.used) == (6, 6)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str) -> Path:
        file = tmp_path / "norms.csv"
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return file

    return write


Write = Callable[..., Path]


def test_the_columns_that_were_taken_are_named(write: Write) -> None:
    named = read_pairs(write("Word 1,Word 2,Human (mean)", "a,b,1")).source
    assert named is not None
    assert named.layout == "columns Word 1, Word 2, Human (mean); commas"
    lemmas = read_pairs(write("1\tsun-n\tred-j\t9,1", "2\tbe-v\tfast-a\t1,2")).source
    assert lemmas is not None
    assert lemmas.layout == "columns 2, 3, 4; tabs, decimal commas, tags of lemmas removed"


def test_hyphens_of_words_are_kept_where_not_all_have_a_tag(write: Write) -> None:
    found = read_pairs(write("plan-b\tx-ray-n\t1", "vitamin-a\tsun\t2"))
    assert (found.first, found.second) == (("plan-b", "vitamin-a"), ("x-ray-n", "sun"))


def test_pairs_that_stand_twice_are_kept_and_counted(write: Write) -> None:
    found = read_pairs(write("money\tbank\t8.12", "bank\tmoney\t8.5", "tiger\ttiger\t10"))
    assert found.score.tolist() == [8.12, 8.5, 10]
    assert found.repeated == 1


def test_pairs_without_a_word_or_score_are_left_out_and_counted(write: Write) -> None:
    found = read_pairs(write("old\tnew\tNA", "nan\tnull\t3", "\tbee\t2", "NA\tnone\t#N/A", "cat\tdog\t6.5", "a\tb\t-"))
    assert (found.first, found.second) == (("nan", "cat"), ("null", "dog"))
    assert found.left_out == {"pairs without two words": 1, "pairs without a score": 3}
    assert found.source is not None
    assert found.source.rows == 6


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "is empty"),
        (("old\tnew",), r"line 1: expected two words and a score, got 'old\\tnew'"),
        (("old\tnew\t1", "ant bee 2"), "line 2: expected 3 fields as in the first row, got 1"),
        (("old\tnew\t1", "ant\tbee\t1", "ant\tbee\tlow"), "line 3: expected a number as score, got 'low'"),
        (("old\tnew\t1", "ant\tbee\tNA", "ant\tbee\t1_000"), "line 3: expected a number as score, got '1_000'"),
        (("word1\tword2\tliking\tknowing", "a\tb\t2\t3"), "line 1: .* one column of scores; got liking, knowing"),
        (("a dog\tb dog\t2\t3", "c dog\td dog\t9\t1"), r"line 1: .* got column 3 \(2\), column 4 \(3\): name the col"),
        (("0,sun,moon", "1,car,bus", "2,cat,dog"), r"line 1: .* one column of scores; got none among column 1 \(0\)"),
        (("t\tsun\t9.1", "s\tcar\t8.9"), r"line 1: expected two columns of words, got column 2 \(sun\): name the"),
        (("sun\tmoon\tstar\t9", "car\tbus\ttram\t8"), r"two columns of words, got column 1 \(sun\), column 2 \(moon\)"),
        (("one\tother\tvalue", "car\tbus\t8", "cat\tdog\t7"), "or names: word1, word2 and one of .* got one, other"),
        (("sun,moon,9,1", "car,bus,8,5"), r"line 1: .* got column 3 \(9\), column 4 \(1\)"),
        (("sun\tmoon\t9,1", "car\tbus\t8.5"), "decimal commas or points as score, got '9,1' beside '8.5'"),
        (("word1,word2,score",), "line 1: expected pairs below the names"),
        (("word1\tword2\tscore", "a\tb\t-"), "expected pairs of words with a score, got none among 1"),
    ],
)
def test_error_names_the_line_and_the_columns(write: Write, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_pairs(write(*lines))
    assert "norms.csv" in str(error.value)
