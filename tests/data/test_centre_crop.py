"""The centre crop: torchvision's `Resize` and `CenterCrop`, and the box that it keeps."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from torchvision import transforms

from groundray.data.transforms import centre_box, centre_crop


def noise(width: int, height: int) -> Image.Image:
    draw = np.random.default_rng(width * height)
    return Image.fromarray(draw.integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (224, 224), (64, 48), (57, 56)])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 500), (427, 640), (61, 97), (256, 300), (112, 112)])
def test_equals_torchvisions_transforms(size: tuple[int, int], resize: int, crop: int) -> None:
    """Up to 1 of 255, from PIL's rounding of the box: a pixel beside it would differ by up to 255."""
    image = noise(*size)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    twin = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])(image)
    ours = centre_crop(encoded.getvalue(), resize, crop)
    difference = np.abs(ours.transpose(1, 2, 0).astype(int) - np.asarray(twin))
    assert difference.max() <= 1


def test_box_of_a_square_image_and_of_an_odd_offset() -> None:
    assert centre_box(112, 112, 112, 112) == (0, 0, 112, 112)
    # 333 x 500 becomes 256 x 384: 16 pixels at the left, 80 at the top
    assert centre_box(333, 500, 256, 224) == pytest.approx(
        (16 * 333 / 256, 80 * 500 / 384, 240 * 333 / 256, 304 * 500 / 384)
    )
    # 500 x 375 becomes 341 x 256: (341 - 224) / 2 = 58.5, rounded to the even 58
    assert centre_box(500, 375, 256, 224)[0] == pytest.approx(58 * 500 / 341)
