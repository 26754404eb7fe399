"""Texts as tokens (word pieces), without torch or transformers, which decoding processes do not load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Encoding, Tokenizer

from groundray.special_tokens import SpecialTokens


@dataclass(frozen=True)
class WordPieceTokenizer:
    """Turns texts into ids of word pieces: those of WordPiece, BPE or a unigram model, as the tokenizer has them.

    Attributes:
        json: a `tokenizers` tokenizer as JSON text.
        max_tokens: maximum number of word pieces of a text, special tokens included. Longer texts lose their last
            words, never special tokens.
        mask: the token that stands for a masked one; None if the tokenizer has none.
    """

    json: str
    max_tokens: int
    mask: str | None = "[MASK]"

    @staticmethod
    def of(tokenizer: Any, max_tokens: int) -> WordPieceTokenizer:
        """Return the word pieces of a fast tokenizer of transformers."""
        return WordPieceTokenizer(tokenizer.backend_tokenizer.to_str(), max_tokens, tokenizer.mask_token)

    def encode(
        self, texts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "text {self.max_tokens}"], Int[np.ndarray, " text"]]:
        """Return the word piece ids (int32) of each text, padded with 0, and the number of word pieces of each."""
        encodings = self.backend.encode_batch_fast(list(texts))  # without places in the text, which take a quarter
        ids = np.zeros((len(encodings), self.max_tokens), dtype=np.int32)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
        return ids, np.array([len(encoding.ids) for encoding in encodings], dtype=np.int32)

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer, with truncation and without padding."""
        tokenizer = Tokenizer.from_str(self.json)
        tokenizer.enable_truncation(self.max_tokens)
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """The special tokens that it adds to a text."""
        return SpecialTokens.of(self.backend)

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token; None if there is none."""
        return None if self.mask is None else self.backend.token_to_id(self.mask)

    def is_empty(self, text: str) -> bool:
        """Return whether a text has no words (`words_of`): no word pieces besides special tokens, or spaces alone."""
        return not words_of(text, self.backend.encode(text))

    def __getstate__(self) -> dict[str, Any]:
        return {"json": self.json, "max_tokens": self.max_tokens, "mask": self.mask}


def words_of(text: str, encoding: Encoding) -> list[tuple[int, int, list[int]]]:
    """Return (start, end, tokens) of each word of a text: its range in the text, and its pieces.

    A word ends where the tokenizer begins another, or where there is a space. Special tokens are no words.
    """
    words: list[tuple[int, int, list[int]]] = []
    previous = None
    for token, (word, (start, end)) in enumerate(zip(encoding.word_ids, encoding.offsets, strict=True)):
        piece = text[start:end]
        if word is None or not piece.strip():  # a piece may be a space alone (unigram models)
            continue
        start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        if words and word == previous and not any(map(str.isspace, text[words[-1][1] : start])):
            first, last, tokens = words[-1]
            words[-1] = first, max(last, end), [*tokens, token]
        else:
            words.append((start, end, [token]))
        previous = word
    return words


def whole_words(tokenizer: Tokenizer) -> list[str]:
    """Return the words of letters that are a single piece of a tokenizer, ordered by id: the most frequent first.

    Byte-level pieces hold the space before a word, so a word counts if it is one piece at a text's start or within.
    """
    decoded = tokenizer.decode_batch([[id] for id in sorted(tokenizer.get_vocab().values())])
    ending = getattr(tokenizer.model, "end_of_word_suffix", None) or ""  # CLIP's, which its decoder leaves
    words = dict.fromkeys(text.strip().removesuffix(ending) for text in decoded)
    texts = [text for text in words if len(text) > 1 and text.isalpha()]
    at_start, within = (
        tokenizer.encode_batch_fast([space + text for text in texts], add_special_tokens=False) for space in ("", " ")
    )
    return [text for text, *both in zip(texts, at_start, within, strict=True) if any(len(one.ids) == 1 for one in both)]
