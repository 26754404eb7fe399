"""Picturebook: a word is the mean of its images' feature vectors (Kiros, Chan and Hinton 2018).

An image's vector is the mean of its features over all positions. The published vectors concatenate those of ten images
in the order of a web search; captions rank no images, so that their mean is taken, as by Kiela and Bottou (2014). Each
vector is then taken from the mean of all images, which all words share: it says how a word's images differ from others.
"""

from __future__ import annotations

import numpy as np

from groundray.baselines.image_encoder import ImageEncoder
from groundray.baselines.method import Method
from groundray.baselines.watch import Watch
from groundray.baselines.word_images import WordImages
from groundray.baselines.words import WordVectors

METHOD = Method(
    "picturebook",
    "the mean over a word's images",
    "Kiros, Chan and Hinton 2018, [Illustrative Language Understanding: Large-Scale Visual Grounding with Image "
    "Search](https://aclanthology.org/P18-1085/); Kiela and Bottou 2014, [Learning Image Embeddings using "
    "Convolutional Neural Networks](https://aclanthology.org/D14-1005/)",
    "The images of a word are those whose captions, objects or label have it. An image's vector is the mean of its "
    "features over all positions, a word's the mean over its images, less the mean over all images (unless "
    "`not-centred`). Published Picturebook concatenates the vectors of ten images in the order of a web search; "
    "captions rank no images.",
)


def picturebook(images: WordImages, encoder: ImageEncoder, centred: bool, watch: Watch) -> WordVectors:
    """Return the vector of each word: the mean over its images.

    Args:
        centred: subtract the mean over all images.

    Raises:
        ValueError: an image cannot be decoded; the message names it.
    """
    sums: np.ndarray | None = None
    total, count = np.zeros(0), 0
    for words, features in images.seen(encoder, watch, "images"):
        pooled = features.mean(axis=1, dtype=np.float64)
        if sums is None:
            sums, total = np.zeros((len(images.vocabulary), pooled.shape[1])), np.zeros(pooled.shape[1])
        sums += words @ pooled
        total += pooled.sum(axis=0)
        count += len(pooled)
    assert sums is not None  # each word has an image
    vectors = sums / np.bincount(images.word, minlength=len(sums))[:, None]
    if centred:
        vectors -= total / count
    return WordVectors.of(images.vocabulary, vectors, images.counts)
