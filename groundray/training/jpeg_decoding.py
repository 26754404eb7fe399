"""JPEGs that the GPUs decode (`data.jpeg_decoding`): the check for a decoder, and stages that leave it their JPEGs."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from groundray.config import Settings, SettingsError
from groundray.data import device_decoding
from groundray.data.image_inputs import CentreCrop, EncodedCrops, RandomCrop
from groundray.data.stream import Source
from groundray.stage.protocol import Stage

TOLERANCE = 3  # of 255, of an even colour


def check_decoder(settings: Settings) -> None:
    """Check that torchvision has nvJPEG where GPUs decode JPEGs. It needs no GPU.

    Raises:
        SettingsError: it has not.
    """
    if settings.data.jpeg_decoding == "cpu":
        return
    from torchvision.io import ImageReadMode  # takes seconds, and only this setting needs it

    try:
        # with nvJPEG, it refuses the device
        torch.ops.image.decode_jpegs_cuda([], ImageReadMode.RGB.value, torch.device("cpu"))
    except AttributeError:  # no such operator
        got = "none"
    except RuntimeError as error:
        if "nvjpeg support" not in str(error).lower():
            return
        got = "a build without it"
    else:
        return
    raise _unusable(f"expected a torchvision with nvJPEG, got {got}: install a build for CUDA on every node")


def with_encoded_crops(stage: Stage, settings: Settings, device: str) -> Stage:
    """Return the stage with its JPEGs left to a worker's GPU, if the settings say so and it reads pixels.

    Raises:
        SettingsError: the GPU does not decode a JPEG rightly.
    """
    inputs: dict[str, Any] = {
        split: getattr(getattr(stage, split).samples, "image_inputs", None) for split in ("train", "val")
    }
    left = {split: crops for split, crops in inputs.items() if isinstance(crops, CentreCrop | RandomCrop)}
    if settings.data.jpeg_decoding == "cpu" or not left:
        return stage
    _try_decoder(device)
    sources: dict[str, Source] = {split: getattr(stage, split) for split in left}
    encoded: dict[str, Any] = {
        split: source.with_image_inputs(EncodedCrops(left[split])) for split, source in sources.items()
    }
    return replace(stage, **encoded)  # type: ignore[type-var]


def _try_decoder(device: str) -> None:
    """Decode a picture of one colour on a device, and compare it."""
    colour = (200, 90, 40)
    encoded = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(encoded, "JPEG", quality=95)
    jpeg = torch.frombuffer(bytearray(encoded.getvalue()), dtype=torch.uint8)
    try:
        pixels = device_decoding.decode_jpegs([jpeg], device)[0].cpu()
    except RuntimeError as error:
        raise _unusable(f"nvJPEG does not decode on {device}: {str(error).splitlines()[0]}") from error
    got = [(int(channel.min()), int(channel.max())) for channel in pixels]
    if pixels.shape != (3, 48, 64) or any(
        abs(level - wanted) > TOLERANCE for pair, wanted in zip(got, colour, strict=True) for level in pair
    ):
        raise _unusable(f"nvJPEG on {device}: expected a picture of colour {colour}, got levels {got}")


def _unusable(problem: str) -> SettingsError:
    return SettingsError(f"data.jpeg_decoding: {problem}, or set data.jpeg_decoding cpu")
