"""GloVe from captions: words that stand near each other (Pennington, Socher and Manning 2014).

Each pair of words of a text that are at most `window` words apart counts 1 / distance, in both orders. As in the
authors' code (cooccur.c), rare words are taken out first, so that the words around them move together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int
from scipy.sparse import csr_array

from groundray.baselines import log_bilinear, shard_words
from groundray.baselines.log_bilinear import Options
from groundray.baselines.method import Method
from groundray.baselines.watch import Watch
from groundray.baselines.words import UNKNOWN, Vocabulary, WordVectors, check_width
from groundray.data.schema import Dataset

METHOD = Method(
    "glove",
    "GloVe of words that stand near each other in captions",
    "Pennington, Socher and Manning 2014, [GloVe: Global Vectors for Word Representation]"
    "(https://aclanthology.org/D14-1162/)",
    "Each pair of words of a text that are at most `window` words apart counts 1 / distance, in both orders, after "
    "words with fewer than `min-count` occurrences were taken out. The log-bilinear model is fitted by AdaGrad as in "
    "the authors' code, in batches; a word's vector is the sum of its two vectors, as word and as context.",
)
WORDS_AT_ONCE = 2**18  # of whole texts, whose pairs take 130 MB with a window of 10


def glove(datasets: Sequence[Dataset], options: Options, window: int, min_count: int, watch: Watch) -> WordVectors:
    """Return the vector of each word of captions, or of lines of text, that is frequent enough.

    Args:
        window: number of words on each side of a word that it occurs with.
        min_count: number of occurrences that a word must have.

    Raises:
        ValueError: an option is out of range, no word is frequent enough, or there are more dimensions than words.
    """
    if window < 1:
        raise ValueError(f"--window: expected at least 1, got {window}")
    groups = shard_words.groups_of(datasets)
    counts: Counter[str] = Counter()
    texts = 0
    for group in watch.track(groups, "words"):
        for words in shard_words.texts(*group):
            counts.update(words)
            texts += 1
    vocabulary = Vocabulary.of(counts, min_count, "occurrences")
    check_width(options.width, vocabulary)
    near = csr_array((len(vocabulary), len(vocabulary)))
    for group in watch.track(groups, "co-occurrences"):
        for block in _blocks(vocabulary.numbers(words) for words in shard_words.texts(*group)):
            near = csr_array(near + near_pairs(block, window, len(vocabulary)))
    vectors = log_bilinear.fit([near], options, watch=watch)
    read = {"texts": texts, "occurrences of words": counts.total(), "pairs of words": near.nnz}
    return WordVectors.of(vocabulary, vectors, read)


def near_pairs(texts: Sequence[Int[np.ndarray, " word"]], window: int, words: int) -> csr_array:
    """Return the sum of 1 / distance over the places at which two words are at most `window` words apart in a text.

    Args:
        texts: words of each text by number; UNKNOWN is taken out.
        words: number of words.
    """
    texts = [text[text != UNKNOWN] for text in texts]
    word = np.concatenate([np.zeros(0, np.int64), *texts])
    text = np.repeat(np.arange(len(texts)), [len(one) for one in texts])
    first, second, weights = [], [], []
    for distance in range(1, window + 1):
        together = np.flatnonzero(text[distance:] == text[:-distance])
        first.append(word[together])
        second.append(word[together + distance])
        weights.append(np.full(len(together), 1 / distance))
    places = (np.concatenate(first), np.concatenate(second))
    pairs = csr_array((np.concatenate(weights), places), shape=(words, words))
    return csr_array(pairs + pairs.T)


def _blocks(texts: Iterator[Int[np.ndarray, " word"]]) -> Iterator[list[Int[np.ndarray, " word"]]]:
    """Yield the texts in blocks of about WORDS_AT_ONCE words."""
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= WORDS_AT_ONCE:
            yield block
            block, size = [], 0
    if block:
        yield block
