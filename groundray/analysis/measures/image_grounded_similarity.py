"""Similarity of texts through images: the meaning of a word in the space that both streams share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float

from groundray.data.batches import CaptionBatch
from groundray.data.tokenization import WordPieceTokenizer
from groundray.loss.match_map import Kind, normalised, similarity_to_words
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.stage.contrastive import counted_tokens

TEXTS = 512  # encoded at once


@torch.no_grad()
def similarities(
    model: GroundedModel,
    tokenizer: WordPieceTokenizer,
    texts: Sequence[str],
    batches: Iterable[CaptionBatch],
    kind: Kind,
    special_tokens: bool,
) -> Float[np.ndarray, "text image"]:
    """Return the similarity of each text to each image by the grounding stage's match map.

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
        counts, longest = counted_tokens(mask, special_tokens), int(lengths.max())
        hidden = heads.language(model.language(tokens[:, :longest], mask[:, :longest]))
        kept.append(hidden[counts[:, :longest]])
        counted.append(counts)
    words, valid = normalised(torch.cat(kept), kind), torch.cat(counted)
    found = []
    for batch in batches:
        if len(batch):
            V = normalised(heads.visual(model.visual(batch.images)), kind)
            found.append(similarity_to_words(V, words, valid))
    images = sum(map(len, found))
    if images < 2:
        raise ValueError(f"expected at least 2 images, got {images}")
    return torch.cat(found).T.numpy()
