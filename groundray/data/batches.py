"""The batches that a stream yields: named tensors, a chunk of the global batch at a time.

Each may hold no sample at all, at the end of a validation epoch. Images are pixels 0-255, resized and cropped, not yet
normalised, or what a frozen trunk made of those, a feature map in bfloat16; tokens are word piece ids, padded to the
longest text of the chunk, [CLS] and [SEP] included; an attention mask is True on word pieces and False on padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Int, UInt8, UInt16
from torch import Tensor

Some = TypeVar("Some", bound="Batch")
Images = TypeVar("Images", bound="ImageBatch")
Pixels = UInt8[Tensor, "sample 3 height width"]
FeatureMaps = BFloat16[Tensor, "sample channel row column"]
ImageArrays = UInt8[np.ndarray, "sample 3 height width"] | UInt16[np.ndarray, "sample channel row column"]


@dataclass(frozen=True)
class Batch:
    """A chunk of samples: their ids, and tensors."""

    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(getattr(self, field.name).nbytes for field in fields(self) if field.name != "ids")

    def to(self: Some, device: str) -> Some:
        """The batch with its tensors on a device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "ids"}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class ImageBatch(Batch):
    """A batch with images."""

    images: Pixels | FeatureMaps

    def without_images(self: Images, blank: Callable[[Tensor], Tensor]) -> Images:
        """The batch with blank images (`VisualStream.blank`): what a model says of it, it knows without looking."""
        return replace(self, images=blank(self.images))


@dataclass(frozen=True)
class CaptionBatch(ImageBatch):
    """Images and one caption each."""

    tokens: Int[Tensor, "sample token"]
    attention_mask: Bool[Tensor, "sample token"]

    @staticmethod
    def of(
        ids: list[str],
        images: ImageArrays,
        tokens: Int[np.ndarray, "sample slot"],
        lengths: Int[np.ndarray, " sample"],
    ) -> CaptionBatch:
        """The batch of decoded rows; slots beyond the longest caption are cut off."""
        return CaptionBatch(tuple(ids), _images(images), *_texts(tokens, lengths))


@dataclass(frozen=True)
class LabelledBatch(ImageBatch):
    """Images of one thing each, and its class, counted from 0."""

    labels: Int[Tensor, " sample"]

    @staticmethod
    def of(ids: list[str], images: ImageArrays, labels: Int[np.ndarray, " sample"]) -> LabelledBatch:
        """The batch of decoded rows."""
        return LabelledBatch(tuple(ids), _images(images), _tensor(labels))


@dataclass(frozen=True)
class TextBatch(Batch):
    """Texts with some word pieces masked; `targets` holds what stood there, and -100 elsewhere."""

    tokens: Int[Tensor, "sample token"]
    attention_mask: Bool[Tensor, "sample token"]
    targets: Int[Tensor, "sample token"]

    @staticmethod
    def of(
        ids: list[str],
        tokens: Int[np.ndarray, "sample slot"],
        lengths: Int[np.ndarray, " sample"],
        targets: Int[np.ndarray, "sample slot"],
    ) -> TextBatch:
        """The batch of decoded rows; slots beyond the longest text are cut off."""
        cut, mask = _texts(tokens, lengths)
        return TextBatch(tuple(ids), cut, mask, _tensor(targets[:, : cut.shape[1]].astype(np.int64)))


@dataclass(frozen=True)
class SceneGraphBatch(ImageBatch):
    """Images, the phrases of all their objects, and the relations between those.

    Attributes:
        tokens, attention_mask: of each object's phrase.
        image: place in the batch of each object's image; objects of an image stand together.
        classes: of each object, counted from 0.
        pairs: places in the batch of each triplet's subject and object.
        predicate: of each triplet, counted from 0.
    """

    tokens: Int[Tensor, "object token"]
    attention_mask: Bool[Tensor, "object token"]
    image: Int[Tensor, " object"]
    classes: Int[Tensor, " object"]
    pairs: Int[Tensor, "triplet 2"]
    predicate: Int[Tensor, " triplet"]

    @staticmethod
    def of(
        ids: list[str],
        images: ImageArrays,
        tokens: Int[np.ndarray, "object slot"],
        lengths: Int[np.ndarray, " object"],
        image: Int[np.ndarray, " object"],
        classes: Int[np.ndarray, " object"],
        pairs: Int[np.ndarray, "triplet 2"],
        predicate: Int[np.ndarray, " triplet"],
    ) -> SceneGraphBatch:
        """The batch of decoded rows; slots beyond the longest phrase are cut off."""
        return SceneGraphBatch(
            tuple(ids),
            _images(images),
            *_texts(tokens, lengths),
            _tensor(image),
            _tensor(classes),
            _tensor(pairs),
            _tensor(predicate),
        )


def _texts(
    tokens: Int[np.ndarray, "text slot"], lengths: Int[np.ndarray, " text"]
) -> tuple[Int[Tensor, "text token"], Bool[Tensor, "text token"]]:
    """Tokens and attention mask, cut to the longest text."""
    longest = int(lengths.max(initial=0))
    return _tensor(tokens[:, :longest].astype(np.int64)), torch.from_numpy(np.arange(longest) < lengths[:, None])


def _images(array: ImageArrays) -> Tensor:
    """Pixels as they are; the bits of feature maps as bfloat16, a type that numpy has not."""
    images = _tensor(array)
    return images.view(torch.bfloat16) if images.dtype == torch.uint16 else images


def _tensor(array: np.ndarray) -> Tensor:
    # what Ray brings lies in shared, read-only memory
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
