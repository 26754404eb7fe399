"""Batches of texts for masked language modelling: each sample is a line of text, or one of an image's captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from groundray.data.captions import drawn_captions
from groundray.data.tokenization import WordPieceTokenizer
from groundray.rng import hash64, hash_name, pick

if TYPE_CHECKING:
    from groundray.data.batches import TextBatch

_MASK, _ACTION, _REPLACEMENT = 5, 6, 7  # keep these draws independent of each other and of others
IGNORE_INDEX = -100  # the target of word pieces that are not predicted (torch's `ignore_index`)


@dataclass(frozen=True)
class TextSamples:
    """Samples of kind `text` or `captions`, with some of their word pieces masked (Devlin et al. 2019).

    Of the selected word pieces 80% become the mask token, 10% a random word piece, and 10% are unchanged; the model
    predicts the original. Special tokens, as [CLS] and [SEP], are never selected.

    Attributes:
        kind: `text`, or `captions` (their images are not read).
        tokenizer: turns texts into word piece ids.
        mask_fraction: fraction of the word pieces that are selected.
        seed: seed of the masks and of the draw of captions; None takes each image's first caption and masks the same
            word pieces at every visit, as validation does.
    """

    kind: str
    tokenizer: WordPieceTokenizer
    mask_fraction: float
    seed: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", "text" if self.kind == "text" else "captions")

    def draw(self, table: pa.Table, epoch: int) -> pa.Table:
        """Return `id`, `text` and the epoch's `mask`, a key fixed by (seed, epoch, id)."""
        texts = table["text"] if self.kind == "text" else drawn_captions(table, self.seed, epoch)
        seed = (0, 0) if self.seed is None else (1 + self.seed, epoch)
        keys = [int(hash64(*seed, _MASK, hash_name(sample))) for sample in table["id"].to_pylist()]
        return pa.table({"id": table["id"], "text": texts, "mask": pa.array(keys, pa.uint64())})

    def decode(self, table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Return `id`, `tokens` (int32 [sample max_tokens], masked), `length` and `target` (int32 [sample max_tokens],
        IGNORE_INDEX where nothing is predicted) of each row."""
        tokens, lengths = self.tokenizer.encode(table["text"].to_pylist())
        positions = np.arange(tokens.shape[1], dtype=np.uint64)
        keys = table["mask"].to_numpy()[:, None]
        before, after = map(np.uint64, self.tokenizer.special_tokens)
        inner = (positions >= before) & (positions + after < lengths[:, None].astype(np.uint64))
        selected = inner & (_uniform(hash64(keys, positions)) < self.mask_fraction)
        action = _uniform(hash64(keys, _ACTION, positions))
        other = self._words[pick(len(self._words), keys, _REPLACEMENT, positions)]
        masked = np.where(action < 0.8, self._mask, np.where(action < 0.9, other, tokens))
        return {
            "id": np.array(table["id"].to_pylist(), dtype=np.str_),
            "tokens": np.where(selected, masked, tokens).astype(np.int32),
            "length": lengths,
            "target": np.where(selected, tokens, IGNORE_INDEX).astype(np.int32),
        }

    def collate(self, arrays: Mapping[str, npt.NDArray[Any]]) -> TextBatch:
        """Return the batch of decoded rows, padded to the longest text."""
        from groundray.data.batches import TextBatch  # imports torch, which decoding processes do not load

        return TextBatch.of(arrays["id"].tolist(), arrays["tokens"], arrays["length"], arrays["target"])

    @cached_property
    def _mask(self) -> int:
        id = self.tokenizer.mask_id
        if id is None:
            raise ValueError("masked language modelling: expected a tokenizer with a mask token, got one without")
        return id

    @cached_property
    def _words(self) -> npt.NDArray[np.int32]:
        """The ids of all word pieces that are not special tokens."""
        tokenizer = self.tokenizer.backend
        special = [id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        return np.setdiff1d(np.arange(tokenizer.get_vocab_size(), dtype=np.int32), special).astype(np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def _uniform(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return numbers from 0 to 1."""
    return hashes / 2.0**64
