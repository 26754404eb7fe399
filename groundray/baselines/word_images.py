"""The images of each word: those whose captions, objects or label have the word, at most so many, chosen by a seed.

The choice depends on the seed, the word and the image's id alone, not on the order of the shards. Two passes over the
words of the shards find it, in memory that grows with the number of words; a third one reads the images that are used,
a row group at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int, UInt64
from scipy.sparse import csr_array

from groundray.baselines import shard_words
from groundray.baselines.image_encoder import ImageEncoder
from groundray.baselines.watch import Watch
from groundray.baselines.words import UNKNOWN, Vocabulary
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.rng import hash64, hash_name, shuffled

BATCH = 32  # images that are encoded at once
PAIRS_AT_ONCE = 2**20  # of a word and an image, that are kept before the surplus ones are dropped


class Seen(NamedTuple):
    """Images, and the words that they were chosen for.

    Attributes:
        words: 1 for each word of an image, a sparse matrix [word image].
        features: of the images.
    """

    words: csr_array
    features: Float32[np.ndarray, "image position dim"]


@dataclass(frozen=True)
class WordImages:
    """The chosen images of each word.

    Attributes:
        vocabulary: the words, with the number of images that have them.
        word, row: index of the word, and row number of the image, counted over all data sets, of each choice, in the
            order of rows.
        datasets: where the images are.
    """

    vocabulary: Vocabulary
    word: Int[np.ndarray, " choice"]
    row: Int[np.ndarray, " choice"]
    datasets: tuple[Dataset, ...]

    @staticmethod
    def choose(datasets: Sequence[Dataset], per_word: int, min_images: int, seed: int, watch: Watch) -> WordImages:
        """Choose the images of each word that is frequent enough.

        Args:
            per_word: number of images of a word, at most.
            min_images: number of images that must have a word.

        Raises:
            ValueError: an option is out of range, or no word is frequent enough.
        """
        if per_word < 1:
            raise ValueError(f"--images-per-word: expected at least 1, got {per_word}")
        groups = shard_words.groups_of(datasets)
        counts: Counter[str] = Counter()
        for group in watch.track(groups, "words"):
            for _, words in shard_words.images(*group):
                counts.update(words)
        vocabulary = Vocabulary.of(counts, min_images, "images")
        of_word = np.array([hash_name(word) for word in vocabulary.words], dtype=np.uint64)
        choice = _Choice(per_word)
        row = 0
        for group in watch.track(groups, "images of words"):
            found = list(shard_words.images(*group))
            numbered = [vocabulary.numbers(words) for _, words in found]
            numbers = np.concatenate([np.zeros(0, np.int64), *numbered])
            image = np.repeat(np.arange(len(found)), [len(one) for one in numbered])
            image, numbers = image[numbers != UNKNOWN], numbers[numbers != UNKNOWN]
            of_image = np.array([hash_name(id) for id, _ in found], dtype=np.uint64)
            choice.add(numbers, row + image, hash64(seed, of_word[numbers], of_image[image]))
            row += len(found)
        word, rows = choice.chosen()
        by_row = np.lexsort((word, rows))
        return WordImages(vocabulary, word[by_row], rows[by_row], tuple(datasets))

    @property
    def counts(self) -> dict[str, int]:
        """How much was read and used."""
        return {
            "images": sum(dataset.rows for dataset in self.datasets),
            "images used": len(np.unique(self.row)),
            "images used, counted for each of their words": len(self.row),
        }

    def sample(self, count: int, seed: int) -> Int[np.ndarray, " image"]:
        """Return the row numbers of some of the images, at most `count`, in ascending order."""
        rows = np.unique(self.row)
        return np.sort(rows[shuffled(len(rows), seed)[:count]])

    def seen(
        self, encoder: ImageEncoder, watch: Watch, task: str, rows: Int[np.ndarray, " image"] | None = None
    ) -> Iterator[Seen]:
        """Yield all images, or those of some rows, in batches in the order of rows.

        Raises:
            ValueError: an image cannot be decoded, or a row group is damaged; the message names it.
        """
        wanted = np.unique(self.row) if rows is None else rows
        done = first = 0
        for dataset, group in shard_words.groups_of(self.datasets):
            last = first + int(dataset.group_sizes[group])
            here = wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)]
            if len(here):
                table = read_group(dataset, group, ["id", "image"])
                for start in range(0, len(here), BATCH):
                    some = here[start : start + BATCH]
                    features = encoder.features(table.take(pa.array(some - first)), str(dataset.folder))
                    yield Seen(self._words_of(some), features)
                    done += len(some)
                    watch.update(task, done, len(wanted))
            first = last

    def _words_of(self, rows: Int[np.ndarray, " image"]) -> csr_array:
        start, stop = np.searchsorted(self.row, rows[0]), np.searchsorted(self.row, rows[-1], side="right")
        word, row = self.word[start:stop], self.row[start:stop]
        place = np.minimum(np.searchsorted(rows, row), len(rows) - 1)
        own = rows[place] == row  # rows need not follow one another
        entries = (np.ones(int(own.sum())), (word[own], place[own]))
        return csr_array(entries, shape=(len(self.vocabulary), len(rows)))


class _Choice:
    """The pairs of a word and a row with the smallest keys, so many of each word."""

    def __init__(self, per_word: int):
        self._per_word = per_word
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = self._kept = 0

    def add(self, word: Int[np.ndarray, " n"], row: Int[np.ndarray, " n"], key: UInt64[np.ndarray, " n"]) -> None:
        self._parts.append((word, row, key))
        self._count += len(word)
        if self._count >= self._kept + max(PAIRS_AT_ONCE, self._kept):
            self._drop()

    def chosen(self) -> tuple[Int[np.ndarray, " choice"], Int[np.ndarray, " choice"]]:
        self._drop()
        word, row, _ = self._parts[0]
        return word, row

    def _drop(self) -> None:
        word, row, key = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        order = np.lexsort((row, key, word))
        word, row, key = word[order], row[order], key[order]
        rank = np.arange(len(word)) - np.searchsorted(word, word)
        kept = rank < self._per_word
        self._parts = [(word[kept], row[kept], key[kept])]
        self._count = self._kept = int(kept.sum())
