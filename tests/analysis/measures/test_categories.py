"""Silhouettes against scikit-learn's, against all pairs written out, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples

from groundray.analysis.inputs.norm_tables import Kinds
from groundray.analysis.measures import directions
from groundray.analysis.measures.categories import (
    MOST_IMPROVED,
    Membership,
    categories,
    choose_shown,
    silhouettes,
)
from groundray.analysis.measures.statistics import mean, over_items


def made(count: int = 30, groups: int = 4, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """Words around their categories' middles, each in one."""
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(groups, 6)) * 1.5
    numbers = np.arange(count) % groups
    vectors = middles[numbers] + draw.normal(size=(count, 6))
    return vectors, [f"w{row}" for row in range(count)], [f"c{number}" for number in numbers]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_form(vectors: np.ndarray, words: list[str], of: list[str]) -> dict[str, np.ndarray]:
    member = Membership.by(words, of)
    return silhouettes(unit(vectors)[member.first], member)


def test_silhouettes_are_scikit_learns() -> None:
    """`nearest` is its silhouette; `rest` is its silhouette of two clusters, the category and everything else."""
    vectors, words, of = made()
    found = by_form(vectors, words, of)
    labels = np.array(of)
    usual = silhouette_samples(vectors, labels, metric="cosine")
    for number in range(4):
        own = labels == f"c{number}"
        assert found["nearest"][number] == pytest.approx(usual[own].mean())
        assert found["rest"][number] == pytest.approx(silhouette_samples(vectors, own, metric="cosine")[own].mean())


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_silhouettes_are_those_of_all_pairs(data: st.DataObject) -> None:
    """Words of several categories too."""
    count = data.draw(st.integers(6, 14))
    draw = np.random.default_rng(data.draw(st.integers(0, 1000)))
    vectors = {f"w{number}": draw.normal(size=5) for number in range(count)}
    of = draw.random((count, 3)) < 0.4
    of[np.arange(count), draw.integers(3, size=count)] = True
    rows = [(f"w{word}", f"c{category}") for word in range(count) for category in range(3) if of[word, category]]
    words, names = [word for word, _ in rows], [name for _, name in rows]
    found = by_form(np.stack([vectors[word] for word in words]), words, names)
    members = {category: {word for word, name in rows if name == category} for category in dict.fromkeys(names)}
    for number, category in enumerate(dict.fromkeys(names)):
        own = members[category]
        if not 2 <= len(own) < count:
            continue
        assert found["rest"][number] == pytest.approx(reference.silhouette(vectors, members, category, "rest"))
        naive = reference.silhouette(vectors, members, category, "nearest")
        assert found["nearest"][number] == pytest.approx(naive, nan_ok=True)


@pytest.mark.parametrize("numbers", [1, 40, 2**21])
def test_silhouettes_in_blocks_are_those_of_whole_matrices(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """Words of several categories, a category of one word and one of all words."""
    monkeypatch.setattr(directions, "NUMBERS", numbers)
    draw = np.random.default_rng(4)
    of = draw.random((50, 7)) < 0.3
    of[:, 5], of[:, 6] = np.arange(50) == 3, True
    rows = np.argwhere(of)
    member = Membership.by([f"w{word:02d}" for word, _ in rows], [f"c{category}" for _, category in rows])
    assert np.array_equal(member.of.toarray() > 0, of[:, [int(name[1:]) for name in member.categories]])
    assert [words.tolist() for words in member.words_of()] == [
        np.flatnonzero(of[:, int(name[1:])]).tolist() for name in member.categories
    ]
    units = unit(draw.normal(size=(50, 6)))
    found, expected = silhouettes(units, member), reference.dense_silhouettes(units, member.of.toarray() > 0)
    for form, values in expected.items():
        np.testing.assert_allclose(found[form], values, rtol=0, atol=1e-12)
    assert np.isfinite(found["rest"]).sum() == 5


def test_a_silhouette_by_hand() -> None:
    """Two words at a right angle to two others: a is 0, b is 1, the silhouette 1. One word between halves it."""
    east, north = np.array([1.0, 0]), np.array([0, 1.0])
    found = by_form(np.stack([east, east, north, north]), list("abcd"), list("xxyy"))
    np.testing.assert_allclose(found["rest"], 1)
    np.testing.assert_allclose(found["nearest"], 1)
    # for a word of east, a = (0 + 1 - cos 45) / 2 with the word between; for that one, a = b = 1 - cos 45
    between = (east + north) / np.sqrt(2)
    off = 1 - np.cos(np.pi / 4)
    found = by_form(np.stack([east, east, between, north, north]), list("abcde"), list("xxxyy"))
    np.testing.assert_allclose(found["rest"][0], 2 / 3 * (1 - off / 2))


def test_words_of_several_categories_are_never_the_others() -> None:
    vectors, words, of = made()
    both = np.concatenate([vectors, vectors[:1]]), [*words, "w0"], [*of, "c1"]
    found = categories({"m": both[0]}, *both[1:])
    assert "1 words have several categories" in found.about
    members = {f"c{number}": {w for w, c in zip(*both[1:], strict=True) if c == f"c{number}"} for number in range(4)}
    by_word = dict(zip(words, vectors, strict=True))
    rows = {row[0]: row for row in found.tables[0].rows}
    for name in members:
        expected = [reference.silhouette(by_word, members, name, form) for form in ("rest", "nearest")]
        assert rows[name][1:] == pytest.approx((len(members[name]), *expected))


def test_quartiles_differences_and_left_out() -> None:
    vectors, words, of = made(60, 6)
    of[-1] = "alone"
    twice = np.concatenate([vectors, vectors[:2]]), [*words, *words[:2]], [*of, *of[:2]]
    models = {"m": twice[0], "n": twice[0] + 3}
    found = categories(models, *twice[1:], left_out={"words out of vocabulary": 1}, of_semcat=True)
    assert found.left_out == {
        "words out of vocabulary": 1,
        "words that stand twice in their category": 2,
        "categories of one word": 1,
    }
    rows = found.tables[0].rows
    assert [row[0] for row in rows] == [f"c{number}" for number in range(6)]
    by_key = {one.key: one for one in found.measures}
    for place, (form, model) in enumerate((form, model) for form in ("rest", "nearest") for model in models):
        own = [row[2 + place] for row in rows]
        for name, share in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75)):
            assert by_key[f"silhouette/{form}/{name}"].values[model].value == pytest.approx(np.quantile(own, share))
        assert found.pictures[0].groups[f"against the {'rest' if form == 'rest' else 'nearest category'}"][
            model
        ] == tuple(own)
    median = by_key["silhouette/rest/median"]
    assert median.items == 6
    assert 0 < median.differences[0].p <= 1
    assert median.published == {"ungrounded": 0.097, "grounded": 0.181, "relational": 0.149}
    assert by_key["silhouette/nearest/median"].published == {}
    assert not any(one.published for one in categories(models, *twice[1:]).measures)  # other words than the paper's


def test_the_picture_shows_categories_apart_and_the_same_words_for_all_models() -> None:
    vectors, words, of = made(60, 6)
    found = categories({"m": vectors, "n": vectors**2}, words, of)
    (picture,) = [one for one in found.pictures if one.key == "categories/tsne"]
    texts = [[(point.text, point.group) for point in panel] for panel in picture.panels.values()]
    assert texts[0] == texts[1]
    assert dict(texts[0]) == dict(zip(words, of, strict=True))
    again = categories({"m": vectors, "n": vectors**2}, words, of)
    assert again == found


def test_the_categories_shown_are_large_and_share_few_words() -> None:
    """20 categories of at most 100 words: the second copies the first, and two others share a word."""
    rows = [(f"{size}-{number}", f"c{size}") for size in range(100, 80, -1) for number in range(size)]
    rows += [(word, "copy") for word, name in rows if name == "c100"] + [("100-0", "c99")]
    member = Membership.by(*zip(*rows, strict=True))
    taken = choose_shown(member)
    assert list(taken) == ["c100", *(f"c{size}" for size in range(99, 88, -1))]
    assert {len(places) for places in taken.values()} == {80}
    every = [place for places in taken.values() for place in places]
    assert len(every) == len(set(every))
    assert all(member.words[place].startswith("89-") for place in taken["c89"])


def test_the_most_improved_categories_and_their_intervals() -> None:
    """Against scikit-learn's silhouettes of each word, and a bootstrap over the words of each category."""
    _, words, of = made(60, 5)
    draw = np.random.default_rng(2)
    labels = np.array(of)
    pull = {"c0": 0.0, "c1": 0.5, "c2": 1.0, "c3": 2.0, "c4": 3.0}
    start = draw.normal(size=(60, 6))
    middles = {name: draw.normal(size=6) for name in pull}
    end = start + np.stack([pull[name] * middles[name] for name in of])
    models = {"before": start, "after": end, "again": end}
    found = categories(models, words, of)
    (table,) = [one for one in found.tables if "rises most" in one.title]
    assert table.columns == (
        *("from model", "to model", "category", "words", "before", "after", "change", "low", "high"),
    )
    each = {
        name: [silhouette_samples(vectors, labels == name, metric="cosine")[labels == name] for vectors in (start, end)]
        for name in pull
    }
    rises = {name: after.mean() - before.mean() for name, (before, after) in each.items()}
    expected = sorted((name for name in pull if rises[name] > 0), key=lambda name: -rises[name])
    assert [row[:4] for row in table.rows] == [("before", "after", name, 12) for name in expected]  # none rises again
    for name, *numbers in (row[2:3] + row[4:] for row in table.rows):
        before, after = each[name]
        value = over_items({"m": after - before}, mean)["m"].with_interval()
        assert numbers == pytest.approx([before.mean(), after.mean(), rises[name], value.low, value.high])
    (bars,) = [one for one in found.pictures if one.key.startswith("categories/most-improved")]
    assert (bars.key, list(bars.groups)) == ("categories/most-improved/after", expected)
    assert bars.groups["c4"]["after"].value == pytest.approx(rises["c4"])
    assert bars.items["c4"] == 12


def test_no_more_than_the_most_improved_are_shown() -> None:
    _, words, of = made(90, 30)
    draw = np.random.default_rng(2)
    start = draw.normal(size=(90, 6))
    end = start + np.stack([5 * np.eye(30, 6)[int(name[1:]) % 6 :][0] for name in of])
    found = categories({"m": start, "n": end}, words, of)
    (bars,) = [one for one in found.pictures if one.key.startswith("categories/most-improved")]
    values = [one["n"].value for one in bars.groups.values()]
    assert len(values) == MOST_IMPROVED
    assert values == sorted(values, reverse=True)
    assert min(values) > 0
    assert not [one for one in categories({"m": start}, words, of).pictures if "most-improved" in one.key]


def test_vectors_of_one_dimension_are_drawn_too() -> None:
    vectors, words, of = made(60, 6)
    found = categories({"m": vectors[:, :1]}, words, of)
    assert "categories/tsne" in [one.key for one in found.pictures]


def test_sentences_by_scene_are_called_so() -> None:
    vectors, words, of = made(60, 6)
    of[-1] = "alone"
    found = categories({"m": vectors, "n": vectors**3}, words, of, kinds=Kinds("scene", "sentence"))
    assert found.tables[0].title == "Silhouette of each scene"
    assert found.tables[0].columns == (
        *("scene", "sentences", "against the rest, m", "against the rest, n"),
        *("against the nearest scene, m", "against the nearest scene, n"),
    )
    assert found.left_out == {"scenes of one sentence": 1}
    titles = [one.title for one in (*found.tables, *found.pictures)]
    assert "Sentences of 7 scenes in a plane (t-SNE)" in titles
    said = " ".join([*titles, found.about, *(one.name for one in found.measures)])
    assert "categor" not in said
    assert "word" not in said


def test_few_words_have_no_picture() -> None:
    vectors, words, of = made(3, 2)
    of = ["c0", "c0", "c1"]
    found = categories({"m": vectors}, words, of)
    assert [one.key for one in found.pictures] == ["categories/silhouette"]
    assert found.left_out == {"categories of one word": 1}


def test_a_category_of_all_words_is_left_out() -> None:
    vectors, words, of = made(8, 2)
    every = np.concatenate([vectors, vectors]), [*words, *words], [*of, *["all"] * 8]
    found = categories({"m": every[0]}, *every[1:])
    assert found.left_out == {"categories that all words are of": 1}
    assert [row[0] for row in found.tables[0].rows] == ["c0", "c1"]
    assert all(np.isfinite(row[2]) for row in found.tables[0].rows)


def test_words_of_all_categories_have_no_nearest_one() -> None:
    """w0 and w1 are of all three categories, and c2 has no other words."""
    vectors, words, _ = made(8, 2)
    by_word = dict(zip(words, vectors, strict=True))
    members = {"c0": {*words[::2], "w1"}, "c1": {*words[1::2], "w0"}, "c2": {"w0", "w1"}}
    rows = [(word, name) for name, own in members.items() for word in sorted(own)]
    found = categories({"m": np.stack([by_word[word] for word, _ in rows])}, *zip(*rows, strict=True))
    assert found.left_out == {"words of all categories, for the nearest category": 2}
    table = {name: values for name, _, *values in found.tables[0].rows}
    for name in members:
        expected = [reference.silhouette(by_word, members, name, form) for form in ("rest", "nearest")]
        assert table[name] == pytest.approx([value if np.isfinite(value) else None for value in expected])
    assert table["c2"][1] is None
    items = {one.key: one.items for one in found.measures}
    assert (items["silhouette/rest/median"], items["silhouette/nearest/median"]) == (3, 2)
    alone = {"c0": {"w0", "w1"}, "all": {"w0", "w1", "w2"}}
    rows = [(word, name) for name, own in alone.items() for word in sorted(own)]
    found = categories({"m": np.stack([by_word[word] for word, _ in rows])}, *zip(*rows, strict=True))
    assert {one.key.split("/")[1] for one in found.measures} == {"rest"}
    assert found.tables[0].rows[0][3] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": ["only"] * 30}, "words of at least 2 categories, got 'only' alone"),
        ({"categories": [f"c{row}" for row in range(30)]}, "got none: 30 have one word and 0 have all"),
        ({"categories": ["c"] * 29}, "a category for each of 30 words, got 29"),
        ({"vectors": {"m": np.zeros((30, 6))}}, "model 'm': expected vectors with a direction, got zero for 30 of 30"),
        ({"vectors": {"m": np.full((30, 6), np.inf)}}, "model 'm': expected finite vectors"),
        ({"vectors": {"m": np.empty((0, 6))}, "words": [], "categories": []}, "at least one text"),
    ],
)
def test_invalid_input_is_refused(change: dict, message: str) -> None:
    vectors, words, of = made()
    given = {"vectors": {"m": vectors}, "words": words, "categories": of} | change
    with pytest.raises(ValueError, match=message):
        categories(**given)
