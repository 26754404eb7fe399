"""Human norms and word sets from files, the published ones among them, and what each reader refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SmallWorld

from groundray.analysis.inputs import norm_tables
from groundray.analysis.inputs.norm_tables import (
    read_categories,
    read_features,
    read_phrases,
    read_ratings,
    read_words,
)
from groundray.analysis.inputs.word_pairs import read_pairs
from groundray.data.scenes import ground_truth

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "norms"


@pytest.fixture
def published() -> Path:
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published norms are not there: {PUBLISHED}")
    return PUBLISHED


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file: lines of text in UTF-8, or bytes as they are."""

    def write(*lines: str | bytes, name: str = "norms.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines))
        return path

    return write


Write = Callable[..., Path]


def test_ratings(write: Write) -> None:
    file = write(
        "word,concreteness,sd", "ice_cream,4.9,0.3", "zebra,4.86,", "", "thing,NA,", "zebra, 4.86 ,0.1", '"a, b",1,'
    )
    found = read_ratings(file)
    assert found.of == {"ice cream": 4.9, "zebra": 4.86, "a, b": 1.0}
    assert found.left_out == {"words that stand twice": 1, "words without a concreteness rating": 1}


def test_ratings_as_brysbaert_published_them(write: Write) -> None:
    header = "Word\tBigram\tConc.M\tConc.SD\tUnknown\tTotal\tPercent_known\tSUBTLEX"
    file = write(header, "roadsweeper\t0\t4.85\t0.37\t1\t27\t0.96\t0", "zip code\t1\t4.77\t0.5\t0\t28\t1.00\t0")
    assert read_ratings(file).of == {"roadsweeper": 4.85, "zip code": 4.77}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_files_in_utf_8_with_or_without_a_mark(write: Write, mark: bytes, newline: bytes) -> None:
    lines = ["word,concreteness", "café,4.5", "naïve,1.5"]
    file = write(mark, newline.join(line.encode() for line in lines))
    assert read_ratings(file).of == {"café": 4.5, "naïve": 1.5}
    assert read_ratings(f"file://{file}").of == {"café": 4.5, "naïve": 1.5}


def test_categories(write: Write) -> None:
    file = write(
        "category,word,concreteness",
        "cats,lion,4.9",
        "pets,cat,4.8",
        "cats,cat,4.8",
        "cats,lion,4.9",
        "pets,soul mate,",
    )
    found = read_categories(file)
    assert list(zip(found.category, found.word, strict=True)) == [
        ("cats", "lion"), ("pets", "cat"), ("cats", "cat"), ("cats", "lion"), ("pets", "soul mate"),
    ]  # fmt: skip
    np.testing.assert_array_equal(found.concreteness, [4.9, 4.8, 4.8, 4.9, np.nan])
    assert found.left_out == {}
    rated = found.rated()
    assert rated.word == ("lion", "cat", "cat", "lion")
    assert rated.left_out == {**found.left_out, "rows without a concreteness rating": 1}


def test_sentences_by_scene(write: Write) -> None:
    file = write("sentence,scene", '"a boat, and a pier",harbour', "two_boats,harbour", "a tall tree,forest", ",forest")
    found = read_categories(file)
    assert found.word == ("a boat, and a pier", "two boats", "a tall tree")
    assert found.category == ("harbour", "harbour", "forest")
    assert (found.kinds, found.kinds.plural) == (("scene", "sentence"), ("scenes", "sentences"))
    assert found.left_out == {"rows without a scene or sentence": 1}
    usual = read_categories(write("category,word,scene", "cats,lion,zoo"))
    assert (usual.category, usual.kinds, usual.kinds.plural) == (
        *(("cats",), ("category", "word"), ("categories", "words")),
    )


def test_categories_as_semcat_published_them(write: Write, tmp_path: Path) -> None:
    write("lion", "tiger", "lion", name="cats/big_cats-3.txt")
    write("ice_cream", "", "pie", name="cats/desserts-2.txt")
    write("cat", name="cats/pets.txt")
    write("whose are these", name="cats/README.md")
    found = read_categories(tmp_path / "cats")
    assert list(zip(found.category, found.word, strict=True)) == [
        ("big_cats", "lion"), ("big_cats", "tiger"), ("big_cats", "lion"),
        ("desserts", "ice cream"), ("desserts", "pie"), ("pets", "cat"),
    ]  # fmt: skip
    assert found.left_out == {"files that are not .txt": 1}
    rated = found.rated_by(norm_tables.Ratings({"tiger": 4.9, "cat": 4.8}))
    np.testing.assert_array_equal(rated.concreteness, [np.nan, 4.9, np.nan, np.nan, np.nan, 4.8])
    with pytest.raises(ValueError, match="words with a concreteness rating, got none among 6"):
        found.rated()


def test_features(write: Write) -> None:
    file = write(
        "concept,feature,production_frequency",
        "dog,barks,9",
        "cat,is_soft,5",
        "dog,is soft,2",
        "owl,flies,1",
        "dog,barks,9",
    )
    found = read_features(file, min_people=2)
    assert found.concepts == ("dog", "cat", "owl")
    assert found.features == ("barks", "is soft")
    assert found.has.toarray().tolist() == [[True, True], [False, True], [False, False]]
    assert found.types == ("", "")
    assert found.left_out == {
        "features of concepts that fewer than 2 people named": 1,
        "features that a concept has twice": 1,
    }
    assert read_features(file).features == ("barks", "is soft", "flies")


def test_features_as_mcrae_published_them(write: Write) -> None:
    rows = (
        ("bat_(animal)", "beh_-_flies", "visual-motion", 20),
        ("bat_(baseball)", "made_of_wood", "visual-form_and_surface", 13),
        ("crab_(food)", "tastes_good", "taste", 5),
        ("crab_(food)", "is_loud", "sound", 4),
        ("air_conditioner", "used_for_cooling", "function", 9),
        ("air_conditioner", "an_appliance", "taxonomic", 8),
        ("air_conditioner", "is_expensive", "encyclopaedic", 7),
        ("robin", "beh_-_flies", "visual-motion", 25),
    )
    names = "Concept\tFeature\tWB_Label\tBR_Label\tProd_Freq\tRank_PF"
    lines = [f"{concept}\t{feature}\tentity\t{kind}\t{count}\t1" for concept, feature, kind, count in rows]
    found = read_features(write(names, *lines, name="CONCS_FEATS_concstats_brm.txt"))
    assert found.concepts == ("crab", "air conditioner", "robin")
    kinds = dict(zip(found.features, found.types, strict=True))
    assert kinds == {
        "beh - flies": "visual",
        "made of wood": "visual",
        "tastes good": "other perceptual",
        "is loud": "other perceptual",
        "used for cooling": "functional",
        "an appliance": "taxonomic",
        "is expensive": "encyclopaedic",
    }
    assert found.has.toarray()[:, found.features.index("beh - flies")].tolist() == [False, False, True]
    assert found.left_out == {"concepts that are the same word as another": 2}


def test_features_as_cslb_published_them(write: Write) -> None:
    rows = ("accordion\tmusic\tother perceptual\tmakes music\t9", "accordion\tmusic\tvisual perceptual\thas keys\t14")
    found = read_features(write("concept\tdomain\tfeature type\tfeature\tpf", *rows, name="norms.dat"), min_people=5)
    assert (found.features, found.types) == (("makes music", "has keys"), ("other perceptual", "visual"))


def test_features_as_buchanan_published_them(write: Write) -> None:
    names = "where,cue,feature,translated,frequency_feature,frequency_translated,n"
    rows = ("b,dog,barking,bark,12,20,60", "b,dog,barks,bark,8,20,60", "b,cat,meows,meow,4,4,60")
    found = read_features(write(names, *rows), min_people=10)
    assert found.features == ("bark",)
    assert found.has.toarray().tolist() == [[True], [False]]
    assert found.left_out == {
        "features of concepts that fewer than 10 people named": 1,
        "features that a concept has twice": 1,
    }


def test_most_frequent_type_of_a_feature_is_used(write: Write) -> None:
    rows = ("dog,is loud,9,sound", "cat,is loud,9,function", "owl,is loud,9,function")
    found = read_features(write("concept,feature,pf,type", *rows))
    assert found.types == ("functional",)
    assert found.left_out == {"types that are not the commonest of their feature": 1}


def test_missing_values_are_left_out_and_counted(write: Write) -> None:
    names = "concept,feature,pf,type"
    found = read_features(
        write(names, "dog,barks,9,NA", ",barks,2,sound", "cat,n/a,2,", "cat,purrs,#N/A,", "owl,hoots,-,")
    )
    assert (found.concepts, found.features, found.types) == (("dog", "cat", "owl"), ("barks",), ("",))
    assert found.left_out == {
        "rows without a concept or feature": 2,
        "features of concepts without a number of people": 2,
    }
    rated = read_ratings(write(RATED, "zebra,4", ",2", "thing,n/a", "-,3"))
    assert rated.left_out == {"rows without a word": 2, "words without a concreteness rating": 1}
    assert rated.source is not None
    assert rated.source.rows == 4 == rated.source.used + sum(rated.left_out.values())


def test_words_that_look_like_missing_values_are_words(write: Write) -> None:
    words = ("nan", "null", "NA", "none", "true", "inf")
    found = read_ratings(write(RATED, *(f"{word},{count}" for count, word in enumerate(words, start=1))))
    assert tuple(found.of) == words
    assert read_words(write("word,x", *(f"{word},1" for word in words))).words == words
    assert read_words(write(*words, name="list.txt")).words == words


def test_a_category_that_cannot_be_read_spoils_only_itself(write: Write, tmp_path: Path) -> None:
    write("lion", "tiger", name="cats/big_cats-2.txt")
    write("pie", name="cats/desserts-2.txt")
    write(b"caf\xe9\n", name="cats/drinks.txt")
    write(b"\0\5\x16\7Mac OS X", name="cats/._big_cats-2.txt")
    found = read_categories(tmp_path / "cats")
    assert found.word == ("lion", "tiger")
    assert found.left_out == {"categories whose file cannot be read": 2, "files that are not .txt": 1}
    assert found.source is not None
    wrong_count, latin = found.source.notes
    assert "desserts-2.txt: expected 2 words, as the name says, got 1" in wrong_count
    assert "drinks.txt line 1: expected UTF-8" in latin


def test_phrases(write: Write) -> None:
    file = write("phrase,target", "striped horse,zebra", "clear sky,sunny", "clear_sky,blue", "striped horse,zebra")
    found = read_phrases(file)
    assert found.phrase == ("striped horse", "clear sky", "clear sky")
    assert found.target == ("zebra", "sunny", "blue")
    assert found.left_out == {"phrases that stand twice": 1}


def test_words(write: Write) -> None:
    found = read_words(write("zebra", "", "ice_cream", "zebra ", "café"))
    assert found.words == ("zebra", "ice cream", "café")
    assert found.left_out == {"words that stand twice": 1}
    table = write("word,concreteness", "zebra,4.86", "thing,", name="table.csv")
    assert read_words(table).words == ("zebra", "thing")


RATED = "word,concreteness"


@pytest.mark.parametrize(
    ("read", "lines", "message"),
    [
        (read_ratings, (), "norms.csv is empty"),
        (read_ratings, (RATED,), "norms.csv names its columns, and has no row"),
        (read_ratings, ("word,rating", "zebra,4"), "line 1: expected a column concreteness or conc_m, got"),
        (read_ratings, ("words;conc_m", "zebra;4"), "line 1: expected a column word, got the columns words, conc_m"),
        (read_ratings, ("word,word,concreteness", "a,b,4"), "line 1: expected one column word, got 2"),
        (read_ratings, (RATED, "zebra,4", "", "ant,4,9"), "line 4: expected 2 fields as in the first row, got 3"),
        (read_ratings, (RATED, "zebra"), "line 2: expected 2 fields as in the first row, got 1"),
        (read_ratings, (RATED, '"two', 'lines",4', "ant,high"), "line 4: expected a number as .*, got 'high'"),
        (read_ratings, (RATED, "zebra,inf"), "line 2: expected a number as concreteness, got 'inf'"),
        (read_ratings, (RATED, ",4"), "expected rows with a word, got none among 1"),
        (read_ratings, (RATED, "ant,4", '"zebra,4', "bee,3"), "line 3: expected a row of CSV, got one that"),
        (read_ratings, (RATED, "ant,4", "bee,3", "ant,3"), r"line 4: .* of ant, got 3 after 4 \(line 2\)"),
        (read_ratings, (RATED, "ant,", "bee,NA"), "words with a rating, got none among 2"),
        (read_ratings, (RATED, "ant,4", b"caf\xe9,4"), r"line 3: expected UTF-8, got the byte 0xe9 \('é' in Latin-1"),
        (read_ratings, (b"PK\x03\x04\xff",), "got a workbook or zip file: save an Excel sheet as `CSV UTF-8`"),
        (read_categories, ("category,word", ",ant"), "expected rows with a category and a word, got none among 1"),
        (read_categories, ("category,word,conc_m", "a,ant,4", "a,ant,"), "of a, ant, got none after 4"),
        (read_features, ("concept,feature,pf", "dog,barks,low"), "line 2: expected a number as frequency, got 'low'"),
        (read_features, ("concept,feature", "dog,barks"), "expected a column production_frequency or prod_freq or pf"),
        (read_features, ("concept,feature,pf", "dog,barks,.5"), "at least 1 times, got none: lower the threshold"),
        (read_phrases, ("phrase,word", "striped horse,zebra"), "column target, got the columns phrase, word"),
        (read_words, (), "is empty"),
        (read_words, ("name,age", "ant,4"), "line 1: expected a column word, got the columns name, age"),
    ],
)  # fmt: skip
def test_error_in_a_file_names_its_line(
    write: Write, read: Callable[[Path], Any], lines: tuple[str | bytes, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(write(*lines))
    assert "norms.csv" in str(error.value)


def test_files_that_are_not_there(write: Write, tmp_path: Path) -> None:
    for read in (read_ratings, read_categories, read_features, read_phrases, read_words):
        with pytest.raises(FileNotFoundError, match=r"expected a file at .*/nothing.csv, found none"):
            read(tmp_path / "nothing.csv")
    with pytest.raises(FileNotFoundError, match="found a folder"):
        read_ratings(tmp_path)
    with pytest.raises(ValueError, match=r"expected a text file a category in .*, such as animal-268.txt, found none"):
        read_categories(tmp_path)
    write("lion", "tiger", name="cats-3.txt")
    with pytest.raises(ValueError, match=r"cats-3.txt: expected 3 words, as the name says, got 2"):
        read_categories(tmp_path)


def test_the_embedded_worlds_norms(world: SmallWorld) -> None:
    folder = world.source / "norms"
    assert read_ratings(folder / "concreteness.csv").of == {
        word: rating for word, rating, _, _ in ground_truth.concreteness()
    }
    categories = read_categories(folder / "categories.csv")
    found = zip(categories.category, categories.word, categories.concreteness.tolist(), strict=True)
    assert list(found) == list(ground_truth.categories())
    features = read_features(folder / "features.csv")
    has = {(c, f) for c, row in enumerate(features.has.toarray().tolist()) for f, one in enumerate(row) if one}
    named = {(features.concepts.index(c), features.features.index(f)) for c, f, _, _ in ground_truth.features()}
    assert has == named
    assert dict(zip(features.features, features.types, strict=True)) == {
        f: kind for _, f, _, kind in ground_truth.features()
    }
    phrases = read_phrases(folder / "composition.csv")
    assert list(zip(phrases.phrase, phrases.target, strict=True)) == list(ground_truth.composition())
    assert [categories.left_out, features.left_out, phrases.left_out] == [{}, {}, {}]


@pytest.mark.thorough
def test_the_published_norms(published: Path) -> None:
    ratings = read_ratings(published / "concreteness.csv")
    assert len(ratings.of) == 39_954
    assert (ratings.of["ice cream"], ratings.left_out) == (5, {})

    table = read_categories(published / "semcat100.csv")
    assert (len(table.word), len(set(table.word)), len(set(table.category))) == (9_197, 6_238, 100)
    rated = table.rated()
    assert len(rated.word) == 8_189
    assert len({*zip(rated.category, rated.word, strict=True)}) == 8_189 - 13
    np.testing.assert_array_equal(table.rated_by(ratings).concreteness, table.concreteness)

    folder = read_categories(published / "semcat")
    assert len(set(folder.category)) == 110
    assert {*zip(table.category, table.word, strict=True)} <= {*zip(folder.category, folder.word, strict=True)}

    features = read_features(published / "features.csv")
    assert features.has.shape == (226, 353)
    assert features.has.sum() == 3_659
    assert (features.has.sum(axis=0) >= 5).all()

    sizes = {
        "RG-65": (65, 0),
        "SIMLEX-999": (999, 1),
        "SimVerb-3500": (3500, 1),
        "WS-353-REL": (252, 1),
        "WS-353-SIM": (203, 0),
    }
    for name, expected in sizes.items():
        pairs = read_pairs(published / "similarity" / f"EN-{name}.txt")
        assert (len(pairs.score), pairs.repeated) == expected
