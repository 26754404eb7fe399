"""Embedded images and captions of a data set, on disk: the pool in which retrieval is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from groundray.analysis.inputs.dual_encoder import DualEncoder, Texts
from groundray.analysis.inputs.on_disk import on_disk
from groundray.loss.match_map import Kind
from groundray.stage.metrics import MatchedRanks
from groundray.stage.recall import matched_ranks

CAPTIONS = 5  # of an image that count: some of COCO's have six or seven, and published figures take the first five
TEXTS = 256  # encoded at once, besides first captions, which are encoded with their images
CPU = torch.device("cpu")


class CaptionedImages(NamedTuple):
    """A batch of images, as arrays of an encoder's image inputs, and the captions of each."""

    arrays: np.ndarray
    captions: Sequence[Sequence[str]]


class Pool:
    """Images and captions that an encoder has embedded. They are in a scratch file, of which the ranks read a part at a
    time: 5,000 images of 196 positions and width 768 take 3 GB.

    Captions are numbered: the first of all images, then the others, image by image.

    Attributes:
        images: number of images.
        image_of: image of each caption.
        how: what images and captions are compared by.
        left_out: counts of captions beyond the fifth, and of images with fewer than five, which are used.
    """

    def __init__(self, encoder: DualEncoder, batches: Iterable[CaptionedImages], most: int = CAPTIONS) -> None:
        """Embed all batches.

        Args:
            most: number of captions that are used of each image.
        """
        self._kind: Kind = encoder.kind
        self.how = encoder.how
        self._V: list[Tensor] = []
        self._first, self._others = _Captions([], []), _Captions([], [])
        counts: list[int] = []
        others: list[str] = []
        for arrays, captions in batches:
            if not captions:
                continue
            self._V.append(on_disk(encoder.images(arrays)))
            self._first.add(encoder.texts([own[0] for own in captions]))
            counts += [len(own) for own in captions]
            others += [caption for own in captions for caption in own[1:most]]
            while len(others) >= TEXTS:
                self._others.add(encoder.texts(others[:TEXTS]))
                del others[:TEXTS]
        if others:
            self._others.add(encoder.texts(others))
        used = np.minimum(np.array(counts, dtype=np.int64), most)
        self.images = len(counts)
        self.image_of = np.concatenate([np.arange(self.images), np.repeat(np.arange(self.images), used - 1)])
        beyond = sum(counts) - int(used.sum()) if most > 1 else 0
        fewer = int((used < most).sum()) if most > 1 and max(counts, default=0) > 1 else 0
        self.left_out = {
            name: count
            for name, count in (
                (f"captions beyond an image's {most}", beyond),
                (f"images have fewer than {most} captions", fewer),
            )
            if count
        }

    def ranks(self, images: slice | None = None, first: bool = False) -> MatchedRanks:
        """Return the ranks among some images, by default all, and their captions.

        Args:
            first: use the first captions alone.
        """
        start, stop, _ = (images or slice(None)).indices(self.images)
        captions, image_of = self._first.of(start, stop), np.arange(stop - start)
        if not first:
            of_others = self.image_of[self.images :]
            begin, end = np.searchsorted(of_others, (start, stop)).tolist()
            captions = captions.followed_by(self._others.of(begin, end))
            image_of = np.concatenate([image_of, of_others[begin:end] - start])
        V = _rows(self._V, start, stop)
        return matched_ranks(V, captions.W, captions.valid, self._kind, CPU, torch.from_numpy(image_of))


class _Captions(NamedTuple):
    """Embedded captions, in parts: their tokens on disk, and which of them count."""

    W: list[Tensor]
    valid: list[Bool[Tensor, "caption token"]]

    def add(self, texts: Texts) -> None:
        self.W.append(on_disk(texts[0]))
        self.valid.append(texts[1])

    def of(self, first: int, end: int) -> _Captions:
        return _Captions(_rows(self.W, first, end), _rows(self.valid, first, end))

    def followed_by(self, other: _Captions) -> _Captions:
        return _Captions(self.W + other.W, self.valid + other.valid)


def _rows(parts: Sequence[Tensor], first: int, end: int) -> list[Tensor]:
    """Return the rows of a range, part by part."""
    found, start = [], 0
    for part in parts:
        inner = part[max(first - start, 0) : max(end - start, 0)]
        found += [inner] if len(inner) else []
        start += len(part)
    return found
