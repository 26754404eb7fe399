"""ViCo: vectors of visual co-occurrences in scene graphs (Gupta, Schwing and Hoiem 2019).

Of the paper's four kinds of co-occurrences, three are counted here:

    object-attribute      a name and an attribute of the same object
    attribute-attribute   two attributes of the same object
    context               the names of two objects of the same image, once an image

The fourth, object-hypernym, is of ImageNet's labels in WordNet, which scene graphs do not have. Shards keep the first
attribute of an object, so that attributes occur together only where it has several words, as `light brown`.

The vectors of the kinds are concatenated (the paper's transform `select`), or one vector is fitted to all of them
through a linear map of each kind (`linear`). Counts are weighted as by GloVe; the paper weighs all the same, fits one
table where GloVe has words and contexts, and adds a hinge loss of pairs that never occur.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.sparse import csr_array

from groundray.baselines import log_bilinear, shard_words
from groundray.baselines.log_bilinear import Options
from groundray.baselines.method import Method
from groundray.baselines.watch import Watch
from groundray.baselines.words import Vocabulary, WordVectors, check_width
from groundray.data.schema import Dataset

KINDS = ("object-attribute", "attribute-attribute", "context")
METHOD = Method(
    "vico",
    "ViCo, of words that apply to the same object or image of scene graphs",
    "Gupta, Schwing and Hoiem 2019, [ViCo: Word Embeddings from Visual Co-occurrences](https://arxiv.org/abs/1908.08527)",
    "Co-occurrences of the paper: object-attribute (a name and an attribute of an object), attribute-attribute (two "
    "attributes of an object) and context (names of two objects of an image). Its fourth kind, object-hypernym, needs "
    "ImageNet's labels in WordNet. Shards keep the first attribute of an object. The vectors of the kinds are "
    "concatenated, or with `joint` one vector is fitted to all through a linear map of each. Counts are weighted as by "
    "GloVe, which has two vectors a word; the paper weighs all counts the same, fits one table, and adds a hinge loss "
    "of pairs that never occur.",
)

Objects = list[tuple[list[str], list[str]]]  # of an image: the words of each object's name, and of its attributes


def vico(datasets: Sequence[Dataset], options: Options, joint: bool, min_count: int, watch: Watch) -> WordVectors:
    """Return the vector of each word of names and attributes that is frequent enough.

    Args:
        options: their width is that of each kind's part, or with `joint` of a whole vector.
        joint: fit one vector to all kinds, through linear maps to half its width; otherwise concatenate a vector of
            each kind. A word that a kind lacks has zeros in its part.
        min_count: number of objects whose name or attributes must have a word.

    Raises:
        ValueError: no word is frequent enough, or there are more dimensions than words.
    """
    groups = shard_words.groups_of(datasets)
    counts: Counter[str] = Counter()
    images = objects = attributes = 0
    for group in watch.track(groups, "words"):
        for found in shard_words.objects(*group):
            images += 1
            objects += len(found)
            attributes += sum(bool(attribute) for _, attribute in found)
            for name, attribute in found:
                counts.update({*name, *attribute})
    vocabulary = Vocabulary.of(counts, min_count, "objects")
    check_width(options.width, vocabulary)
    sums = {kind: csr_array((len(vocabulary), len(vocabulary))) for kind in KINDS}
    for group in watch.track(groups, "co-occurrences"):
        for kind, pairs in co_occurrences(list(shard_words.objects(*group)), vocabulary).items():
            sums[kind] = csr_array(sums[kind] + pairs)
    read = {"images": images, "objects": objects, "objects with an attribute": attributes}
    read |= {f"{kind} pairs of words": pairs.nnz for kind, pairs in sums.items()}
    kept = {kind: pairs for kind, pairs in sums.items() if pairs.nnz}
    notes = tuple(f"no {kind} co-occurrences in these scene graphs" for kind in KINDS if kind not in kept)
    if joint:
        vectors = log_bilinear.fit(list(kept.values()), options, max(1, options.width // 2), watch)
    else:
        parts = []
        for number, (kind, pairs) in enumerate(kept.items()):
            parts.append(
                log_bilinear.fit([pairs], replace(options, seed=options.seed + number), watch=watch, task=kind)
            )
        vectors = np.concatenate(parts, axis=1)
    return WordVectors.of(vocabulary, vectors, read, *notes)


def co_occurrences(images: Sequence[Objects], vocabulary: Vocabulary) -> dict[str, csr_array]:
    """Return how often two words occur together, for each of KINDS, in some images: symmetric matrices."""
    objects = [item for found in images for item in found]
    image = np.repeat(np.arange(len(images)), [len(found) for found in images])
    names = _once(vocabulary.incidence(name for name, _ in objects))
    attributes = _once(vocabulary.incidence(attribute for _, attribute in objects))
    of_image = csr_array((np.ones(len(objects)), (image, np.arange(len(objects)))), shape=(len(images), len(objects)))
    number = csr_array(of_image @ names)  # of objects of an image that have a name
    named = _once(number)
    number.data = (number.data > 1).astype(np.float64)
    both = csr_array(names.T @ attributes)
    return {
        "object-attribute": csr_array(both + both.T),
        "attribute-attribute": _with_diagonal(csr_array(attributes.T @ attributes), np.zeros(len(vocabulary))),
        # a name occurs with itself where two objects have it
        "context": _with_diagonal(csr_array(named.T @ named), number.sum(axis=0)),
    }


def _once(matrix: csr_array) -> csr_array:
    """Return the matrix with 1 in place of each number above 0."""
    matrix = csr_array(matrix, copy=True)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _with_diagonal(matrix: csr_array, diagonal: np.ndarray) -> csr_array:
    changed = matrix.tolil()
    changed.setdiag(diagonal)
    found = changed.tocsr()
    found.eliminate_zeros()
    return csr_array(found)
