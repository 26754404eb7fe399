"""Texts as word pieces, without torch or transformers, which decoding processes do not load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer


@dataclass(frozen=True)
class WordPieceTokenizer:
    """Turns texts into word piece ids.

    Attributes:
        json: a `tokenizers` tokenizer as JSON text.
        max_tokens: maximum number of word pieces of a text, [CLS] and [SEP] included. Longer texts lose their last
            words, never [SEP].
    """

    json: str
    max_tokens: int

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

    def __getstate__(self) -> dict[str, Any]:
        return {"json": self.json, "max_tokens": self.max_tokens}
