"""Pairs of words that are near each other: against a double loop, and from captions to vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from groundray.baselines import glove as module
from groundray.baselines.glove import glove, near_pairs
from groundray.baselines.log_bilinear import Options
from groundray.baselines.watch import Unwatched
from groundray.baselines.words import UNKNOWN, words_of
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.storage.folder import Folder


def naive_pairs(texts: list[list[int]], window: int, words: int) -> np.ndarray:
    found = np.zeros((words, words))
    for text in texts:
        known = [word for word in text if word != UNKNOWN]
        for place, word in enumerate(known):
            for other in range(place + 1, min(len(known), place + window + 1)):
                found[word, known[other]] += 1 / (other - place)
                found[known[other], word] += 1 / (other - place)
    return found


@pytest.mark.parametrize("window", [1, 2, 10])
def test_pairs_are_those_of_a_double_loop(window: int) -> None:
    draw = np.random.default_rng(window)
    texts = [draw.integers(-1, 6, draw.integers(0, 12)).tolist() for _ in range(40)]
    found = near_pairs([np.array(text, np.int64) for text in texts], window, 6)
    np.testing.assert_allclose(found.toarray(), naive_pairs(texts, window, 6), rtol=1e-12)


def test_the_pairs_of_a_caption() -> None:
    """A rare word is taken out, so that its neighbours are next to each other; texts do not touch."""
    found = near_pairs([np.array([0, UNKNOWN, 1, 0]), np.array([1])], 10, 2)
    assert found.toarray().tolist() == [[1.0, 2.0], [2.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's T-shirt, don\u2019t!", ["a", "man's", "t-shirt", "don\u2019t"]),
        ("two_words 3D", ["two", "words", "3d"]),
        (" -- ' ", []),
        ("ÉTÉ", ["été"]),
    ],
)
def test_words_have_no_punctuation(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def captions(folder: Folder, texts: list[list[str]]) -> Dataset:
    rows = [{"id": str(n), "image": b"", "width": 1, "height": 1, "captions": said} for n, said in enumerate(texts)]
    return write_shards(folder.make(), "captions", rows, {}, {}, row_group_bytes=1)  # a row group an image


def lines(folder: Folder, texts: list[str]) -> Dataset:
    return write_shards(folder.make(), "text", [{"id": str(n), "text": text} for n, text in enumerate(texts)], {}, {})


def test_captions_and_lines_become_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS_AT_ONCE", 5)  # several blocks a row group
    said = [["a red circle", "the red ring"], ["A blue circle.", "a red ring"], ["circle", "rare"]]
    written = captions(Folder.at(tmp_path / "captions"), said)
    text = lines(Folder.at(tmp_path / "text"), [one for of_image in said for one in of_image])
    options = Options(3, epochs=5)
    made = glove([written], options, 2, 2, Unwatched())
    assert made.words == ("a", "circle", "red", "ring")
    assert made.counts == {
        "texts": 6,
        "occurrences of words": 14,
        "pairs of words": 10,
        "words": 4,
        "words too rare": 3,
    }
    assert made.vectors.shape == (4, 3)
    again = glove([text], options, 2, 2, Unwatched())
    assert np.array_equal(made.vectors, again.vectors)
    twice = glove([written, text], options, 2, 2, Unwatched())
    assert twice.counts["texts"] == 12


def test_a_word_that_is_always_alone_has_no_vector(tmp_path: Path) -> None:
    made = glove([lines(Folder.at(tmp_path), ["red ring", "alone"])], Options(1, epochs=1), 1, 1, Unwatched())
    assert made.words == ("red", "ring")
    assert made.counts["words whose vector is zero"] == 1


def test_what_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    data = [lines(Folder.at(tmp_path), ["red ring", "blue ring"])]
    with pytest.raises(ValueError, match=r"--min-count: expected words with at least 3 occurrences.*'ring', has 2"):
        glove(data, Options(2), 5, 3, Unwatched())
    with pytest.raises(ValueError, match="--width: expected at most 3, the number of words"):
        glove(data, Options(4), 5, 1, Unwatched())
    with pytest.raises(ValueError, match="--window: expected at least 1, got 0"):
        glove(data, Options(2), 0, 1, Unwatched())


def test_pairs_add_up_over_blocks() -> None:
    texts = [np.array([0, 1, 2]), np.array([2, 1]), np.array([0, 0])]
    apart = sum((near_pairs([text], 3, 3) for text in texts), csr_array((3, 3)))
    np.testing.assert_allclose(near_pairs(texts, 3, 3).toarray(), apart.toarray())
