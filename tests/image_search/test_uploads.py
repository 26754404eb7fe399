"""Uploads: whatever the bytes, a picture is decoded or refused; nothing else is raised, and nothing takes long."""

from __future__ import annotations

import io
import struct
import time
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image

from groundray.data.image_decoder import UnusableImage
from groundray.data.transforms import centre_crop
from groundray.image_search import upload_limits
from groundray.image_search.http.request_body import BodyLimits
from groundray.image_search.uploads import LIMITS, checked, model_input

PREPROCESS = partial(centre_crop, resize=72, crop=64)
CASES = 1500  # of each kind of file


def encoded(kind: str, size: tuple[int, int] = (24, 18)) -> bytes:
    """A small picture with EXIF of many types, in some format."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A], exif[0x0132] = 6, "a maker", 72.0, "2026:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9000] = b"0230"
    exif.get_ifd(0x8825)[1] = "N"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=exif)
    return file.getvalue()


def accepted(content: bytes) -> bool:
    """Whether an upload is decoded; False if it is refused as unusable. Anything else that is raised is a defect."""
    try:
        pixels = model_input(checked(content), PREPROCESS)
    except UnusableImage:
        return False
    assert (pixels.shape, pixels.dtype) == ((3, 64, 64), np.uint8)
    return True


def mutated(content: bytes, generator: np.random.Generator) -> bytes:
    """A file with some bytes changed, cut out, doubled, or cut off; mostly in its first part, which holds the EXIF."""
    changed = bytearray(content)
    for _ in range(generator.integers(1, 5)):
        at = int(generator.integers(0, min(len(changed), 400) if generator.random() < 0.8 else len(changed)))
        match generator.integers(0, 5):
            case 0 | 1:
                changed[at] = generator.integers(0, 256)
            case 2:
                changed[at : at + 4] = generator.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            case 3:
                del changed[at : at + int(generator.integers(1, 9))]
            case _:
                changed[at:at] = changed[at : at + int(generator.integers(1, 9))]
    return bytes(changed[: len(changed) - int(generator.integers(0, 60)) * (generator.random() < 0.1)])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_mutated_picture_is_decoded_or_refused(kind: str) -> None:
    generator, content = np.random.default_rng(1), encoded(kind)
    assert accepted(content)
    outcomes = [accepted(mutated(content, generator)) for _ in range(CASES)]
    assert 0 < sum(outcomes) < CASES


def test_every_type_and_size_of_an_exif_entry_is_decoded_or_refused() -> None:
    """An orientation that is text, a fraction, or more numbers than the file has bytes."""
    tiny, outcomes = Image.new("RGB", (8, 8)), []
    for kind in range(14):
        for count in (0, 1, 3, 1000, 2**31, 2**32 - 1):
            for value in (b"\0\0\0\0", b"\6\0\0\0", b"\xff\xff\xff\xff"):
                entry = struct.pack("<HHI", 0x0112, kind, count) + value
                file = io.BytesIO()
                exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0"
                tiny.save(file, "JPEG", exif=exif)
                outcomes.append(accepted(file.getvalue()))
    assert True in outcomes


def flat_png(width: int, height: int, rows: int | None = None) -> bytes:
    """A black PNG of 1 bit, which takes few bytes and many pixels; with fewer rows than its header says if given."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes((1 + (width + 7) // 8) * (height if rows is None else rows)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(1, 50_000_000), (50_000_000, 1), (20_001, 1), (7_100, 7_100), (5_001, 5_000)]
)
def test_picture_beyond_the_limits_is_refused_by_its_header(width: int, height: int) -> None:
    started = time.process_time()
    with pytest.raises(UnusableImage, match=r"^file: expected at most") as refused:
        checked(flat_png(width, height, rows=1))
    assert refused.value.reason == "too large"
    assert time.process_time() - started < 1  # decoding one takes seconds


@pytest.mark.parametrize(("width", "height"), [(1, 20_000), (20_000, 1), (20_000, 100)])
def test_longest_picture_within_the_limits_is_quick(width: int, height: int) -> None:
    started = time.process_time()
    assert accepted(flat_png(width, height))
    assert time.process_time() - started < 1


def test_a_jpeg_may_have_more_pixels_than_a_format_that_is_decoded_whole() -> None:
    file = io.BytesIO()
    Image.new("L", (5_001, 5_000)).save(file, "JPEG")
    assert accepted(file.getvalue())


def test_a_request_has_room_for_the_largest_picture() -> None:
    assert BodyLimits().max_bytes == upload_limits.MAX_BYTES + upload_limits.FORM_BYTES
    assert LIMITS.pixels == upload_limits.MAX_PIXELS
    assert BodyLimits().buffer_bytes >= 10 * BodyLimits().max_bytes
