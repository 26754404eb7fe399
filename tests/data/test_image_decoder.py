"""Pictures of every kind look as an image viewer shows them, or are refused with their mode."""

from __future__ import annotations

import copy
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from groundray.data.image_decoder import FORMATS, Limits, UnusableImage, decode, format_of, size
from groundray.data.sources.image_files import check_image
from groundray.data.transforms import centre_crop
from groundray.storage.folder import Folder

pytestmark = pytest.mark.thorough  # pictures of every kind in every decoder

RAMP = np.tile(np.arange(256, dtype=np.uint8), (32, 1))  # black to white, from left to right
ORIENTATION = 0x0112


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def ramp(mode: str, scale: float = 1.0) -> Image.Image:
    """Return the ramp in a mode, its levels times a scale."""
    kind = {"I;16": np.uint16, "I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
    return Image.frombytes(mode, (256, 32), (RAMP.astype(np.float64) * scale).astype(kind).tobytes())


def tiff(values: np.ndarray, bits: int, sample_format: int, photometric: int = 1, order: str = "<") -> bytes:
    """Return an uncompressed grey TIFF of a layout that Pillow does not write."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    tags = [
        *((256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8)),
        *((277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format)),
    ]
    shift = {3: 16 if order == ">" else 0, 4: 0}  # a short lies in the first half of its field
    entries = b"".join(struct.pack(order + "HHII", tag, kind, 1, value << shift[kind]) for tag, kind, value in tags)
    start = struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return start + data + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def png(ihdr: tuple[int, int, int, int], rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG (width, height, bits, colour type) of unfiltered rows, with further chunks before the pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", *ihdr, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content), np.int16)


DEEP_RAMPS = {
    "16-bit PNG": encoded(ramp("I;16", 257)),
    "16-bit TIFF": encoded(ramp("I;16", 257), "TIFF"),
    "16-bit compressed TIFF": encoded(ramp("I;16", 257), "TIFF", compression="tiff_lzw"),
    "16-bit big-endian TIFF": encoded(ramp("I;16B", 257), "TIFF"),
    "16-bit TIFF, white is 0": tiff(65535 - RAMP.astype(np.uint16) * 257, 16, 1, photometric=0),
    "16-bit PGM": encoded(ramp("I;16", 257), "PPM"),
    "16-bit JPEG 2000": encoded(ramp("I;16", 257), "JPEG2000"),
    "32-bit unsigned TIFF": tiff(RAMP.astype(np.uint32) * 0x01010101, 32, 1),
    "float TIFF": encoded(ramp("F", 1 / 255), "TIFF"),
    "big-endian float TIFF": tiff((RAMP / 255).astype(np.float32), 32, 3, order=">"),
    "float TIFF, white is 0": tiff((1 - RAMP / 255).astype(np.float32), 32, 3, photometric=0),
    "float PFM": encoded(ramp("F", 1 / 255), "PPM"),
    "16-bit RGB PNG": png((256, 32, 16, 2), (b"\0" + np.repeat(RAMP[0].astype(">u2") * 257, 3).tobytes()) * 32),
    "16-bit grey and alpha PNG": png(
        (256, 32, 16, 4),
        (b"\0" + np.stack([RAMP[0].astype(">u2") * 257, np.full(256, 65535, ">u2")], 1).tobytes()) * 32,
    ),
}


@pytest.mark.parametrize("name", DEEP_RAMPS)
def test_a_ramp_of_any_depth_keeps_its_levels(name: str) -> None:
    np.testing.assert_array_equal(pixels(DEEP_RAMPS[name]), np.repeat(RAMP[:, :, None], 3, axis=2))


def test_twelve_bits_fill_the_range() -> None:
    """Two values of 12 bits, in 3 bytes: black and white."""
    content = tiff(np.tile(np.array([0x00, 0x0F, 0xFF], np.uint8), (4, 6)), 12, 1)
    content = content.replace(struct.pack("<HHII", 256, 4, 1, 18), struct.pack("<HHII", 256, 4, 1, 12))
    assert pixels(content)[:, :, 0].tolist() == [[0, 255] * 6] * 4


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (encoded(ramp("I", 257), "TIFF"), "mode I of a TIFF"),
        (tiff(RAMP.astype(np.int16), 16, 2), "mode I of a TIFF"),
        (encoded(ramp("F"), "TIFF"), "mode F of a TIFF: floats from 0 to 255, expected 0"),
        (encoded(ramp("F", float("nan")), "TIFF"), "mode F of a TIFF: floats from nan"),
    ],
    ids=["signed 32 bits", "signed 16 bits", "floats beyond 1", "not numbers"],
)
def test_what_has_no_black_and_white_is_refused_with_its_mode(content: bytes, mode: str, tmp_path: Path) -> None:
    (tmp_path / "ramp.tif").write_bytes(content)
    with pytest.raises(UnusableImage, match=mode) as error:
        check_image(Folder.at(tmp_path), ["ramp.tif"])
    assert error.value.reason == "unsupported mode"
    assert str(tmp_path / "ramp.tif") in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        encoded(ramp("I;16", 1 / 8)),  # 0 to 31 of 65535: a map of labels
        tiff(RAMP.astype(np.uint32), 32, 1),
        encoded(Image.new("RGBA", (9, 9), (200, 30, 40, 0))),
        encoded(Image.new("LA", (9, 9), (200, 0))),
    ],
    ids=["16 bits", "32 bits", "transparent", "transparent grey"],
)
def test_a_picture_that_would_be_blank_is_refused(content: bytes) -> None:
    with pytest.raises(UnusableImage) as error:
        decode(content)
    assert error.value.reason == "blank"


def test_a_picture_of_a_single_colour_is_no_fault() -> None:
    assert pixels(encoded(Image.fromarray(np.full((4, 4), 999, np.uint16)))).max() == 4
    assert pixels(encoded(Image.new("RGB", (4, 4), "navy"))).tolist()[0][0] == [0, 0, 128]


MODES = {
    **{"PNG": ("RGB", "L", "P", "1"), "JPEG": ("RGB", "L", "CMYK"), "TIFF": ("RGB", "L", "P", "1", "CMYK", "YCbCr")},
    **{"GIF": ("RGB", "L", "P", "1"), "BMP": ("RGB", "L", "P", "1"), "WEBP": ("RGB", "L")},
}


@pytest.mark.parametrize(("format", "mode"), [(format, mode) for format, modes in MODES.items() for mode in modes])
def test_ordinary_pictures_keep_the_bits_of_their_codec(format: str, mode: str) -> None:
    photo = Image.radial_gradient("L").resize((60, 40))
    colours = Image.merge("RGB", (photo, photo.rotate(90), photo.rotate(180)))
    content = encoded(colours.convert(mode), format)
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(pixels(content), np.asarray(image.convert("RGB")))


def upright() -> Image.Image:
    """Return a picture whose corners differ, wider than high."""
    picture = Image.new("RGB", (96, 64), "white")
    for colour, box in (("red", (0, 0, 48, 32)), ("blue", (48, 0, 96, 32)), ("green", (0, 32, 48, 64))):
        picture.paste(colour, box)
    return picture


def turned(orientation: int, format: str) -> bytes:
    """Return the upright picture as a camera in this orientation stores it."""
    methods = [
        *(None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
        *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270),
    ]
    method = methods[orientation - 1]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(upright() if method is None else upright().transpose(method), format, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_is_turned_upright(format: str, orientation: int, tmp_path: Path) -> None:
    content = turned(orientation, format)
    assert size(content) == (96, 64)
    assert np.abs(pixels(content) - np.asarray(upright(), np.int16)).mean() < 8  # of a lossy codec
    (tmp_path / "a").write_bytes(content)
    checked = check_image(Folder.at(tmp_path), ["a"])
    assert (checked.width, checked.height, checked.encoded) == (96, 64, content)
    expected = centre_crop(encoded(upright()), 16, 16).astype(np.int16)
    assert np.abs(centre_crop(content, 16, 16) - expected).mean() < 8


def test_a_large_phone_picture_is_decoded_small_and_turned() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    large = upright().resize((1536, 1024)).transpose(Image.Transpose.ROTATE_90)
    content = encoded(large, "JPEG", exif=exif)
    assert decode(content, min_side=64).size == (192, 128)
    assert decode(content).size == size(content) == (1536, 1024)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (3, 1, 0),
        (3, 1, 9 << 16),
        (3, 2, 6 << 16),
        (1, 4, 0x06060606),
        (2, 2, 0x36000000),
        (5, 1, 8),
        (7, 4, 6),
        (13, 1, 9),
    ],
)
def test_odd_orientations_are_upright(kind: int, count: int, value: int) -> None:
    """Numbers that are no orientation, and types that the tag cannot have: bytes, text, a fraction, a folder."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHII", ORIENTATION, kind, count, value) + bytes(4)
    content = encoded(upright(), "JPEG", exif=exif)
    assert size(content) == decode(content).size == (96, 64)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged EXIF
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense", b"Exif\0\0MM\0*" * 9]
)
def test_damaged_exif_does_no_harm(exif: bytes) -> None:
    content = encoded(upright(), "JPEG", exif=exif)
    assert size(content) == decode(content).size == (96, 64)


def on_white(colours: Image.Image, alpha: Image.Image) -> np.ndarray:
    white = Image.new("RGB", colours.size, "white")
    return np.asarray(Image.composite(colours.convert("RGB"), white, alpha), np.int16)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_on_white(format: str) -> None:
    """The colours under transparent pixels are any, often black."""
    alpha = Image.fromarray(RAMP)
    picture = Image.new("RGB", alpha.size, (10, 90, 200))
    picture.putalpha(alpha)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    got = pixels(encoded(picture, format, **options))
    np.testing.assert_array_equal(got, on_white(Image.new("RGB", alpha.size, (10, 90, 200)), alpha))
    assert got[0, 0].tolist() == [255, 255, 255]
    assert got[0, -1].tolist() == [10, 90, 200]


def test_transparency_of_grey_and_of_palettes_is_composited_on_white() -> None:
    grey = Image.new("LA", (4, 2), (60, 255))
    grey.putpixel((0, 0), (0, 0))
    assert pixels(encoded(grey))[:, :, 0].tolist() == [[255, 60, 60, 60], [60, 60, 60, 60]]
    palette = Image.new("P", (3, 1))
    palette.putpalette([0, 0, 0, 200, 10, 10, 10, 10, 200])
    palette.putdata([0, 1, 2])
    for content in (
        encoded(palette, transparency=0),
        encoded(palette, transparency=b"\0"),
        encoded(palette, "GIF", transparency=0),
    ):
        assert pixels(content).tolist() == [[[255, 255, 255], [200, 10, 10], [10, 10, 200]]]


@pytest.mark.parametrize(
    ("header", "row", "key"),
    [
        ((2, 1, 8, 0), bytes([7, 90]), struct.pack(">H", 7)),
        ((2, 1, 16, 0), struct.pack(">HH", 700, 23130), struct.pack(">H", 700)),
        ((2, 1, 8, 2), bytes([7, 7, 7, 90, 90, 90]), struct.pack(">3H", 7, 7, 7)),
        ((2, 1, 16, 2), struct.pack(">6H", *[700] * 3, *[23130] * 3), struct.pack(">3H", 700, 700, 700)),
        ((2, 1, 4, 0), bytes([0x16]), struct.pack(">H", 1)),
        ((2, 1, 2, 0), bytes([0b01100000]), struct.pack(">H", 1)),
    ],
    ids=["grey", "16-bit grey", "RGB", "16-bit RGB", "4-bit grey", "2-bit grey"],
)
def test_a_transparent_colour_is_white(header: tuple[int, int, int, int], row: bytes, key: bytes) -> None:
    first, second = pixels(png(header, b"\0" + row, (b"tRNS", key)))[0, :, 0].tolist()
    assert first == 255
    assert second == {4: 102, 2: 170}.get(header[2], 90)


def test_cmyk_without_a_profile_is_ink_on_white(tmp_path: Path) -> None:
    """Pillow writes CMYK JPEG as Adobe's programs do, inverted."""
    inks = Image.new("CMYK", (64, 64), (0, 255, 255, 0))
    for format in ("JPEG", "TIFF"):
        assert np.abs(pixels(encoded(inks, format)) - (255, 0, 0)).max() <= 3
    assert np.abs(pixels(encoded(Image.new("CMYK", (64, 64)), "JPEG")) - 255).max() <= 2


def test_ycck_is_decoded_like_cmyk() -> None:
    """Adobe's marker with transform 2 says that the first three components are YCbCr of the inverted inks."""
    content = encoded(Image.new("CMYK", (64, 64), (128, 128, 128, 0)), "JPEG")
    marker = content.index(b"Adobe")
    ycck = content[: marker + 11] + b"\2" + content[marker + 12 :]
    assert np.abs(pixels(ycck) - 127).max() <= 3  # grey is (Y, 128, 128)


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def icc_profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    """Return an ICC profile of version 2 with these tags."""
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": text, b"cprt": b"text\0\0\0\0x\0\0\0", **tags}
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += struct.pack(">4sII", name, 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += padded
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(data), b"lcms", 0x02400000, kind, space, connection)
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + data


def matrix_profile(gamma: float, red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """Return an ICC profile of three primaries (XYZ under D50) and a gamma."""
    primaries = {b"rXYZ": xyz(red), b"gXYZ": xyz(green), b"bXYZ": xyz(blue)}
    curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(gamma))
    return icc_profile(b"RGB ", {b"wtpt": xyz((0.9642, 1.0, 0.8249)), **primaries, **curves})


DISPLAY_P3 = matrix_profile(2.2, (0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = matrix_profile(2.2, (0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))


@pytest.mark.parametrize("profile", [DISPLAY_P3, ADOBE_RGB], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_of_wide_profiles_become_srgb(format: str, profile: bytes) -> None:
    """A colour of sRGB, stored in another space, has its sRGB levels again; read as they stand they are far off."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    colours = Image.new("RGB", (64, 64), (60, 180, 75))
    stored = ImageCms.profileToProfile(colours, ImageCms.createProfile("sRGB"), source)
    assert stored is not None
    assert np.abs(np.asarray(stored, np.int16) - (60, 180, 75)).max() > 12
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    got = pixels(encoded(stored, format, icc_profile=profile, **options))
    assert np.abs(got - (60, 180, 75)).max() <= 3


def test_a_profile_of_srgb_changes_no_bit() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"damaged", DISPLAY_P3[:200], b""):
        np.testing.assert_array_equal(pixels(encoded(picture, icc_profile=profile)), np.asarray(picture))


def test_a_profile_of_another_space_than_the_picture_is_ignored() -> None:
    inks = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", icc_profile=DISPLAY_P3)
    assert pixels(inks)[0, 0].tolist() == [255, 0, 0]
    grey = encoded(Image.fromarray(RAMP), icc_profile=DISPLAY_P3)
    np.testing.assert_array_equal(pixels(grey)[:, :, 0], RAMP)


def test_transparency_and_profile_together() -> None:
    picture = Image.new("RGBA", (2, 1), (60, 180, 75, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    first, second = pixels(encoded(picture, icc_profile=ADOBE_RGB))[0].tolist()
    assert first == [255, 255, 255]
    assert second[0] < 20  # Adobe RGB's 60 of red is outside sRGB
    assert second[1] == pytest.approx(181, abs=4)


def test_lab_is_shown_in_colours() -> None:
    red = ImageCms.applyTransform(
        Image.new("RGB", (8, 8), (200, 40, 40)),
        ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"),
    )
    assert red is not None
    assert np.abs(pixels(encoded(red, "TIFF")) - (200, 40, 40)).max() <= 4


def test_gamma_of_a_png_is_applied_unless_it_says_srgb() -> None:
    rows = (b"\0" + RAMP[0].tobytes()) * 32
    linear, usual = (b"gAMA", struct.pack(">I", 100_000)), (b"gAMA", struct.pack(">I", 45_455))
    header = (256, 32, 8, 0)
    np.testing.assert_array_equal(pixels(png(header, rows, usual))[:, :, 0], RAMP)
    np.testing.assert_array_equal(pixels(png(header, rows, (b"sRGB", b"\0"), linear))[:, :, 0], RAMP)
    shown = pixels(png(header, rows, linear))[0, :, 0]
    assert shown[[0, 55, 128, 255]].tolist() == [0, 128, 188, 255]  # half of the light is level 188 of sRGB


def with_points(format: str, primaries: int, curve: int, colour: tuple[int, int, int]) -> bytes:
    """Return a picture of a single colour whose coding points are these, without a profile."""
    if format == "PNG":
        return png((8, 8, 8, 2), (b"\0" + bytes(colour * 8)) * 8, (b"cICP", bytes([primaries, curve, 0, 1])))
    content = encoded(Image.new("RGB", (8, 8), colour), "AVIF", quality=100, subsampling="4:4:4")
    box = content.index(b"colrnclx") + 8
    return content[:box] + struct.pack(">HH", primaries, curve) + content[box + 4 :]


CHROMATICITIES = {  # x and y of red, green and blue, by coding point (ITU-T H.273, table 2)
    1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def light(primaries: int) -> np.ndarray:
    """Return the matrix from linear RGB of these primaries, with white D65, to XYZ."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in CHROMATICITIES[primaries]]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def in_primaries(primaries: int, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return a colour of sRGB as a picture of other primaries stores it, with the same curve."""
    levels = np.array(colour) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    other = np.linalg.solve(light(primaries), light(1) @ linear)
    red, green, blue = np.where(other <= 0.0031308, 12.92 * other, 1.055 * other ** (1 / 2.4) - 0.055) * 255
    return round(red), round(green), round(blue)


@pytest.mark.parametrize("format", ["PNG", "AVIF"])
def test_coding_points_are_colours_of_their_gamut_or_refused(format: str) -> None:
    tolerance = 4 if format == "PNG" else 12  # a level that AVIF is off is several where BT.2020 leaves sRGB
    for colour in ((60, 180, 75), (200, 40, 90), (128, 128, 128)):
        for primaries in (1, 9, 12):
            stored = in_primaries(primaries, colour)
            assert np.abs(pixels(with_points(format, primaries, 13, stored)) - colour).max() <= tolerance, primaries
        assert np.abs(pixels(with_points(format, 2, 2, colour)) - colour).max() <= 3
    for primaries, curve in ((9, 16), (9, 18), (1, 8), (11, 13)):
        with pytest.raises(UnusableImage, match=f"primaries {primaries} and curve {curve}") as error:
            decode(with_points(format, primaries, curve, (60, 180, 75)))
        assert error.value.reason == "unsupported mode"


def grey_profile(gamma: float) -> bytes:
    return icc_profile(b"GRAY", {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"kTRC": curve(gamma)})


def test_grey_of_a_profile_becomes_srgb() -> None:
    """Half of the light, as a profile with a gamma of 1 stores it, is level 188 of sRGB."""
    for format in ("PNG", "JPEG", "TIFF"):
        shown = pixels(encoded(Image.new("L", (8, 8), 128), format, icc_profile=grey_profile(1.0)))
        assert np.abs(shown - 188).max() <= 2
    deep = encoded(Image.fromarray(np.full((8, 8), 32896, np.uint16)), icc_profile=grey_profile(1.0))
    assert np.abs(pixels(deep) - 188).max() <= 2


def ink_profile() -> bytes:
    """Return a CMYK profile: a table of two levels of each ink, in which all inks but black print the same red."""
    white, red, black = (255, 128, 128), (136, 208, 195), (0, 128, 128)  # L, a and b in 8 bits
    table = [black if key else red if ink or magenta or yellow else white
             for ink in (0, 1) for magenta in (0, 1) for yellow in (0, 1) for key in (0, 1)]  # fmt: skip
    matrix = struct.pack(">9i", *(65536 if place % 4 == 0 else 0 for place in range(9)))
    straight = bytes(range(256))
    lut = b"mft1\0\0\0\0\4\3\2\0" + matrix + straight * 4 + bytes(sum(table, ())) + straight * 3
    return icc_profile(b"CMYK", {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"A2B0": lut}, kind=b"prtr", connection=b"Lab ")


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_inks_are_those_of_their_profile(format: str) -> None:
    for inks, shown in (((255, 0, 0, 0), (255, 0, 0)), ((0, 0, 0, 0), (255, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))):
        content = encoded(Image.new("CMYK", (16, 16), inks), format, icc_profile=ink_profile())
        assert np.abs(pixels(content) - shown).max() <= 8
    plain = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), format)
    assert np.abs(pixels(plain) - (0, 255, 255)).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "white")]
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert pixels(content)[3, 3].tolist() == [255, 0, 0]


def test_a_phone_jpeg_with_a_second_picture_is_a_jpeg() -> None:
    content = encoded(upright(), "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))])
    assert format_of(content) == "JPEG"
    assert format_of(content, Limits(formats=("JPEG",))) == "JPEG"
    assert np.abs(pixels(content) - np.asarray(upright(), np.int16)).mean() < 8


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"", "not an image", "got 0 bytes"),
        (b"hello", "not an image", "got 5 bytes"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", "an SVG drawing"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "not an image", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image", "PostScript"),
        (png((60_000, 60_000, 1, 0), b""), "too large", "pixels"),
        (png((1, 70_000, 1, 0), b""), "too large", "65,535 pixels a side, got 1 x 70,000"),
        (encoded(Image.effect_noise((64, 64), 50))[:-900], "truncated", "cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-900], "truncated", "cannot be decoded"),
        (encoded(Image.effect_noise((64, 64), 50), "TIFF")[:-900], "truncated", "cannot be decoded"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(content: bytes, reason: str, message: str) -> None:
    with pytest.raises(UnusableImage, match=message) as error:
        decode(content)
    assert error.value.reason == reason
    again = copy.copy(error.value)  # as pickle does
    assert (again.reason, str(again)) == (reason, str(error.value))


def test_limits_are_checked_before_decoding() -> None:
    content = encoded(Image.new("RGB", (300, 200)))
    for limits, message in ((Limits(pixels=59_999), "59,999 pixels"), (Limits(side=299), "299 pixels a side")):
        for read in (decode, size, format_of):
            with pytest.raises(UnusableImage, match=message):
                read(content, limits=limits)
    with pytest.raises(UnusableImage, match="expected a picture"):
        decode(content, limits=Limits(formats=("JPEG",)))
    assert "EPS" not in FORMATS  # Pillow runs Ghostscript on it


def test_an_image_viewer_shows_the_same_orientation_as_pillow() -> None:
    """Pillow's own turn is the naive twin."""
    for orientation in range(1, 9):
        content = turned(orientation, "PNG")
        with Image.open(io.BytesIO(content)) as image:
            np.testing.assert_array_equal(pixels(content), np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
