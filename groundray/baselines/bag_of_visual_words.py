"""Bag of visual words: a word is how often its images have each visual word (Bruni, Tran and Baroni 2014).

The local features of the images, one a position of the feature map, are clustered by k-means; a cluster is a visual
word. Counts are weighted by positive pointwise mutual information, or by local mutual information as published, and
reduced by a singular value decomposition if a width is given. The published local features are SIFT, in a spatial
pyramid.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from sklearn.cluster import MiniBatchKMeans
from sklearn.utils.extmath import svd_flip

from groundray.baselines.image_encoder import ImageEncoder
from groundray.baselines.method import Method
from groundray.baselines.watch import Watch
from groundray.baselines.word_images import WordImages
from groundray.baselines.words import WordVectors, check_width

SAMPLE = 100_000  # local features that are clustered
Weighting = Literal["ppmi", "lmi"]
METHOD = Method(
    "bovw",
    "the visual words of a word's images",
    "Bruni, Tran and Baroni 2014, [Multimodal Distributional Semantics](https://doi.org/10.1613/jair.4135)",
    "Local features, one a position of the feature map, are clustered by mini-batch k-means; a cluster is a visual "
    "word. The images of a word are those whose captions, objects or label have it. How often they have each visual "
    "word is weighted by positive pointwise mutual information (`ppmi`) or by local mutual information (`lmi`, as "
    "published), and reduced by a singular value decomposition if a `width` is given. The published local features are "
    "SIFT, in a spatial pyramid.",
)


def bag_of_visual_words(
    images: WordImages,
    encoder: ImageEncoder,
    clusters: int,
    weighting: Weighting,
    width: int | None,
    seed: int,
    watch: Watch,
) -> WordVectors:
    """Return the vector of each word: the weighted counts of visual words in its images.

    Args:
        clusters: number of visual words.
        width: number of dimensions to reduce the counts to; None for all.
        seed: of the choice of images whose features are clustered, and of k-means.

    Raises:
        ValueError: an option is out of range, or an image cannot be decoded.
    """
    if clusters < 2:
        raise ValueError(f"--clusters: expected at least 2, got {clusters}")
    if width is not None:
        check_width(width, images.vocabulary)
        if not 1 <= width <= clusters:
            raise ValueError(f"--width: expected 1 to {clusters}, the number of --clusters, got {width}")
    first = next(images.seen(encoder, watch, "first image", images.sample(1, seed)))
    _, positions, dim = first.features.shape
    sample = images.sample(max(1, SAMPLE // positions), seed)
    local = np.empty((len(sample) * positions, dim), np.float32)
    place = 0
    for _, features in images.seen(encoder, watch, "images to cluster", sample):
        local[place : place + len(features) * positions] = features.reshape(-1, dim)
        place += len(features) * positions
    if len(local) < clusters:
        raise ValueError(
            f"--clusters: expected at most {len(local):,}, the number of local features, got {clusters:,}: give fewer, "
            "or more images"
        )
    k_means: Any = MiniBatchKMeans  # whose stubs know one type of each argument alone
    visual_words = k_means(clusters, random_state=seed, n_init=3, compute_labels=False).fit(local)
    del local
    counts = np.zeros((len(images.vocabulary), clusters))
    for words, features in images.seen(encoder, watch, "images"):
        number = visual_words.predict(features.reshape(-1, dim)).reshape(-1, positions)
        counts += words @ np.stack([np.bincount(row, minlength=clusters) for row in number])
    vectors = weighted(counts, weighting)
    return WordVectors.of(images.vocabulary, vectors if width is None else reduced(vectors, width), images.counts)


def weighted(counts: Float[np.ndarray, "word cluster"], weighting: Weighting) -> Float[np.ndarray, "word cluster"]:
    """Return the positive pointwise mutual information of words and clusters, log P(w, c) / (P(w) P(c)) where that is
    above 0; for `lmi`, times the count."""
    expected = counts.sum(axis=1, keepdims=True) * (counts.sum(axis=0) / counts.sum())
    ratio = np.divide(counts, expected, out=np.ones_like(counts), where=counts > 0)
    information = np.maximum(np.log(ratio), 0)
    return information if weighting == "ppmi" else counts * information


def reduced(vectors: Float[np.ndarray, "word dim"], width: int) -> Float[np.ndarray, "word {width}"]:
    """Return the coordinates of vectors along their first singular vectors."""
    U, s, Vt = np.linalg.svd(vectors, full_matrices=False)
    U, _ = svd_flip(U, Vt)  # else the signs are those that the library happens to give
    return U[:, :width] * s[:width]
