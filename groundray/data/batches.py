"""Batches: the named tensors of one chunk of a global batch.

A batch may be empty at the end of a validation epoch. Images are pixels 0-255, resized and cropped but not normalised,
or a frozen trunk's feature maps of them in bfloat16, or keys of them in float32 (`training/keys.py`), or packed crops
that a device is about to decode. Tokens are word piece ids, padded to the longest text of the chunk, special tokens
included. An attention mask is True on word pieces and False on padding.

What decides the shapes of a model's tensors stays on the host (`Batch.on_host`), where reading it waits for no device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import BFloat16, Bool, Float, Int, Shaped, UInt8, UInt16
from torch import Tensor

Some = TypeVar("Some", bound="Batch")
Images = TypeVar("Images", bound="ImageBatch")
Pixels = UInt8[Tensor, "sample 3 height width"]
FeatureMaps = BFloat16[Tensor, "sample channel row column"]
Keys = Float[Tensor, "sample position dim"]
PackedCrops = UInt8[Tensor, " byte"]  # see `encoded_crops`
ImageArrays = (
    UInt8[np.ndarray, "sample 3 height width"]
    | UInt16[np.ndarray, "sample channel row column"]
    | Float[np.ndarray, "sample position dim"]
    | Shaped[np.ndarray, " sample"]
)


@dataclass(frozen=True)
class Batch:
    """The ids and tensors of a chunk's samples.

    Attributes:
        on_host: names of the tensors that are not copied to a device.
    """

    ids: tuple[str, ...]
    on_host: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self: Some, device: str) -> Some:
        """Return the batch with its tensors on a device, but those that stay on the host (`on_host`).

        The host does not wait for copies of pinned memory.
        """
        moved = {name: tensor for name, tensor in self.tensors.items() if name not in self.on_host}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in moved.items()})

    def map(self: Some, change: Callable[[Tensor], Tensor]) -> Some:
        """Return the batch with each of its tensors changed."""
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors.items()})


@dataclass(frozen=True)
class ImageBatch(Batch):
    """A batch with images."""

    images: Pixels | FeatureMaps | Keys | PackedCrops

    @staticmethod
    def of_images(ids: list[str], images: ImageArrays) -> ImageBatch:
        """Return the batch of rows that have images alone."""
        return ImageBatch(tuple(ids), _images(images))

    def without_images(self: Images, blank: Callable[[Tensor], Tensor]) -> Images:
        """Return the batch with blank images (`VisualStream.blank`), to see what a model predicts without vision."""
        return replace(self, images=blank(self.images))


@dataclass(frozen=True)
class CaptionBatch(ImageBatch):
    """Images with one caption each.

    Attributes:
        queries: what frozen streams make of the captions, 0 at padding; None where the model computes it.
    """

    on_host: ClassVar[tuple[str, ...]] = ("attention_mask",)
    tokens: Int[Tensor, "sample token"]
    attention_mask: Bool[Tensor, "sample token"]
    queries: Float[Tensor, "sample token dim"] | None = None

    @staticmethod
    def of(
        ids: list[str],
        images: ImageArrays,
        tokens: Int[np.ndarray, "sample slot"],
        lengths: Int[np.ndarray, " sample"],
        queries: Float[np.ndarray, "sample caption_token dim"] | None = None,
    ) -> CaptionBatch:
        """Return the batch of decoded rows, truncated to the longest caption."""
        tokens_and_mask = _texts(tokens, lengths)
        cut = None if queries is None else _tensor(queries[:, : tokens_and_mask[0].shape[1]])
        return CaptionBatch(tuple(ids), _images(images), *tokens_and_mask, cut)


@dataclass(frozen=True)
class LabelledBatch(ImageBatch):
    """Images with one class each, counted from 0."""

    labels: Int[Tensor, " sample"]

    @staticmethod
    def of(ids: list[str], images: ImageArrays, labels: Int[np.ndarray, " sample"]) -> LabelledBatch:
        """Return the batch of decoded rows."""
        return LabelledBatch(tuple(ids), _images(images), _tensor(labels))


@dataclass(frozen=True)
class MultiLabelledBatch(ImageBatch):
    """Images with any number of classes each: True for those that an image shows."""

    labels: Bool[Tensor, "sample class"]

    @staticmethod
    def of(ids: list[str], images: ImageArrays, labels: Bool[np.ndarray, "sample class"]) -> MultiLabelledBatch:
        """Return the batch of decoded rows."""
        return MultiLabelledBatch(tuple(ids), _images(images), _tensor(labels))


@dataclass(frozen=True)
class TextBatch(Batch):
    """Texts with some word pieces masked; `targets` holds the masked ids, and -100 elsewhere."""

    on_host: ClassVar[tuple[str, ...]] = ("attention_mask", "targets")
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
        """Return the batch of decoded rows, truncated to the longest text."""
        truncated, mask = _texts(tokens, lengths)
        return TextBatch(tuple(ids), truncated, mask, _tensor(targets[:, : truncated.shape[1]].astype(np.int64)))


@dataclass(frozen=True)
class SceneGraphBatch(ImageBatch):
    """Images, the phrases of their objects, and the relations between the objects.

    Attributes:
        tokens, attention_mask: each object's phrase.
        image: index of each object's image in the batch; the objects of an image are adjacent.
        classes: class of each object, counted from 0.
        pairs: indices of each triplet's subject and object in the batch.
        predicate: predicate of each triplet, counted from 0.
    """

    on_host: ClassVar[tuple[str, ...]] = ("attention_mask", "image")
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
        """Return the batch of decoded rows, truncated to the longest phrase."""
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
    """Return tokens and attention mask, truncated to the longest text."""
    longest = int(lengths.max(initial=0))
    return _tensor(tokens[:, :longest].astype(np.int64)), _tensor(np.arange(longest) < lengths[:, None])


def _images(array: ImageArrays) -> Tensor:
    """Return pixels, the bits of feature maps as bfloat16, a type that numpy lacks, and packed crops joined."""
    if array.dtype == object:
        return _tensor(np.frombuffer(bytearray().join(array), np.uint8))
    images = _tensor(array)
    return images.view(torch.bfloat16) if images.dtype == torch.uint16 else images


def _tensor(array: np.ndarray) -> Tensor:
    """Return a tensor of the array's own memory. Arrays from Ray lie in shared, read-only memory (`Step.cloned`)."""
    return torch.from_dlpack(np.ascontiguousarray(array))
