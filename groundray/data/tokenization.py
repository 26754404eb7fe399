"""Texts as word pieces, without torch or transformers: decoding processes need neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer


@dataclass(frozen=True)
class WordPieces:
    """How texts become word pieces.

    Attributes:
        tokenizer: a `tokenizers` tokenizer as JSON text.
        most: word pieces of a text, [CLS] and [SEP] included; longer texts lose words, never [SEP].
    """

    tokenizer: str
    most: int

    def encode(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "text {self.most}"], Int[np.ndarray, " text"]]:
        """The ids (int32) of each text's word pieces, padded with 0, and how many there are of each."""
        encodings = self.loaded.encode_batch(list(texts))
        ids = np.zeros((len(encodings), self.most), dtype=np.int32)
        for place, encoding in enumerate(encodings):
            ids[place, : len(encoding.ids)] = encoding.ids
        return ids, np.array([len(encoding.ids) for encoding in encodings], dtype=np.int32)

    @cached_property
    def loaded(self) -> Tokenizer:
        """The tokenizer, with truncation and without padding."""
        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.enable_truncation(self.most)
        tokenizer.no_padding()
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "most": self.most}
