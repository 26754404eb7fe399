"""What an analysis reads of the norms, before any vector is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs import ANALYSES
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import Analysis

SEMCAT = Path(__file__).parents[3] / "shared" / "data" / "norms" / "semcat100.csv"


def request(folder: Path, **files: str) -> AnalysisRequest:
    for name, content in files.items():
        file = folder / "similarity" / name.replace("_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return AnalysisRequest(norms=Norms.at(str(folder)))


def test_a_file_of_word_pairs_that_cannot_be_read_spoils_only_itself(tmp_path: Path) -> None:
    job = ANALYSES["similarity"](request(tmp_path, good_txt="sun moon 3\ncar bus NA\n", bad_txt="sun\tmoon\tstar\t1\n"))
    (source,) = job.sources
    assert (source.rows, source.used, source.left_out) == (2, 1, {"pairs without a score": 1})
    (note,) = job.notes
    assert note.startswith(f"word pairs not read: {tmp_path}/similarity/bad.txt line 1: expected two columns of words")
    assert job.texts == ("sun", "moon")


def test_word_pairs_of_which_none_can_be_read_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bad\.txt line 1: expected two columns of words"):
        ANALYSES["similarity"](request(tmp_path, bad_txt="sun\tmoon\tstar\t1\n"))


def test_a_file_of_ratings_that_cannot_be_read_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    (tmp_path / "ratings" / "good.csv").write_text("word,warm,colour\nsun,5,yellow\nice,0,white\n")
    (tmp_path / "ratings" / "bad.csv").write_text("word,warm\nsun,hot\nice,1\n")
    norms = Norms.at(str(tmp_path))
    job = ANALYSES["ratings"](AnalysisRequest(norms=norms))
    assert job.texts == ("sun", "ice")
    assert [source.used for source in job.sources] == [2]
    text, bad = job.notes
    assert text.endswith("good.csv: not dimensions: colour")
    assert bad.startswith(f"ratings not read: {tmp_path}/ratings/bad.csv line 2: expected a number as warm, got 'hot'")
    with pytest.raises(ValueError, match=r"bad\.csv line 2"):
        ANALYSES["ratings"](AnalysisRequest(norms=norms.with_files(ratings=[f"{tmp_path}/ratings/bad.csv"])))


def test_groups_of_other_dimensions_are_noted(tmp_path: Path) -> None:
    (tmp_path / "ratings").mkdir()
    (tmp_path / "ratings" / "own.csv").write_text("word,warm\nsun,5\nice,0\n")
    for content, noted in (("cold,touch", True), ("cold,touch\nWarm,touch", False)):
        (tmp_path / "ratings" / "groups.csv").write_text(f"dimension,group\n{content}\n")
        notes = ANALYSES["ratings"](AnalysisRequest(norms=Norms.at(str(tmp_path)))).notes
        assert [
            note.endswith("groups.csv: not used, it names none of the dimensions: cold is none") for note in notes
        ] == ([True] if noted else [])


def test_analogies_are_asked_among_the_words_of_the_categories(tmp_path: Path) -> None:
    (tmp_path / "analogies").mkdir()
    (tmp_path / "analogies" / "google.txt").write_text(": family\nman woman king queen\n")
    (tmp_path / "analogies" / "bad.txt").write_text(": family\nman woman king\n")
    (tmp_path / "categories.csv").write_text("category,word\nplace,sky\nplace,king\n")
    request = AnalysisRequest(norms=Norms.at(str(tmp_path)))
    job = ANALYSES["analogies"](request)
    assert job.texts == ("sky", "king", "man", "woman", "queen")
    assert [source.used for source in job.sources] == [1, 2]
    (bad,) = job.notes
    assert bad.startswith(f"analogies not read: {tmp_path}/analogies/bad.txt line 2: expected four words")
    (tmp_path / "words.txt").write_text("road\n")
    job = ANALYSES["analogies"](replace(request, vocabulary=str(tmp_path / "words.txt")))
    assert job.texts == ("road", "man", "woman", "king", "queen")
    candidates = tmp_path / "visual.csv"
    candidates.write_text("a,b,c,target,candidates\ncar,land,plane,sky,sky|road\n")
    assert request.norms is not None
    job = ANALYSES["analogies"](replace(request, norms=request.norms.with_files(analogies=[str(candidates)])))
    assert job.texts == ("car", "land", "plane", "sky", "road")  # candidates alone need no vocabulary


def test_a_given_file_of_word_pairs_must_be_readable(tmp_path: Path) -> None:
    found = request(tmp_path, good_txt="sun moon 3\n", bad_txt="sun\tmoon\tstar\t1\n")
    assert found.norms is not None
    given = AnalysisRequest(
        norms=found.norms.with_files(pairs=[f"{tmp_path}/similarity/{n}.txt" for n in ("good", "bad")])
    )
    with pytest.raises(ValueError, match=r"bad\.txt line 1"):
        ANALYSES["similarity"](given)


def test_a_further_set_of_categories_that_cannot_be_read_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / "category_sets").mkdir()
    table = "category,word\nround,moon\nround,ball\nlong,road\nlong,rope\n"
    for name in ("categories", "category_sets/looks"):
        (tmp_path / f"{name}.csv").write_text(table)
    (tmp_path / "category_sets" / "bad.csv").write_text("kind,word\nround,moon\n")
    (tmp_path / "category_sets" / "alone.csv").write_text("category,word\nlong,road\nlong,rope\n")
    job = ANALYSES["categories"](AnalysisRequest(norms=Norms.at(str(tmp_path))))
    assert [source.url for source in job.sources] == [
        f"{tmp_path}/categories.csv",
        f"{tmp_path}/category_sets/alone.csv",
        f"{tmp_path}/category_sets/looks.csv",
    ]
    (note,) = job.notes
    assert note.startswith(f"set of categories not read: {tmp_path}/category_sets/bad.csv")
    words = ("moon", "ball", "road", "rope")
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    found = job.analyse(Lexicon({word: row for row, word in enumerate(words)}, {"one": vectors}, {}))
    (reason,) = [what for what in found.left_out if what.startswith("further sets")]
    assert "(alone: expected words of at least 2 categories, got 'long' alone" in reason
    values = {measure.key: measure.values["one"].value for measure in found.measures}
    assert values["looks/silhouette/rest/median"] == values["silhouette/rest/median"] > 0.9
    assert not [measure for measure in found.measures if measure.key.startswith("looks/") and measure.published]


def axes_of(folder: Path, fit_on: str | None = None, contrasts: str | None = None) -> Analysis:
    """The axes of ten words, of which one has two categories and stands twice in the second."""
    rows = [f"{'people' if number < 5 else 'things'},w{number},{number}" for number in range(9)]
    (folder / "categories.csv").write_text(
        "\n".join(["category,word,concreteness", *rows, "people,w9,", "things,w0,0"])
    )
    job = ANALYSES["axes"](
        AnalysisRequest(norms=Norms.at(str(folder)), fit_on=fit_on, contrasts=contrasts, components=2)
    )
    words = tuple(dict.fromkeys(job.texts))
    vectors = np.random.default_rng(0).normal(size=(len(words), 4))
    return job.analyse(Lexicon({word: row for row, word in enumerate(words)}, {"m": vectors}, {"m": frozenset()}))


@pytest.mark.parametrize(
    ("fit_on", "said"),
    [(None, "the 9 rated words"), ("rated", "the 9 rated words"), ("words", "the 10 words"), ("rows", "the 11 rows")],
)
def test_axes_are_fitted_on_the_chosen_words(tmp_path: Path, fit_on: str | None, said: str) -> None:
    assert said in axes_of(tmp_path, fit_on).about


def test_a_file_named_as_a_choice_is_read_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("w1\nw2\nw3\nw4\n")
    assert "the 4 words of" in axes_of(tmp_path, str(tmp_path / "rows")).about


def test_contrasts_of_a_file_are_measured_and_those_of_semcat_counted(tmp_path: Path) -> None:
    file = tmp_path / "contrasts.csv"
    file.write_text("contrast,side,category\nalive,people,people\nalive,things,things\n")
    found = axes_of(tmp_path, contrasts=str(file))
    assert [one.items for one in found.measures if one.key.endswith("contrast/alive/rank_biserial")] == [9, 9]
    assert found.left_out["words that are of both sides of a contrast"] == 1  # w0
    assert any(row[0] == "contrasts.csv" for row in found.tables[-1].rows)
    built_in = axes_of(tmp_path)
    assert built_in.left_out["contrasts of categories that are not there"] == 2  # people are among the humans
    assert next(one.key for one in built_in.measures if "contrast" in one.key).startswith("pc1/contrast/human_or_not/")


SIMLEX = "word1\tword2\tPOS\tSimLex999\tconc(w1)\tconc(w2)\tconcQ\tAssoc(USF)\tSimAssoc333\tSD(SimLex)\n"


def of_simlex(rows: int) -> str:
    """Invented pairs in the layout of SimLex-999: each third a verb, the first half less concrete, each other hard."""
    return SIMLEX + "".join(
        f"a{n}\tb{n}\t{'NNV'[n % 3]}\t{n % 7}.5\t2.5\t3.5\t{1 + 2 * n // rows}\t{n / 9:.2f}\t{n % 2}\t1.0\n"
        for n in range(rows)
    )


def vectors_of(texts: tuple[str, ...]) -> Lexicon:
    draw = np.random.default_rng(0)
    vectors = {model: draw.normal(size=(len(texts), 6)) for model in ("m", "n")}
    return Lexicon({text: row for row, text in enumerate(texts)}, vectors, {})


def test_simlex_is_measured_by_its_strata(tmp_path: Path) -> None:
    job = ANALYSES["similarity"](
        request(tmp_path, simlex_txt=of_simlex(42), plain_txt="sun moon 3\ncar bus 2\nx y 1\n")
    )
    found = job.analyse(vectors_of(job.texts))
    by_key = {one.key: one.items for one in found.measures}
    assert by_key == {
        "plain/spearman": 3,
        "simlex/spearman": 42,
        "simlex/by/nouns/spearman": 28,
        "simlex/by/verbs/spearman": 14,
        "simlex/by/concreteness_1_of_4/spearman": 21,
        "simlex/by/concreteness_2_of_4/spearman": 21,
        "simlex/by/hard/spearman": 21,
    }
    assert [picture.key for picture in found.pictures] == ["similarity/simlex-strata"]
    assert "simlex by POS, concQ, SimAssoc333" in found.about


def test_chosen_strata_and_ratings_of_concreteness(tmp_path: Path) -> None:
    (tmp_path / "concreteness.csv").write_text(
        "word,concreteness\n" + "".join(f"a{n},{n}\nb{n},1\n" for n in range(48))
    )
    made = replace(request(tmp_path, simlex_txt=of_simlex(48)), strata=("assoc (usf)", "concreteness"))
    job = ANALYSES["similarity"](made)
    names = [one.key.split("/")[2] for one in job.run(vectors_of(job.texts)).measures[1:]]
    quartiles = [f"{number}_of_4" for number in range(1, 5)]
    assert names == [f"{column}_{one}" for column in ("Assoc_USF", "concreteness") for one in quartiles]
    assert [source.url.rpartition("/")[2] for source in job.sources] == ["simlex.txt", "concreteness.csv"]
    with pytest.raises(ValueError, match=r"a column of the files of pairs \(POS, conc\(w1\).*\), got colour$"):
        ANALYSES["similarity"](replace(made, strata=("colour",)))
    plain = request(tmp_path / "plain", pairs_csv="word1,word2,score\nsun,moon,3\n")
    with pytest.raises(ValueError, match=r"\(none\), got concreteness: .* concreteness\.csv in --norms DIR"):
        ANALYSES["similarity"](replace(plain, strata=("concreteness",)))
    (tmp_path / "concreteness.csv").write_text("word,concreteness\na1,x\n")
    with pytest.raises(ValueError, match="line 2: expected a number as concreteness, got 'x'"):
        ANALYSES["similarity"](made)
    (note,) = ANALYSES["similarity"](replace(made, strata=())).notes
    assert note.startswith("word pairs have no strata by concreteness: ")


def test_sentences_by_scene_in_place_of_words_by_category(tmp_path: Path) -> None:
    file = tmp_path / "scenes.csv"
    sentences = {f"{scene} {number}, seen": scene for scene in ("a pier", "a wood") for number in range(4)}
    file.write_text("\n".join(["scene,sentence", *(f'{scene},"{text}"' for text, scene in sentences.items())]))
    job = ANALYSES["categories"](AnalysisRequest(norms=Norms().with_files(categories=str(file))))
    assert job.texts == tuple(sentences)
    vectors = np.random.default_rng(0).normal(size=(7, 4))
    lexicon = Lexicon(
        {text: row for row, text in enumerate(job.texts[1:])}, {"m": vectors}, {"m": frozenset(job.texts[:1])}
    )
    found = job.analyse(lexicon)
    assert found.tables[0].columns[:2] == ("scene", "sentences")
    assert [row[:2] for row in found.tables[0].rows] == [("a pier", 3), ("a wood", 4)]
    assert found.left_out == {"sentences out of vocabulary (m)": 1}
    assert not any(one.published for one in found.measures)


@pytest.mark.skipif(not SEMCAT.exists(), reason=f"SemCat's categories are not there: {SEMCAT}")
def test_phrases_rank_semcats_words_by_default() -> None:
    """The paper's nine phrases, and 6,238 distinct words, among them each target and words of the phrases."""
    job = ANALYSES["composition"](AnalysisRequest(norms=Norms().with_files(categories=str(SEMCAT))))
    assert len(job.texts) == 9 + 6_238
    assert {"zebra", "horse", "sky", "summer"} <= set(job.texts)
