"""Rating tables in the layouts in which they are published, and what of them cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundray.analysis.inputs.rating_tables import BINDER, RatedWords, read_groups, read_rated_words

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "norms" / "ratings"


def read(folder: Path, text: str, groups: dict[str, str] | None = None) -> RatedWords:
    (folder / "own.csv").write_text(text)
    return read_rated_words(folder / "own.csv", groups)


def test_each_column_of_numbers_is_a_dimension(tmp_path: Path) -> None:
    found = read(tmp_path, "Word,Hand Arm,warm,kind of word,length\nice_cream,1,6.5,noun,9\nrun,5.25,NA,verb,3\n")
    assert found.words == ("ice cream", "run")
    assert found.dimensions == ("Hand Arm", "warm")
    np.testing.assert_array_equal(found.ratings, [[1, 6.5], [5.25, np.nan]])
    assert found.groups == ()
    assert np.isnan(found.reliability).all()
    assert found.left_out == {"ratings that are missing": 1, "columns of text": 1}
    assert found.source is not None
    assert (found.source.rows, found.source.used) == (2, 2)
    (note,) = found.source.notes
    assert note.endswith("own.csv: not dimensions: kind of word, length")


def test_warriner_as_published(tmp_path: Path) -> None:
    """Reliability: means 2, 4, 6 have variance 4; noise is the mean of 4 / 10, 1 / 10 and 4 / 10."""
    found = read(
        tmp_path,
        ",Word,V.Mean.Sum,V.SD.Sum,V.Rat.Sum,A.Mean.Sum,A.SD.Sum,A.Rat.Sum,V.Mean.M,V.SD.M,V.Rat.M\n"
        "1,a,2,2,10,1,1,0,9,1,5\n2,b,4,1,10,2,1,20,9,1,5\n3,c,6,2,10,3,1,20,9,1,5\n",
    )
    assert found.dimensions == ("valence", "arousal")
    np.testing.assert_array_equal(found.ratings, [[2, 1], [4, 2], [6, 3]])
    assert found.reliability[0] == pytest.approx(1 - 0.3 / 4)
    assert np.isnan(found.reliability[1])  # of two words
    assert found.source is not None
    assert "V.Mean.M, V.SD.M, V.Rat.M" in found.source.notes[0]


def test_glasgow_has_two_rows_of_titles(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "Words,Length,AROU,,,SIZE,,\n,,M,SD,N,M,SD,N\nbank,4,3,1,30,5,1,30\nbank (money),4,4,1,30,5,1,30\n"
        "bank (river),4,2,1,30,4,1,30\nspring (coil),6,3.5,1,30,2,1,30\n",
    )
    assert found.dimensions == ("arou", "size")
    assert found.words == ("bank", "spring")  # a sense whose word is not rated otherwise stands for it
    assert found.left_out == {"senses of a word that is rated in others": 2}
    np.testing.assert_array_equal(found.ratings, [[3, 5], [3.5, 2]])


def test_columns_named_as_means_are_the_only_dimensions(tmp_path: Path) -> None:
    """Lancaster and THINGS: other columns of numbers are derived from them."""
    found = read(
        tmp_path,
        "Word\tVisual.mean\tFoot_leg.mean\tVisual.SD\tFoot_leg.SD\tMax_strength\tDominant\nx\t1\t2\t1\t1\t2\tFoot\n"
        "y\t2\t1\t1\t1\t2\tVisual\n",
    )
    assert found.dimensions == ("visual", "foot leg")
    assert found.left_out == {"columns of text": 1}
    things = read(tmp_path, "uniqueID,Word,property_manmade_mean,property_manmade_SD\nbat1,bat,4,1\ncat,cat,0,2\n")
    assert things.dimensions == ("property manmade",)
    assert things.words == ("bat", "cat")


def test_halves_give_spearman_and_browns_reliability(tmp_path: Path) -> None:
    rows = ["a,1,1,2", "b,2,3,1", "c,3,2,4", "d,4,4,3"]
    found = read(tmp_path, "\n".join(["word,warm,warm half1,warm half_2", *rows]))
    r = np.corrcoef([1, 3, 2, 4], [2, 1, 4, 3])[0, 1]
    assert found.dimensions == ("warm",)
    assert found.reliability == pytest.approx([2 * r / (1 + r)])


def test_brysbaert_has_one_number_of_raters_for_all(tmp_path: Path) -> None:
    found = read(tmp_path, "Word,Bigram,Conc.M,Conc.SD,Total\na,0,1,1,25\nb,0,3,1,25\nc,0,5,1,25\n")
    assert found.dimensions == ("conc",)
    assert found.reliability == pytest.approx([1 - 1 / 25 / 4])


def test_names_that_end_like_statistics_are_dimensions_without_others(tmp_path: Path) -> None:
    assert read(tmp_path, "word,size m,vitamin n\na,1,2\nb,2,3\n").dimensions == ("size m", "vitamin n")


def test_words_with_several_ratings_are_left_out_and_named(tmp_path: Path) -> None:
    found = read(tmp_path, "word,warm\nused,1\nsun,5\nused,2\nice,0\nice,0\n,3\n")
    assert found.words == ("sun", "ice")
    assert found.left_out == {
        "rows without a word": 1,
        "rows that repeat another": 1,
        "rows of a word with several ratings": 2,
    }
    assert found.source is not None
    assert found.source.notes[0].endswith("used (lines 2, 4)")


def test_groups_are_those_given_or_published(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("Dimension,Group\nHand Arm,Motor\nwarm,touch\nunused,x\n")
    groups = read_groups(tmp_path / "groups.csv")
    assert read(tmp_path, "word,hand_arm,warm,odd\na,1,2,3\n", groups).groups == ("motor", "touch", "other")
    binder = ",".join(name for members in BINDER.values() for name in members.split())
    own = read(tmp_path, f"word,{binder},extra\na,{','.join('1' * 66)}\n")
    assert [own.groups.count(group) for group in (*BINDER, "other")] == [15, 5, 7, 1, 1, 4, 7, 4, 2, 4, 1, 10, 2, 2, 1]
    assert own.groups[own.dimensions.index("biomotion")] == "visual"
    assert read(tmp_path, "word,vision,color,heat\na,1,2,3\n").groups == ()  # too few of Binder's names
    lancaster = "Auditory.mean,Gustatory.mean,Haptic.mean,Foot_leg.mean,Hand_arm.mean,Torso.mean"
    assert read(tmp_path, f"word,{lancaster}\na,1,2,3,4,5,6\n").groups == (*["perceptual"] * 3, *["action"] * 3)


def test_a_group_that_contradicts_another_is_named(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("dimension,group\nwarm,touch\nWarm,heat\n")
    with pytest.raises(ValueError, match=r"groups\.csv line 3: expected one group of warm, got heat after touch"):
        read_groups(tmp_path / "groups.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("word,warm\na,1\nb,hot\nc,2\n", r"own\.csv line 3: expected a number as warm, got 'hot'"),
        ("word,kind\na,noun\nb,verb\n", r"own\.csv line 1: expected columns of ratings beside word, got word, kind"),
        ("word,length\na,1\n", "expected columns of ratings beside word"),
        ("text,warm\na,1\n", r"own\.csv line 1: expected a column word or words"),
        ("word,warm,warm\na,1,2\n", r"line 1: expected one column 'warm', got another"),
        ("word,warm\na,1,2\n", r"line 2: expected 2 fields"),
        ("word,warm\n", "names its columns, and has no row"),
        ("word,warm\n,1\n", "expected words with ratings, got none among 1 rows"),
        ('word,warm\na,"1,5"\nb,2.5\n', r"line 2: expected decimal commas or points as warm"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_the_published_files_are_read() -> None:
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published ratings in {PUBLISHED}")
    binder = read_rated_words(PUBLISHED / "binder2016.tsv")
    assert (len(binder.words), len(binder.dimensions)) == (533, 65)  # `used` has two rows
    assert set(binder.groups) == set(BINDER)
    assert binder.left_out == {"rows of a word with several ratings": 2, "ratings that are missing": 175}
    assert binder.profile is not None
    assert binder.profile.mean() == pytest.approx(0.783, abs=0.001)
    assert "listened" in binder.words
    warriner = read_rated_words(PUBLISHED / "warriner2013.tsv")
    assert (len(warriner.words), warriner.dimensions) == (13_914, ("valence", "arousal", "dominance"))
    assert warriner.left_out == {"rows without a word": 1}
