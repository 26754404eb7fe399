"""Similarity of texts through images: the meaning of a word in the space that both streams share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from groundray.data.batches import CaptionBatch
from groundray.data.tokenization import WordPieceTokenizer
from groundray.loss.match_map import Kind, normalised, similarity_to_words
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.model.pooling import counted_tokens, pooled_images, pooled_texts
from groundray.stage.contrastive import Alignment

TEXTS = 512  # encoded at once
NUMBERS = 2**25  # of the tokens and of the similarities that are held: 128 MB each in float32
TOKENS_A_TEXT = 4  # about

Similarities = Callable[[Sequence[str]], Float[np.ndarray, "text image"]]


class WordsThroughImages:
    """Similarities of phrases and words to the images of a pool, a part of the texts at a time.

    All are computed together, in one pass over the images, if they take at most NUMBERS numbers. Of more, words are
    computed in parts when they are taken, with a pass for each part: a table of 100,000 words and 5,000 images would
    take 2 GB, and the words' tokens .8 GB.
    """

    def __init__(self, similarities_of: Similarities, phrases: Sequence[str], words: Sequence[str], at_once: int):
        """Take the texts.

        Args:
            similarities_of: returns the similarity of some texts to each image.
            at_once: number of texts that are computed together.
        """
        self._similarities_of, self._words, self._at_once = similarities_of, words, max(1, at_once)
        self._held = range(0)  # words
        if len(phrases) + len(words) <= at_once:
            self._held = range(len(words))
            rows = similarities_of([*phrases, *words])
            self.of_phrases, self._rows = rows[: len(phrases)], rows[len(phrases) :]
        else:
            self.of_phrases = self._rows = self._in_parts(phrases)

    def __getitem__(self, words: Int[np.ndarray, " some"]) -> Float[np.ndarray, "some image"]:
        """Return the similarities of some words, given their indices. Words that are taken in order are
        computed once, and a few of them twice."""
        first, last = int(words.min()), int(words.max())
        if last - first >= self._at_once:
            return self._in_parts([self._words[int(word)] for word in words])
        if first not in self._held or last not in self._held:
            self._held = range(first, min(first + self._at_once, len(self._words)))
            self._rows = self._similarities_of(self._words[first : self._held.stop])
        return self._rows[words - self._held.start]

    def _in_parts(self, texts: Sequence[str]) -> Float[np.ndarray, "text image"]:
        starts = range(0, len(texts), self._at_once)
        return np.concatenate([self._similarities_of(texts[start : start + self._at_once]) for start in starts])


def texts_at_once(images: int, width: int) -> int:
    """Return how many texts may be compared with so many images in a space of so many dimensions."""
    return max(1, NUMBERS // max(images, TOKENS_A_TEXT * width))


@torch.no_grad()
def similarities(
    model: GroundedModel,
    tokenizer: WordPieceTokenizer,
    texts: Sequence[str],
    batches: Iterable[CaptionBatch],
    kind: Kind,
    special_tokens: bool,
    alignment: Alignment = "match_map",
) -> Float[np.ndarray, "text image"]:
    """Return the similarity of each text to each image as the grounding stage compares them.

    Phrases of the same meaning are similar to the same images, whatever their words.

    Raises:
        ValueError: there are fewer than two images.
    """
    heads = model.head(GroundingHeads)
    kept, counted = [], []  # only tokens that count: most of a word's row is padding
    for start in range(0, len(texts), TEXTS):
        ids, lengths = tokenizer.encode(texts[start : start + TEXTS])
        tokens = torch.from_numpy(ids.astype(np.int64))
        mask = torch.arange(tokens.shape[1]) < torch.from_numpy(lengths)[:, None]
        counts = counted_tokens(mask, special_tokens, model.language.special_tokens)
        longest = int(lengths.max())
        hidden = heads.language(model.language(tokens[:, :longest], mask[:, :longest]))
        if alignment == "pooled":
            (hidden, counts), longest = pooled_texts(hidden, counts[:, :longest]), 1
        kept.append(hidden[counts[:, :longest]])
        counted.append(counts)
    words, valid = normalised(torch.cat(kept), kind), torch.cat(counted)
    found = []
    for batch in batches:
        if len(batch):
            V = heads.visual(model.visual(batch.images))
            V = pooled_images(V) if alignment == "pooled" else V
            found.append(similarity_to_words(normalised(V, kind), words, valid))
    images = sum(map(len, found))
    if images < 2:
        raise ValueError(f"expected at least 2 images, got {images}")
    return torch.cat(found).T.numpy()
