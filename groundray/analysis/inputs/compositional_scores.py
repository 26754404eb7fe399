"""Scores that a dual encoder gives the captions of compositional sets: with their image, a blank one, and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from groundray.analysis.inputs.compositional_sets import CompositionalSet, Item, Picture
from groundray.analysis.inputs.dual_encoder import DualEncoder, scores
from groundray.data.image_decoder import UnusableImage, decode

OTHERS = 64  # pictures of the set that a caption is also compared with


@dataclass(frozen=True)
class SetScores:
    """Scores of a set's items; rows of items whose picture cannot be used are NaN, as are captions that others have.

    Attributes:
        own: similarity of each image and each caption of an item.
        blank: similarity of each caption and a blank image: what the captions alone decide with such an image.
        others: mean similarity of each caption and other pictures of the set: how much the model likes a caption
            whatever the picture, which needs no likelihood.
        unusable: why an item's picture cannot be used, by the item's number.
        unknown: number of captions with an unknown word piece, or none.
    """

    own: Float[np.ndarray, "item image caption"]
    blank: Float[np.ndarray, "item caption"]
    others: Float[np.ndarray, "item caption"]
    unusable: dict[int, UnusableImage] = field(default_factory=dict)
    unknown: int = 0


def score_set(encoder: DualEncoder, some: CompositionalSet, batch_size: int) -> SetScores:
    """Return the scores of a set's items. Memory: a batch, and OTHERS pictures.

    Raises:
        ValueError: the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"--batch-size: expected at least 1, got {batch_size}")
    captions = max(len(item.captions) for item in some.items)
    shape = len(some.items), max(len(item.images) for item in some.items), captions
    own, blank, others = np.full(shape, np.nan), np.full(shape[::2], np.nan), np.full(shape[::2], np.nan)
    unusable: dict[int, UnusableImage] = {}
    unknown = 0
    keys, sample = _sample(encoder, some.items)
    for start in range(0, len(some.items), batch_size):
        items = some.items[start : start + batch_size]
        read: dict[str, bytes] = {}
        for number, item in enumerate(items, start):
            try:
                read |= {picture.key: _read(picture) for picture in item.images if picture.key not in read}
            except UnusableImage as problem:
                unusable[number] = problem
        usable = [(number, item) for number, item in enumerate(items, start) if number not in unusable]
        if not usable:
            continue
        texts = list(dict.fromkeys(caption for _, item in usable for caption in item.captions))
        knows = dict(zip(texts, encoder.known(texts), strict=True))
        unknown += sum(not knows[caption] for _, item in usable for caption in item.captions)
        embedded = encoder.texts(texts)
        place = {text: column for column, text in enumerate(texts)}
        wanted = list(dict.fromkeys(picture.key for _, item in usable for picture in item.images))
        arrays = _arrays(encoder, [read[key] for key in wanted])
        S = scores(encoder, encoder.images(arrays), embedded)
        empty = scores(encoder, encoder.images(encoder.blank(arrays[:1])), embedded)[0]
        elsewhere = scores(encoder, sample, embedded) if sample is not None else np.empty((0, len(texts)))
        for number, item in usable:
            columns = [place[caption] for caption in item.captions]
            rows = [wanted.index(picture.key) for picture in item.images]
            own[number, : len(rows), : len(columns)] = S[np.ix_(rows, columns)]
            blank[number, : len(columns)] = empty[columns]
            mine = {picture.key for picture in item.images}
            rest = [row for row, key in enumerate(keys) if key not in mine]
            if rest:
                others[number, : len(columns)] = elsewhere[np.ix_(rest, columns)].mean(axis=0)
    return SetScores(own, blank, others, unusable, unknown)


def _sample(
    encoder: DualEncoder, items: Sequence[Item]
) -> tuple[list[str], Float[Tensor, "image position dim"] | None]:
    """Return the keys and the embeddings of pictures from all over the set; None if none of them can be used."""
    pictures = list({picture.key: picture for item in items for picture in item.images}.values())
    chosen = [pictures[int(place)] for place in np.linspace(0, len(pictures) - 1, min(OTHERS, len(pictures)))]
    keys, parts = [], []
    for picture in chosen:
        try:
            encoded = _read(picture)
        except UnusableImage:
            continue
        keys.append(picture.key)
        parts.append(encoder.images(_arrays(encoder, [encoded])))
    return keys, torch.cat(parts) if parts else None


def _read(picture: Picture) -> bytes:
    """Return the bytes of a picture that can be decoded."""
    encoded = picture.read()
    try:
        decode(encoded)
    except UnusableImage as problem:
        raise problem.of(picture.key.strip()) from None
    return encoded


def _arrays(encoder: DualEncoder, encoded: Sequence[bytes]) -> np.ndarray:
    return encoder.image_inputs.arrays(pa.table({"image": pa.array(encoded, pa.binary())}))
