"""Visual co-occurrences in scene graphs: against loops over objects, and from graphs to vectors."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from groundray.baselines import shard_words
from groundray.baselines.log_bilinear import Options
from groundray.baselines.vico import KINDS, Objects, co_occurrences, vico
from groundray.baselines.watch import Unwatched
from groundray.baselines.words import Vocabulary
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.storage.folder import Folder

CLASSES = ("none", "traffic_light.n.01", "dog.n.01", "person")
GRAPHS = [
    [("red traffic light", 1), ("black dog", 2), ("dog", 2)],
    [("light brown dog", 2), ("tall man", 3)],
    [("black cab", 3)],
]


def graphs(folder: Path, images: list[list[tuple[str, int]]] = GRAPHS) -> Dataset:
    rows = [
        {
            **{"id": str(number), "image": b"", "width": 1, "height": 1, "relations": []},
            "objects": [{"phrase": phrase, "class": of} for phrase, of in objects],
        }
        for number, objects in enumerate(images)
    ]
    vocabulary = {"classes": CLASSES, "predicates": ("none",)}
    return write_shards(Folder.at(folder).make(), "scene_graphs", rows, {}, {}, vocabulary, row_group_bytes=1)


def naive(images: list[Objects], vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Each co-occurrence, one by one."""
    found = {kind: np.zeros((len(vocabulary), len(vocabulary))) for kind in KINDS}
    index = {word: number for number, word in enumerate(vocabulary.words)}

    def count(kind: str, first: str, second: str) -> None:
        if first in index and second in index:
            found[kind][index[first], index[second]] += 1

    for objects in images:
        together = set()
        for place, (name, attributes) in enumerate(objects):
            for word in set(name):
                for attribute in set(attributes):
                    count("object-attribute", word, attribute)
                    count("object-attribute", attribute, word)
            for pair in permutations(set(attributes), 2):
                count("attribute-attribute", *pair)
            for other, (another, _) in enumerate(objects):
                # two words of one name are seen in the same image as well
                same = place == other
                together |= {(a, b) for a in name for b in another if not same or a != b}
        for pair in together:
            count("context", *pair)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_co_occurrences_are_those_of_loops(seed: int) -> None:
    draw = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(8)]

    def some(most: int) -> list[str]:
        return [words[number] for number in draw.integers(0, 8, draw.integers(0, most + 1))]

    images = [[([*some(1), words[draw.integers(8)]], some(3)) for _ in range(draw.integers(0, 6))] for _ in range(20)]
    vocabulary = Vocabulary.of(Counter(words[:6]), 1, "objects")  # two words are too rare
    found, true = co_occurrences(images, vocabulary), naive(images, vocabulary)
    assert list(found) == list(KINDS)
    for kind in KINDS:
        np.testing.assert_array_equal(found[kind].toarray(), true[kind], err_msg=kind)


def test_phrases_end_with_the_name_of_their_class(tmp_path: Path) -> None:
    dataset = graphs(tmp_path)
    found = [image for group in range(len(dataset.groups)) for image in shard_words.objects(dataset, group)]
    assert found == [
        [(["traffic", "light"], ["red"]), (["dog"], ["black"]), (["dog"], [])],
        [(["dog"], ["light", "brown"]), (["man"], ["tall"])],
        [(["cab"], ["black"])],
    ]


@pytest.mark.parametrize("joint", [False, True])
def test_scene_graphs_become_vectors(tmp_path: Path, joint: bool) -> None:
    made = vico([graphs(tmp_path)], Options(2, epochs=3), joint, 1, Unwatched())
    assert made.words == ("dog", "black", "light", "brown", "cab", "man", "red", "tall", "traffic")
    assert made.counts["objects"] == 6
    assert made.counts["objects with an attribute"] == 5
    assert made.counts["attribute-attribute pairs of words"] == 2  # light and brown, both ways
    assert made.notes == ()
    vectors = dict(zip(made.words, made.vectors, strict=True))
    if joint:
        assert made.vectors.shape == (9, 2)
    else:
        # object-attribute, attribute-attribute, context
        assert made.vectors.shape == (9, 6)
        assert [bool(vectors["tall"][part : part + 2].any()) for part in (0, 2, 4)] == [True, False, False]
        assert [bool(vectors["light"][part : part + 2].any()) for part in (0, 2, 4)] == [True, True, True]
    again = vico([graphs(tmp_path / "again")], Options(2, epochs=3), joint, 1, Unwatched())
    assert np.array_equal(made.vectors, again.vectors)


def test_a_kind_without_co_occurrences_is_left_out_with_a_note(tmp_path: Path) -> None:
    made = vico([graphs(tmp_path, [[("black dog", 2), ("dog", 2)]])], Options(2, epochs=2), False, 1, Unwatched())
    assert made.vectors.shape == (2, 4)
    assert made.notes == ("no attribute-attribute co-occurrences in these scene graphs",)


def test_more_dimensions_than_words_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--width: expected at most 9"):
        vico([graphs(tmp_path)], Options(10), False, 1, Unwatched())
