"""How much of a data set's texts `max_tokens` cuts off, so that nobody trains on a tenth of a corpus unawares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from groundray.data.row_groups import read_group
from groundray.data.stream import Source
from groundray.data.tokenization import WordPieceTokenizer

# column of the texts of each kind of data set that has texts, and their name
TEXTS = {"captions": ("captions", "captions"), "text": ("text", "lines"), "scene_graphs": ("objects", "phrases")}
MAX_GROUPS, MAX_ROWS, MAX_CHARACTERS = 16, 10_000, 4_000_000  # takes about a second
LOUD = 0.05  # fraction of the word pieces lost from which a warning is due


@dataclass(frozen=True)
class Truncation:
    """Counts over the texts of a data set, or of a sample of its rows.

    Attributes:
        what: `captions`, `lines` or `phrases`.
        texts: number of texts counted.
        cut: number of them with more than `max_tokens` word pieces.
        pieces: number of word pieces, without special tokens.
        lost: number of word pieces beyond `max_tokens`.
        longest: word pieces of the longest text, special tokens included.
        max_tokens: as the stage sets it.
        rows, of_rows: number of rows counted, and of the data set.
    """

    what: str
    texts: int
    cut: int
    pieces: int
    lost: int
    longest: int
    max_tokens: int
    rows: int
    of_rows: int

    @property
    def fraction(self) -> float:
        """Fraction of the word pieces that is lost."""
        return self.lost / self.pieces if self.pieces else 0.0

    @property
    def is_loud(self) -> bool:
        return self.fraction >= LOUD

    def __str__(self) -> str:
        sample = f" (in a sample of {self.rows:,} of {self.of_rows:,} rows)" if self.rows < self.of_rows else ""
        if not self.cut:
            return f"none of {self.texts:,} {self.what} is cut, the longest has {self.longest} word pieces{sample}"
        share = 100 * self.fraction
        return (
            f"{self.cut:,} of {self.texts:,} {self.what} are cut at {self.max_tokens} word pieces (max_tokens): "
            f"{share:.{1 if share >= 0.1 else 2}f}% of the text is never read{sample}"
        )


def count_truncation(source: Source) -> Truncation | None:
    """Count what a stage's `max_tokens` cuts off the texts of a data set; None for a kind without texts.

    Training draws among all captions of an image, validation reads the first. At most MAX_GROUPS row groups, MAX_ROWS
    rows and about MAX_CHARACTERS characters are read, evenly spaced: the same ones every time.
    """
    tokenizer: WordPieceTokenizer | None = getattr(source.samples, "tokenizer", None)
    if tokenizer is None or source.dataset.kind not in TEXTS:
        return None
    what = TEXTS[source.dataset.kind][1]
    rows = _sample(source)
    texts = [text for row in rows for text in row]
    whole = Tokenizer.from_str(tokenizer.json)
    whole.no_truncation()
    whole.no_padding()
    special = whole.num_special_tokens_to_add(is_pair=False)
    # one at a time: a batch starts threads, of which the tokenizers library warns when a process forks later
    lengths = np.array([len(whole.encode(text).ids) for text in texts], dtype=np.int64)
    return Truncation(
        what,
        len(texts),
        int((lengths > tokenizer.max_tokens).sum()),
        int((lengths - special).sum()),
        int((lengths - tokenizer.max_tokens).clip(min=0).sum()),
        int(lengths.max(initial=0)),
        tokenizer.max_tokens,
        len(rows),
        source.dataset.rows,
    )


def _sample(source: Source) -> list[tuple[str, ...]]:
    """Return the texts of evenly spaced rows."""
    dataset, (column, _) = source.dataset, TEXTS[source.dataset.kind]
    rows: list[tuple[str, ...]] = []
    chosen = _spaced(len(dataset.groups), MAX_GROUPS)
    for group in chosen:
        read = read_group(dataset, group, [column])
        table = read.take(_spaced(len(read), MAX_ROWS // len(chosen)))
        rows += [_texts(value, source.plan.shuffle) for value in table[column].to_pylist()]
    characters = sum(len(text) for row in rows for text in row)
    return rows[:: -(-characters // MAX_CHARACTERS) or 1]


def _texts(value: str | list[str] | list[dict[str, str]], training: bool) -> tuple[str, ...]:
    """Return the texts of a row that a stage may read."""
    if isinstance(value, str):
        return (value,)
    texts = tuple(item["phrase"] if isinstance(item, dict) else item for item in value)
    phrases = any(isinstance(item, dict) for item in value)
    return texts if training or phrases else texts[:1]


def _spaced(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced numbers below `count`."""
    spread: Iterable[int] = (
        range(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()
    )
    return list(spread)
