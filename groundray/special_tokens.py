"""The special tokens that a tokenizer adds at the ends of each text, such as [CLS] and [SEP], or </s> alone."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Tokenizer


class SpecialTokens(NamedTuple):
    """How many special tokens a tokenizer adds.

    Attributes:
        before, after: their numbers at a text's start and at its end.
    """

    before: int
    after: int

    @staticmethod
    def of(tokenizer: Tokenizer) -> SpecialTokens:
        """Return the special tokens of a tokenizer, as it marks them on a text."""
        added = tokenizer.encode("a").special_tokens_mask
        if 0 not in added:  # a tokenizer that drops unknown letters
            return SpecialTokens(len(added) // 2, len(added) - len(added) // 2)
        return SpecialTokens(added.index(0), added[::-1].index(0))


BERT = SpecialTokens(1, 1)  # [CLS] and [SEP]
