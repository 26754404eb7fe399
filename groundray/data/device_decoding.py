"""Decoding of JPEGs on the device that trains, and their crops: what `image_inputs` gives, but for the JPEG decoder.

On a GPU, torchvision decodes with nvJPEG. Then each crop is turned upright and resampled as Pillow does it, by the same
integer weights and with the same rounding: of equal decoded pixels, values differ by 1 at most, where Pillow scales
columns before rows. Integers give the same bits on every device, whatever the precision of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, Int32, UInt8
from torch import Tensor
from torch.nn import functional

from groundray.data.batches import ImageBatch, Pixels
from groundray.data.encoded_crops import Header, unpack
from groundray.data.image_decoder import UnusableImage, decode
from groundray.data.stream import Step
from groundray.data.transforms import fitted

GROUP_PIXELS = 2**26  # decoded in one call, which takes 3 bytes of the device's memory for each
WEIGHT_BITS = 22  # of Pillow's weights: 2^22 is 1
# of the stored pixels [channel row column], after rows and columns are swapped for orientations from 5
FLIPS = {1: (), 2: (2,), 3: (1, 2), 4: (1,), 5: (), 6: (2,), 7: (1, 2), 8: (1,)}


@dataclass(frozen=True)
class _Crop:
    """A packed crop.

    Attributes:
        sample: its id, for messages.
        content: the JPEG, or pixels; on the host.
        index: where the pixels go in the result.
    """

    sample: str
    header: Header
    content: UInt8[Tensor, " byte"]
    index: int


def with_pixels(step: Step, device: str) -> Step:
    """Return a step with the pixels of its packed crops, on a device; a step without packed crops as it is.

    Raises:
        UnusableImage: a JPEG is damaged; the message names its sample.
    """
    packed = {
        index: batch
        for index, (_, batch) in enumerate(step.chunks)
        if isinstance(batch, ImageBatch) and batch.images.dim() == 1
    }
    if not packed:
        return step
    chunks = list(step.chunks)
    for (index, batch), images in zip(packed.items(), pixels_of(list(packed.values()), device), strict=True):
        chunks[index] = (chunks[index][0], replace(batch, images=images))
    return replace(step, chunks=tuple(chunks))


def pixels_of(batches: Sequence[ImageBatch], device: str) -> list[Pixels]:
    """Return the pixels of batches of packed crops (at least one crop), on a device.

    A JPEG that the device refuses is decoded on the CPU.

    Raises:
        UnusableImage: the CPU refuses it too; the message names its sample.
    """
    crops = list(_crops(batches))
    side = crops[0].header.side
    pixels = torch.empty((len(crops), 3, side, side), dtype=torch.uint8, device=device)
    for crop in crops:
        if not crop.header.orientation:
            pixels[crop.index].copy_(crop.content.view(3, side, side), non_blocking=True)
    for group in _groups([crop for crop in crops if crop.header.orientation]):
        if torch.device(device).type == "cuda":
            # nvJPEG writes on a stream of its own, into memory that this stream may still read from (torchvision 0.29)
            torch.cuda.current_stream(device).synchronize()
        decoded = _decoded(group, device)
        axes = [_to_device(array, device) for axis in (0, 1) for array in _taps(group, axis)]
        for crop, image, across, across_weights, down, down_weights in zip(group, decoded, *axes, strict=True):
            narrow = _resampled(image, across, across_weights)
            pixels[crop.index] = _resampled(narrow.transpose(1, 2), down, down_weights).transpose(1, 2)
    return list(pixels.split([len(batch) for batch in batches]))


def decode_jpegs(jpegs: list[UInt8[Tensor, " byte"]], device: str) -> list[UInt8[Tensor, "3 height width"]]:
    """Return the pixels of JPEGs as they are stored, in RGB; on a GPU, nvJPEG decodes.

    Raises:
        RuntimeError: one of them cannot be decoded.
    """
    from torchvision.io import ImageReadMode, decode_jpeg  # takes seconds, and only `data.jpeg_decoding` needs it

    images: Any = decode_jpeg(jpegs, ImageReadMode.RGB, device)  # a list, as `jpegs` is
    return images


def _crops(batches: Sequence[ImageBatch]) -> Iterator[_Crop]:
    index = 0
    for batch in batches:
        for sample, (header, where) in zip(batch.ids, unpack(batch.images.numpy()), strict=True):
            yield _Crop(sample, header, batch.images[where], index)
            index += 1


def _groups(crops: Sequence[_Crop]) -> Iterator[list[_Crop]]:
    """Yield the crops in groups of at most GROUP_PIXELS, or one crop."""
    group: list[_Crop] = []
    size = 0
    for crop in crops:
        more = crop.header.width * crop.header.height * crop.header.reduction**2
        if group and size + more > GROUP_PIXELS:
            yield group
            group, size = [], 0
        group.append(crop)
        size += more
    if group:
        yield group


def _decoded(crops: Sequence[_Crop], device: str) -> list[UInt8[Tensor, "3 height width"]]:
    """Return upright, reduced pictures on a device.

    A call of the decoder that fails gives no picture: each is then decoded by itself.
    """
    try:
        images = decode_jpegs([crop.content for crop in crops], device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(crops) > 1:
            return [image for crop in crops for image in _decoded([crop], device)]
        return [_decoded_by_cpu(crops[0]).to(device)]
    pictures = [_upright(_reduced(image, crop.header), crop.header) for image, crop in zip(images, crops, strict=True)]
    return [
        picture if picture.shape == (3, crop.header.height, crop.header.width) else _decoded_by_cpu(crop).to(device)
        for picture, crop in zip(pictures, crops, strict=True)
    ]


def _decoded_by_cpu(crop: _Crop) -> UInt8[Tensor, "3 height width"]:
    try:
        upright = decode(crop.content.numpy().tobytes(), crop.header.min_side)
    except UnusableImage as error:
        raise UnusableImage(
            error.reason,
            f"sample {crop.sample!r} cannot be decoded: {error}; run `python -m groundray.prepare` again with "
            "--overwrite to leave it out",
        ) from None
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def _reduced(image: UInt8[Tensor, "3 height width"], header: Header) -> UInt8[Tensor, "3 lower narrower"]:
    """Return a picture of a half, quarter or eighth of its size: the means of squares. libjpeg's are similar."""
    if header.reduction == 1:
        return image
    means = functional.avg_pool2d(image.float(), header.reduction, ceil_mode=True, count_include_pad=False)
    return (means + 0.5).to(torch.uint8)


def _upright(image: UInt8[Tensor, "3 height width"], header: Header) -> UInt8[Tensor, "3 tall wide"]:
    """Return a picture turned as its EXIF orientation says."""
    return (image.transpose(1, 2) if header.orientation >= 5 else image).flip(FLIPS[header.orientation])


def _taps(
    crops: Sequence[_Crop], axis: int
) -> tuple[Int[np.ndarray, "crop side tap"], Int32[np.ndarray, "crop side tap"]]:
    """Return which pixels along an axis (0: across, 1: down) each pixel of the crops is the weighted sum of, and the
    weights, as Pillow's bilinear filter has them (`precompute_coeffs` of its Resample.c)."""
    headers = [crop.header for crop in crops]
    boxes = [fitted((h.left, h.top, h.right, h.bottom), h.width, h.height) for h in headers]
    low, high = (np.array([box[axis + end] for box in boxes], np.float32)[:, None] for end in (0, 2))
    lengths = np.array([(h.width, h.height)[axis] for h in headers])[:, None]
    return _weights(low, high, lengths, [axis == 0 and bool(h.is_mirrored) for h in headers], headers[0].side)


def _weights(
    low: Float32[np.ndarray, "crop 1"],
    high: Float32[np.ndarray, "crop 1"],
    lengths: Int[np.ndarray, "crop 1"],
    mirrored: Sequence[bool],
    side: int,
) -> tuple[Int[np.ndarray, "crop side tap"], Int32[np.ndarray, "crop side tap"]]:
    scale = (high - low).astype(np.float64) / side
    reach = np.maximum(scale, 1)  # of the filter, a triangle
    centres = low + (np.arange(side) + 0.5) * scale
    first = np.maximum(0, (centres - reach + 0.5).astype(np.int64))
    last = np.minimum(lengths, (centres + reach + 0.5).astype(np.int64))
    taps = first[..., None] + np.arange((last - first).max())
    weights = np.maximum(0, 1 - np.abs((taps - centres[..., None] + 0.5) / reach[..., None]))
    weights[taps >= last[..., None]] = 0
    weights /= weights.sum(-1, keepdims=True)
    whole = (weights * 2**WEIGHT_BITS + 0.5).astype(np.int32)
    taps = np.minimum(taps, lengths[..., None] - 1)
    for array in (taps, whole):
        array[mirrored] = array[mirrored, ::-1]
    return taps, whole


def _to_device(array: np.ndarray[Any, Any], device: str) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor


def _resampled(
    image: UInt8[Tensor, "3 line place"], taps: Int[Tensor, "side tap"], weights: Int32[Tensor, "side tap"]
) -> UInt8[Tensor, "3 line side"]:
    values = image.index_select(2, taps.flatten()).unflatten(2, taps.shape)
    sums = (values * weights).sum(-1, dtype=torch.int32)
    return ((sums + 2 ** (WEIGHT_BITS - 1)) >> WEIGHT_BITS).to(torch.uint8)
