"""The images of words, and what Picturebook and the bag of visual words make of them: against plain loops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallWorld

from groundray.baselines import bag_of_visual_words as bags
from groundray.baselines import shard_words, word_images
from groundray.baselines.bag_of_visual_words import bag_of_visual_words, reduced, weighted
from groundray.baselines.image_encoder import ImageEncoder
from groundray.baselines.picturebook import picturebook
from groundray.baselines.watch import Unwatched
from groundray.baselines.word_images import WordImages
from groundray.data.image_inputs import CentreCrop
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.rng import hash64, hash_name
from groundray.storage.folder import Folder

CROP = CentreCrop(112, 112)
SEED, PER_WORD = 3, 7


def blocks(pixels: torch.Tensor) -> torch.Tensor:
    """The mean colour of each quarter of an image: 4 positions, 3 features."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.double(), 2).flatten(2).transpose(1, 2)


ENCODER = ImageEncoder("quarters", "none", CROP, blocks)


@pytest.fixture(scope="module")
def datasets(world: SmallWorld) -> list[Dataset]:
    return [Dataset.open(f"{world.shards}/{name}") for name in ("captions/val", "objects/val", "scene_graphs/val")]


@pytest.fixture(scope="module")
def chosen(datasets: list[Dataset]) -> WordImages:
    return WordImages.choose(datasets, PER_WORD, 5, SEED, Unwatched())


@pytest.fixture(scope="module")
def truth(datasets: list[Dataset]) -> tuple[dict[str, list[int]], np.ndarray]:
    """The rows of each word with the smallest hashes, one word after the other; and the quarters of all rows."""
    ids: list[str] = []
    words: list[list[str]] = []
    features = []
    for dataset, group in shard_words.groups_of(datasets):
        for id, said in shard_words.images(dataset, group):
            ids.append(id)
            words.append(said)
        for row in range(len(table := read_group(dataset, group, ["id", "image"]))):
            features.append(blocks(torch.from_numpy(CROP.arrays(table.slice(row, 1)))).numpy()[0])
    counts = Counter(word for said in words for word in said)
    rows = {
        word: sorted(
            (row for row, said in enumerate(words) if word in said),
            key=lambda row: (int(hash64(SEED, hash_name(word), hash_name(ids[row]))), row),
        )[:PER_WORD]
        for word, count in counts.items()
        if count >= 5
    }
    return rows, np.stack(features).astype(np.float32)


def rows_of(images: WordImages) -> dict[str, set[int]]:
    return {
        word: set(images.row[images.word == number].tolist()) for number, word in enumerate(images.vocabulary.words)
    }


def test_images_are_chosen_by_the_seed_the_word_and_their_id(
    chosen: WordImages, truth: tuple[dict[str, list[int]], np.ndarray], datasets: list[Dataset], monkeypatch: Any
) -> None:
    true = {word: set(rows) for word, rows in truth[0].items()}
    assert rows_of(chosen) == true
    assert {"red", "circle", "dotted"} <= true.keys()
    monkeypatch.setattr(word_images, "PAIRS_AT_ONCE", 10)  # surplus images are dropped on the way
    assert rows_of(WordImages.choose(datasets, PER_WORD, 5, SEED, Unwatched())) == true
    assert rows_of(WordImages.choose(datasets, PER_WORD, 5, SEED + 1, Unwatched())) != true
    assert chosen.counts["images"] == sum(dataset.rows for dataset in datasets)
    assert chosen.counts["images used, counted for each of their words"] == sum(map(len, true.values()))


@pytest.mark.parametrize("centred", [True, False])
def test_a_word_is_the_mean_of_its_images(
    chosen: WordImages, truth: tuple[dict[str, list[int]], np.ndarray], centred: bool
) -> None:
    rows, features = truth
    made = picturebook(chosen, ENCODER, centred, Unwatched())
    assert set(made.words) == set(rows)
    used = sorted({row for of_word in rows.values() for row in of_word})
    middle = np.mean([features[row].mean(axis=0) for row in used], axis=0) if centred else 0
    for word, vector in zip(made.words, made.vectors, strict=True):
        mean = sum(features[row].mean(axis=0) for row in rows[word]) / len(rows[word])
        np.testing.assert_allclose(vector, mean - middle, rtol=1e-4, atol=1e-3)


def test_a_word_is_the_visual_words_of_its_images(
    chosen: WordImages, truth: tuple[dict[str, list[int]], np.ndarray], monkeypatch: Any
) -> None:
    """Visual words that are known: the brightest colour of a quarter."""
    rows, features = truth

    class Brightest:
        def __init__(self, clusters: int, **_: Any):
            self.clusters = clusters

        def fit(self, local: np.ndarray) -> Brightest:
            assert local.shape[1] == 3
            return self

        def predict(self, local: np.ndarray) -> np.ndarray:
            return local.argmax(axis=1)

    monkeypatch.setattr(bags, "MiniBatchKMeans", Brightest)
    made = bag_of_visual_words(chosen, ENCODER, 3, "lmi", None, 0, Unwatched())
    counts = np.array(
        [
            [
                sum(int(quarter.argmax() == colour) for row in rows[word] for quarter in features[row])
                for colour in (0, 1, 2)
            ]
            for word in chosen.vocabulary.words
        ],
        dtype=np.float64,
    )
    true = weighted(counts, "lmi")
    kept = true.any(axis=1)
    assert made.words == tuple(word for word, has in zip(chosen.vocabulary.words, kept, strict=True) if has)
    np.testing.assert_allclose(made.vectors, true[kept], rtol=1e-5)


def test_visual_words_are_the_same_each_time(chosen: WordImages) -> None:
    first, again, other = (bag_of_visual_words(chosen, ENCODER, 6, "ppmi", 4, seed, Unwatched()) for seed in (0, 0, 1))
    assert first.vectors.shape == (len(chosen.vocabulary), 4)
    assert np.array_equal(first.vectors, again.vectors)
    assert not np.array_equal(first.vectors, other.vectors)


def test_information_is_that_of_the_formula() -> None:
    counts = np.array([[4.0, 0.0], [1.0, 3.0], [1.0, 1.0]])
    for weighting in ("ppmi", "lmi"):
        found = weighted(counts, weighting)
        for (word, cluster), count in np.ndenumerate(counts):
            joint, of_word, of_cluster = count / 10, counts[word].sum() / 10, counts[:, cluster].sum() / 10
            true = max(0.0, np.log(joint / (of_word * of_cluster))) if count else 0.0
            assert found[word, cluster] == pytest.approx(true * (count if weighting == "lmi" else 1))


def test_reduced_vectors_keep_all_products_at_full_width() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    found = reduced(vectors, 4)
    np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=1e-12)
    best = reduced(vectors, 1)
    error = np.linalg.norm(vectors @ vectors.T - best @ best.T)
    assert error < np.linalg.norm(vectors @ vectors.T) / 1.2


def test_impossible_options_are_named(chosen: WordImages, datasets: list[Dataset]) -> None:
    with pytest.raises(ValueError, match="--images-per-word: expected at least 1, got 0"):
        WordImages.choose(datasets, 0, 5, 0, Unwatched())
    with pytest.raises(ValueError, match="--min-count: expected words with at least 999 images"):
        WordImages.choose(datasets, 5, 999, 0, Unwatched())
    with pytest.raises(ValueError, match=r"--clusters: expected at most .*, the number of local features, got 9,999"):
        bag_of_visual_words(chosen, ENCODER, 9999, "ppmi", None, 0, Unwatched())
    with pytest.raises(ValueError, match="--width: expected 1 to 3, the number of --clusters, got 4"):
        bag_of_visual_words(chosen, ENCODER, 3, "ppmi", 4, 0, Unwatched())
    with pytest.raises(ValueError, match="--clusters: expected at least 2, got 1"):
        bag_of_visual_words(chosen, ENCODER, 1, "ppmi", None, 0, Unwatched())


def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    rows = [{"id": f"image {n}", "image": b"x", "width": 1, "height": 1, "captions": ["a dog"]} for n in range(3)]
    dataset = write_shards(Folder.at(tmp_path).make(), "captions", rows, {}, {})
    images = WordImages.choose([dataset], 5, 1, 0, Unwatched())
    with pytest.raises(ValueError, match=f"{tmp_path}: image 'image 0' cannot be decoded .*--overwrite"):
        picturebook(images, ENCODER, True, Unwatched())


@pytest.mark.parametrize(
    ("trunk", "weights", "size", "problem"),
    [
        ("nope", None, 112, "--trunk: expected one of vgg16, efficientnet_lite0, tiny, or timm/NAME, got 'nope'"),
        ("tiny", None, 0, "--image-size: expected at least 1, got 0"),
        ("vgg16", "none", 111, "--image-size: expected a multiple of 16 pixels for trunk vgg16, got 111"),
        ("tiny", None, 8, r"--image-size: expected a size that trunk tiny takes, got 8 \(.*Output size is too small"),
        ("tiny", "published", 112, "trunk tiny has no published weights: set --weights"),
        ("tiny", "/nowhere.pt", 112, "--weights: there is no file /nowhere.pt"),
    ],
)
def test_a_trunk_that_cannot_be_used_is_an_error(trunk: str, weights: str | None, size: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ImageEncoder.of_trunk(trunk, weights, size, 0)


def test_random_weights_follow_the_seed_and_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    digests = [ImageEncoder.of_trunk("tiny", None, 112, seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.get_rng_state(), before)
