"""Words to try on the page, and for its first view: those that tell images of the pool apart.

Norms know which words are concrete. Without them the words come from the pool: the names of its classes, or its
captions' words, those first that more images have than the order of the vocabulary, the most frequent words first,
lets one expect (Zipf 1949). "Of" and "with" are frequent in captions as in any text; "dog" and "beach" are not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from groundray.data.row_groups import read_rows
from groundray.data.schema import KINDS, Dataset, class_name
from groundray.image_search.calibration import sample_rows
from groundray.image_search.filters import Labels
from groundray.image_search.word_space import Word

SUGGESTED = 6
MIN_IMAGES = 3  # that have a word
RATIO = 3  # least, of the number of images that have a word and its expectation
FREQUENCY = 0.1  # of the most frequent word in English; that of the word of rank r is 1 / r of it
NONE = "none"  # class of scene graphs' objects without one
WORD = re.compile(r"[^\W\d_]{2,}")


def suggested_words(words: Sequence[Word], images: Dataset) -> tuple[str, ...]:
    """Return at most SUGGESTED words to try; none where neither norms nor the pool have words.

    Args:
        words: that the page shows; those of a tokenizer have no category and no concreteness.
        images: the pool. Of its captions a sample is read.
    """
    if any(word.category is not None or word.concreteness is not None for word in words):
        return most_concrete(words)
    if names := [name for name in Labels(images).names if name != NONE]:
        return tuple(map(class_name, names[:SUGGESTED]))
    if "captions" not in KINDS[images.kind].names:
        return ()
    captions = read_rows(images, sample_rows(images.group_sizes), ["captions"])["captions"].to_pylist()
    return distinctive([word.text for word in words], captions)


def most_concrete(words: Sequence[Word]) -> tuple[str, ...]:
    """Return the most concrete word of each category, the most concrete categories first."""
    best: dict[str, str] = {}
    for word in sorted(words, key=lambda word: -(word.concreteness or 0)):
        best.setdefault(word.text if word.category is None else word.category, word.text)
    return tuple(best.values())[:SUGGESTED]


def distinctive(vocabulary: Sequence[str], captions: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Return the words of captions that exceed their expected frequency most, by n log(n / expected), where n is the
    number of images that have the word.

    Args:
        vocabulary: words, the most frequent in the language first. Others are not returned.
        captions: those of each image.
    """
    of_images = [Counter(WORD.findall(" ".join(texts).lower())) for texts in captions]
    length = sum(counts.total() for counts in of_images) / max(1, len(of_images))
    having = Counter(word for counts in of_images for word in counts)

    excess = dict[str, float]()
    for rank, word in enumerate(vocabulary, 1):
        expected = len(of_images) * -math.expm1(-length * FREQUENCY / rank)
        if having[word] >= max(MIN_IMAGES, RATIO * expected):
            excess[word] = having[word] * math.log(having[word] / expected)
    return tuple(sorted(excess, key=lambda word: -excess[word])[:SUGGESTED])
