"""Strata of word pairs: of SimLex's own columns, of other columns by rule or by name, and of ratings by quartile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundray.analysis.inputs.pair_strata import MOST, RATED, ROWS, Strata, strata_of
from groundray.analysis.inputs.word_pairs import Pairs, read_pairs

SIMLEX = "word1\tword2\tPOS\tSimLex999\tconc(w1)\tconc(w2)\tconcQ\tAssoc(USF)\tSimAssoc333\tSD(SimLex)"
Read = Callable[..., Pairs]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(header: str, *lines: str) -> Pairs:
        file = tmp_path / "pairs.txt"
        file.write_text("".join(f"{line}\n" for line in (header, *lines)))
        return read_pairs(file)

    return read


def as_lists(strata: Strata) -> dict[str, list[int]]:
    return {name: members.tolist() for name, members in strata.pairs.items()}


def test_simlex_as_published(read: Read) -> None:
    found = strata_of(
        read(
            SIMLEX,
            "old\tnew\tA\t1.58\t2.72\t2.81\t2\t7.25\t1\t0.41",
            "cat\tdog\tN\t1.75\t6.10\t6.19\t4\t4.10\t0\t1.21",
            "eat\tdine\tV\t9.2\t3.72\t3.92\t3\t1.15\t1\t0.7",
            "car\tboat\tN\t2.9\t6.35\t6.11\t4\t0.38\t0\t1.0",
        ),
        ratings={"old": 1.0, "new": 2.0},
    )
    assert as_lists(found) == {
        "adjectives": [0],
        "nouns": [1, 3],
        "verbs": [2],
        "concreteness 2 of 4": [0],
        "concreteness 3 of 4": [2],
        "concreteness 4 of 4": [1, 3],
        "hard": [0, 2],
    }
    assert (found.columns, found.left_out) == (("POS", "concQ", "SimAssoc333"), {})


def test_columns_without_names_are_no_strata(read: Read) -> None:
    """A part of speech is not guessed, and a relation has no name."""
    pairs = read("take\tremove\tV\t6.81\tSYNONYMS", *(f"w{n}\tv{n}\tV\t{n % 7}\tNONE" for n in range(60)))
    assert strata_of(pairs) == Strata()


def test_a_pair_without_a_label_is_counted(read: Read) -> None:
    pairs = read("word1,word2,score,pos,concQ", "a,b,1,N,1", "c,d,2,,1", "e,f,3,JJ,NA", "g,h,4,X,2.0")
    found = strata_of(pairs)
    assert as_lists(found) == {
        "nouns": [0],
        "adjectives": [2],
        "pos X": [3],
        "concreteness 1 of 4": [0, 1],
        "concreteness 2 of 4": [3],
    }
    assert found.left_out == {"pairs without pos, for its strata": 1, "pairs without concQ, for its strata": 1}


def test_columns_of_few_frequent_values_are_taken_by_rule(read: Read) -> None:
    rows = 2 * ROWS
    lines = [
        f"w{n},v{n},{n % 5},{('near', 'far')[n % 2]},{n % 2},{n % 3},{n % (ROWS + 5)}x,{n},same" for n in range(rows)
    ]
    pairs = read("word1,word2,score,Distance,Flag,Grade,Rare,Id,Same", *lines)
    found = strata_of(pairs)
    assert found.columns == ("Distance", "Flag")
    assert as_lists(found) == {
        "Distance far": list(range(1, rows, 2)),
        "Distance near": list(range(0, rows, 2)),
        "Flag 0": list(range(0, rows, 2)),
        "Flag 1": list(range(1, rows, 2)),
    }


def test_chosen_columns_replace_those_of_the_rule(read: Read) -> None:
    lines = [f"w{n},v{n},{n % 5},{n % 3},{n},{'NV'[n % 2]}" for n in range(16)]
    pairs = read("word1,word2,score,grade,Assoc(USF),POS", *lines)
    found = strata_of(pairs, ("GRADE", "assoc usf"))
    assert found.columns == ("grade", "Assoc(USF)")
    assert {name: members[:3] for name, members in as_lists(found).items()} == {
        "grade 0": [0, 3, 6],
        "grade 1": [1, 4, 7],
        "grade 2": [2, 5, 8],
        "Assoc(USF) 1 of 4": [0, 1, 2],
        "Assoc(USF) 2 of 4": [4, 5, 6],
        "Assoc(USF) 3 of 4": [8, 9, 10],
        "Assoc(USF) 4 of 4": [12, 13, 14],
    }
    assert strata_of(pairs, ("no such",)) == Strata()


def test_text_of_many_values_is_refused(read: Read) -> None:
    pairs = read("word1,word2,score,note", *(f"w{n},v{n},1,n{n}" for n in range(MOST + 1)))
    assert strata_of(pairs).pairs == {}
    with pytest.raises(ValueError, match=f"at most {MOST} values for strata, got {MOST + 1} values in note"):
        strata_of(pairs, ("note",))


def test_quartiles_are_of_the_mean_rating_of_rated_pairs() -> None:
    """By hand: means 1, 2, 3, 4 and 10; the fifth quantile border is between 2 and 3; one word has no rating."""
    ratings = {"a": 1.0, "b": 3.0, "c": 5.0, "d": 7.0, "e": 10.0}
    pairs = Pairs(("a", "a", "a", "a", "e", "x"), ("a", "b", "c", "d", "e", "a"), np.zeros(6), 0)
    found = strata_of(pairs, ("concreteness",), ratings)
    assert as_lists(found) == {
        "concreteness 1 of 4": [0, 1],
        "concreteness 2 of 4": [2],
        "concreteness 3 of 4": [3],
        "concreteness 4 of 4": [4],
    }
    assert found.left_out == {"pairs with a word without a concreteness rating, for its strata": 1}
    assert found.columns == ("mean concreteness of the two words",)


def test_ratings_divide_sets_of_many_rated_pairs_only() -> None:
    draw = np.random.default_rng(0)
    ratings = {f"w{n}": float(draw.uniform(1, 5)) for n in range(RATED)}
    words = tuple(ratings)
    many = Pairs(words, words[::-1], np.zeros(RATED), 0)
    found = strata_of(many, ratings=ratings)
    assert [len(members) for members in found.pairs.values()] == [RATED // 4] * 4
    means = [(ratings[one] + ratings[other]) / 2 for one, other in zip(words, words[::-1], strict=True)]
    highest = [np.array(means)[members].max() for members in found.pairs.values()]
    assert highest == sorted(highest)
    few = Pairs(words[1:], words[:0:-1], np.zeros(RATED - 1), 0)
    assert strata_of(few, ratings=ratings) == Strata()
    assert strata_of(many) == Strata()
