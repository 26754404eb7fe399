"""The embedded world's words, whose concreteness, categories, features and phrases are known, through every analysis.

Two models are made up: one whose vectors hold what the world says of a word, and one of chance.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from groundray.analysis.inputs import published
from groundray.analysis.measures.axes import axes
from groundray.analysis.measures.categories import categories
from groundray.analysis.measures.composition import composition
from groundray.analysis.measures.feature_norms import ClassifierOptions, feature_norms
from groundray.analysis.result import Analysis, Measure
from groundray.data.scenes import ground_truth as world

DIM = 64
ROWS = tuple(world.categories())
WORDS = tuple(word for _, word, _ in ROWS)
RATINGS = np.array([rating for _, _, rating in ROWS])
FEATURES = tuple(world.features())
ONE_PROCESS = ClassifierOptions(processes=1)


def vectors(words: tuple[str, ...], seed: int = 1) -> dict[str, np.ndarray]:
    """`knows`: directions of concreteness, each category and each feature, and noise; `chance`: noise alone."""
    draw = np.random.default_rng(seed)
    of_category = {category: draw.normal(size=DIM) for category in dict.fromkeys(category for category, _, _ in ROWS)}
    of_feature = {feature: draw.normal(size=DIM) for feature in dict.fromkeys(feature for _, feature, _, _ in FEATURES)}
    concrete = draw.normal(size=DIM)
    meaning = {word: np.zeros(DIM) for word in words}
    for category, word, rating in ROWS:
        if word in meaning:
            meaning[word] += of_category[category] + 1.5 * (rating - RATINGS.mean()) * concrete
    for concept, feature, _, _ in FEATURES:
        if concept in meaning:
            meaning[concept] += of_feature[feature]
    noise = {word: draw.normal(size=DIM) for word in words}
    return {
        "chance": np.stack([noise[word] for word in words]),
        "knows": np.stack([meaning[word] + noise[word] for word in words]),
    }


def features() -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray, list[str]]:
    concepts = tuple(dict.fromkeys(concept for concept, _, _, _ in FEATURES))
    types = {feature: kind for _, feature, _, kind in FEATURES}
    named = {(concept, feature) for concept, feature, _, _ in FEATURES}
    has = np.array([[(concept, feature) in named for feature in types] for concept in concepts])
    return concepts, tuple(types), csr_array(has), list(types.values())


@pytest.fixture(scope="module")
def found() -> dict[str, Analysis]:
    of_rows = vectors(WORDS)
    names = [category for category, _, _ in ROWS]
    concepts, *rest = features()
    return {
        "axes": axes(of_rows, WORDS, names, RATINGS),
        "categories": categories(of_rows, WORDS, names, of_semcat=True),
        "norms": feature_norms(vectors(concepts), concepts, *rest, ONE_PROCESS),
    }


def measure(analysis: Analysis, key: str) -> Measure:
    (one,) = [one for one in analysis.measures if one.key == key]
    return one


def test_the_first_axis_is_concreteness(found: dict[str, Analysis]) -> None:
    one = measure(found["axes"], "pc1/words/pearson")
    assert one.values["knows"].value > 0.8 > one.values["chance"].value
    assert one.differences[0].value.low > 0


def test_categories_keep_together(found: dict[str, Analysis]) -> None:
    one = measure(found["categories"], "silhouette/rest/median")
    assert one.values["knows"].low > 0.1 > one.values["chance"].value
    assert one.differences[0].value.low > 0


@pytest.mark.parametrize("name", ["kind", "outline", "warmth"])
def test_categories_that_pictures_tell_keep_together(name: str) -> None:
    """The features of the words are their looks: a model that knows them tells these categories."""
    of_category, words = zip(*world.category_sets()[name], strict=True)
    one = measure(categories(vectors(words), words, of_category), "silhouette/rest/median")
    assert one.values["knows"].value > 0.05 > one.values["chance"].value


@pytest.mark.parametrize(
    ("name", "classes"), [("kind", {"shape", "kind"}), ("outline", {"shape", "kind"}), ("warmth", {"colour"})]
)
def test_word_classes_do_not_tell_the_looks(name: str, classes: set[str]) -> None:
    """Captions use the words of a class in the same places: each category has words of every class of its set."""
    class_of = {word: category for category, word, _ in ROWS}
    rows = world.category_sets()[name]
    for category in dict(rows):
        assert {class_of[word] for of, word in rows if of == category} == classes


def test_features_are_told_by_vectors(found: dict[str, Analysis]) -> None:
    one = measure(found["norms"], "f1/all/median")
    assert one.values["knows"].value > one.values["chance"].value + 0.3
    assert one.differences[0].value.low > 0
    assert found["norms"].left_out["features of fewer than 5 concepts"] > 0  # one shape alone has a hole


def test_phrases_find_their_nouns() -> None:
    """A phrase whose vector is its noun's, but for noise, finds it; by chance none is among the first three."""
    phrases, targets = zip(*world.composition(), strict=True)
    vocabulary = world.vocabulary()
    of_words = vectors(vocabulary)
    noise = np.random.default_rng(4).normal(size=(len(phrases), DIM))
    nouns = of_words["knows"][[vocabulary.index(target) for target in targets]]
    one = composition({"chance": noise, "knows": nouns + noise}, of_words, phrases, targets, vocabulary)
    assert measure(one, "rank/median").values["knows"].value <= 3
    assert measure(one, "rank/within_3").differences[0].value.low > 0
    assert measure(one, "rank/median").published == {}


def test_every_published_figure_has_a_measure(found: dict[str, Analysis]) -> None:
    """Each published number is looked up by the key of a measure; one with another key would stand nowhere."""
    typed = features()
    kinds = ["visual", "other perceptual", "functional", "encyclopaedic", "taxonomic"]
    has = np.random.default_rng(0).random((len(typed[0]), 5)) < 0.4
    every = feature_norms(vectors(typed[0]), typed[0], kinds, csr_array(has), kinds, ONE_PROCESS)
    for analysis in (found["axes"], found["categories"], every):
        keys = {one.key for one in analysis.measures}
        assert {one.key for one in analysis.measures if one.published} == set(published.keys(analysis.name)) <= keys
