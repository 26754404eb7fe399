"""The decoder of all pictures: encoded bytes to 8-bit sRGB pixels, upright and opaque, as an image viewer shows them.

Preparation, training, trunk features, indexes, thumbnails, uploads and match maps decode here and nowhere else, so that
a picture looks the same to all of them. Shards keep the source's bytes, and each decode settles them: shards of any age
give the same pixels. An 8-bit sRGB picture without rotation or transparency keeps the bits that its codec gives.

    orientation     EXIF orientations 1 to 8, also of PNG, WebP and TIFF
    bit depth       the nominal range (16-bit integers: 0 to 65535, floats: 0 to 1) becomes 0 to 255
    transparency    composited on white
    colours         ICC profiles, coding points of PNG and AVIF, and PNG gamma are converted to sRGB;
                    CMYK without a profile by (1 - ink) (1 - black)
    animation       the first frame

What has no agreed appearance, such as signed integers, is refused with its mode.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageCms, ImageFilter, UnidentifiedImageError

# photographs' formats first: they are tried in this order. Not among them: formats that Pillow hands to other programs
# (EPS, WMF), and formats of measurements (FITS, GRIB, HDF5)
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"),
    *("ICO", "ICNS", "TGA", "PCX", "SGI", "SUN", "QOI", "PSD", "DDS", "DIB"),
)
# of files that begin like this, a message says more than "not an image"
UNREADABLE = {
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%!PS": "PostScript",
    b"%PDF": "a PDF",
    b"<svg": "an SVG drawing",
    b"<?xm": "XML, perhaps an SVG drawing",
    b"<!DO": "a web page",
    b"<htm": "a web page",
}
# markers of a JPEG: its frame if it is baseline, its end, and segments that come before a frame
BASELINE_FRAME, END = 0xFFC0, b"\xff\xd9"
BEFORE_FRAME = {0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE, *range(0xFFE0, 0xFFF0)}
# horizontal and vertical factors of the first of three components, where those of the others are 1: 4:4:4 to 4:1:0
SUBSAMPLINGS = {(1, 1), (2, 1), (2, 2), (1, 2), (4, 1), (4, 2)}
RGB_COMPONENTS = (82, 71, 66)  # R, G and B: not YCbCr
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}  # of an ICC profile, by the mode that it describes
SRGB_TOLERANCE = 4  # levels of 255 by which a profile may differ from sRGB and still be taken for it
SRGB_GAMMA, GAMMA_TOLERANCE = 1 / 2.2, 0.05  # of a PNG; the tolerance is relative
# coding points of ITU-T H.273, of which 2 is "unspecified": primaries of sRGB, and curves close to that of sRGB
SRGB_PRIMARIES, SRGB_CURVES = {1, 2}, {1, 2, 6, 13, 14, 15}
# from linear light of other primaries to that of sRGB
WIDE_PRIMARIES = {
    12: ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),  # Display P3
    9: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),  # BT.2020
}
FLOAT_TOLERANCE = 0.01  # what resampling may add to the range 0 to 1
KEY_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}  # of a PNG's transparent colour, by Pillow's raw mode


@dataclass(frozen=True)
class Limits:
    """What a picture's header may say. It is checked before any pixel is decoded.

    Attributes:
        formats: Pillow's names of the accepted formats.
        pixels: maximum width times height; by default Pillow's own limit against decompression bombs.
        side: maximum width and height; by default what JPEG can hold. A file of 1 x 50,000,000 pixels takes seconds.
    """

    formats: tuple[str, ...] = FORMATS
    pixels: int = 178_956_970
    side: int = 65_535


DEFAULT_LIMITS = Limits()


class UnusableImage(ValueError):
    """A picture cannot be used, by its file's fault. `reason` is a short category, the message has the details."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[UnusableImage], tuple[str, str]]:
        """Pickle both arguments: an exception keeps only the message."""
        return type(self), (self.reason, str(self))

    def of(self, source: str) -> UnusableImage:
        """Return the same error with a message that begins with the picture's source."""
        return UnusableImage(self.reason, f"{source}: {self}")


class PlainJpeg(NamedTuple):
    """What a JPEG's header says of its picture, as `decode` returns it.

    Attributes:
        width, height: of the upright, reduced picture.
        reduction: 1, 2, 4 or 8, by which the stored picture is reduced.
        orientation: EXIF orientation of the pixels that are stored, from 1 (upright) to 8.
    """

    width: int
    height: int
    reduction: int
    orientation: int


def decode(encoded: bytes, min_side: int | None = None, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """Return a picture as an image viewer shows it: mode RGB, 8 bits, sRGB, upright, its first frame, opaque.

    Args:
        min_side: a JPEG may be decoded at a half, quarter or eighth of its size, which libjpeg does at little cost, as
            long as its short side keeps this number of pixels.

    Raises:
        UnusableImage: the file is not a picture, is damaged, exceeds the limits, or cannot be shown. The reason is one
            of `not an image`, `truncated`, `too large`, `unsupported mode`, `blank`.
    """
    with _opened(encoded, limits) as image:
        if min_side is not None:
            image.draft("RGB", (min_side, min_side))
        _scale_colour_key(image)
        image.load()
        points = _coding_points(encoded, image)
        method = UPRIGHT.get(_orientation(image))
        pixels = _opaque(image, points)
        return pixels if method is None else pixels.transpose(method)


def size(encoded: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return width and height of the upright picture, in pixels. Most formats need no decoding for it.

    Raises:
        UnusableImage: the file is not a picture, or exceeds the limits.
    """
    with _opened(encoded, limits) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def plain_jpeg(encoded: bytes, min_side: int, limits: Limits = DEFAULT_LIMITS) -> PlainJpeg | None:
    """Return what the header says of a JPEG that any decoder shows as `decode` does; None for all other pictures.

    It is a baseline JPEG in YCbCr with a common chroma subsampling, in sRGB, and ends where it should. Other decoders
    leave its orientation and its reduction to their caller.

    Args:
        min_side: as of `decode`.

    Raises:
        UnusableImage: the file is not a picture, or exceeds the limits.
    """
    with _opened(encoded, limits) as image:
        if image.format != "JPEG" or image.mode != "RGB" or not encoded.endswith(END) or not _is_baseline(encoded):
            return None
        layers: Any = getattr(image, "layer", [])
        (_, *factors, _), *others = layers
        is_common = tuple(factors) in SUBSAMPLINGS and all(layer[1:3] == (1, 1) for layer in others)
        is_ycc = image.info.get("adobe_transform", 1) == 1 and tuple(layer[0] for layer in layers) != RGB_COMPONENTS
        profile = image.info.get("icc_profile")
        if not is_common or not is_ycc or (profile and _transform(profile, image.mode)):
            return None
        orientation = _orientation(image)
        stored_width = image.width
        image.draft("RGB", (min_side, min_side))
        reduction = next(factor for factor in (1, 2, 4, 8) if -(-stored_width // factor) == image.width)
        width, height = image.size[::-1] if orientation >= 5 else image.size
        return PlainJpeg(width, height, reduction, orientation)


def format_of(encoded: bytes, limits: Limits = DEFAULT_LIMITS) -> str:
    """Return Pillow's name of a picture's format, such as `JPEG`.

    Raises:
        UnusableImage: the file is not a picture, or exceeds the limits.
    """
    with _opened(encoded, limits) as image:
        return "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with further pictures behind it


@contextmanager
def _opened(encoded: bytes, limits: Limits) -> Iterator[Image.Image]:
    """Open a picture, check its header, and turn every error of its decoder into UnusableImage."""
    try:
        with Image.open(io.BytesIO(encoded), formats=limits.formats) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise _too_large(f"{limits.pixels:,} pixels", f"{width:,} x {height:,}")
            if max(width, height) > limits.side:
                raise _too_large(f"{limits.side:,} pixels a side", f"{width:,} x {height:,}")
            yield image
    except (UnusableImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(f"{limits.pixels:,} pixels", "far more") from None
    except UnidentifiedImageError:
        raise UnusableImage("not an image", _unidentified(encoded, limits.formats)) from None
    except Exception as error:  # noqa: BLE001  Pillow raises anything at a damaged file
        raise UnusableImage("truncated", f"the picture cannot be decoded: {error or type(error).__name__}") from None


def _too_large(most: str, got: str) -> UnusableImage:
    return UnusableImage("too large", f"expected at most {most}, got {got}")


def _unidentified(encoded: bytes, formats: tuple[str, ...]) -> str:
    got = UNREADABLE.get(encoded[:4], f"{len(encoded):,} bytes in another format")
    if encoded[4:8] == b"ftyp" and encoded[8:12] in HEIF_BRANDS:
        got = "HEIC, which Pillow does not read: convert it to JPEG"
    elif got == "a TIFF" and "TIFF" in formats:
        got = "a TIFF with a layout that Pillow does not read: convert it to 8 bits"
    return f"expected a picture ({', '.join(formats)}), got {got}"


def _is_baseline(encoded: bytes) -> bool:
    """Return True if the first frame of a JPEG is baseline, and only segments that may precede it do."""
    at = 2
    while at + 4 <= len(encoded):
        marker, length = struct.unpack_from(">HH", encoded, at)
        if marker not in BEFORE_FRAME:
            return marker == BASELINE_FRAME
        at += 2 + length
    return False


def _orientation(image: Image.Image) -> int:
    """Return a picture's EXIF orientation, from 1 to 8; 1 if the EXIF is damaged, as viewers take it."""
    if image.format == "TIFF":
        return 1  # Pillow turns it while loading
    try:
        value = image.getexif().get(ORIENTATION, 1)
        return value if value in UPRIGHT else 1
    except Exception:  # noqa: BLE001  as in `_opened`
        return 1


def _coding_points(encoded: bytes, image: Image.Image) -> tuple[int, int]:
    """Return the coding points of a picture's primaries and curve, which Pillow does not read; 2 is unspecified.

    Raises:
        UnusableImage: they are of another gamut than is known here, or of more light than 8 bits hold (HDR).
    """
    points = (2, 2)
    if not image.info.get("icc_profile"):
        if image.format == "PNG":
            points = _png_points(encoded)
        elif image.format == "AVIF" and (box := encoded.find(b"colrnclx")) >= 0:
            points = struct.unpack_from(">HH", encoded, box + 8)
    primaries, curve = points
    if curve not in SRGB_CURVES or primaries not in SRGB_PRIMARIES | set(WIDE_PRIMARIES):
        got = f"colours of primaries {primaries} and curve {curve} (ITU-T H.273; curves 16 and 18 are HDR)"
        raise _unsupported(image, got)
    return points


def _png_points(encoded: bytes) -> tuple[int, int]:
    at = 8
    while at + 12 <= len(encoded):
        length, name = struct.unpack_from(">I4s", encoded, at)
        if name == b"cICP" and length == 4:
            return encoded[at + 8], encoded[at + 9]
        if name == b"IDAT":
            break
        at += 12 + length
    return 2, 2


def _opaque(image: Image.Image, points: tuple[int, int]) -> Image.Image:
    """Return the pixels of a loaded image in sRGB, composited on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        colours, alpha = _deep(image)
    elif image.has_transparency_data:
        whole = image.convert("LA" if image.mode in ("LA", "La") else "RGBA")
        colours, alpha = whole.convert(whole.mode[:-1]), whole.getchannel("A")
    else:
        colours, alpha = image, None
    pixels = _in_srgb(colours, image.info, points)
    if alpha is None:
        return pixels
    least, most = alpha.getextrema()
    if most == 0:
        raise UnusableImage("blank", f"every pixel is transparent (mode {image.mode} of a {image.format})")
    if least == 255:
        return pixels
    return Image.composite(pixels, Image.new("RGB", pixels.size, "white"), alpha)


def _deep(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return a picture of more than 8 bits in 8 bits, and its transparency, if any."""
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        least, most = float(values.min()), float(values.max())
        if not (least >= -FLOAT_TOLERANCE and most <= 1 + FLOAT_TOLERANCE):  # also where they are not numbers
            raise _unsupported(image, f"floats from {least:g} to {most:g}, expected 0 (black) to 1 (white)")
        shades = values.clip(0, 1)
    elif image.mode.startswith("I;16"):
        shades = values / (2 ** int(tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1)
    elif image.format == "PPM":
        shades = values / 65535  # Pillow has scaled them
    elif tags.get(BITS_PER_SAMPLE) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,):
        shades = values.view(np.uint32) / (2**32 - 1)
    else:
        raise _unsupported(image, "signed integers, whose black and white are not defined")
    if tags.get(PHOTOMETRIC) == 0:
        shades = 1 - shades
    grey = (shades * 255 + 0.5).astype(np.uint8)
    if grey.min() == grey.max() and values.min() < values.max():
        raise UnusableImage(
            "blank",
            f"its values from {values.min():g} to {values.max():g} are all the same shade of grey "
            f"(mode {image.mode} of a {image.format}): scale them to the range of the mode",
        )
    key = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)) if isinstance(key, int) else None
    return Image.fromarray(grey), alpha


def _unsupported(image: Image.Image, got: str) -> UnusableImage:
    return UnusableImage("unsupported mode", f"mode {image.mode} of a {image.format}: {got}: convert it to 8 bits")


def _scale_colour_key(image: Image.Image) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow scales the pixels."""
    key = image.info.get("transparency")
    tiles: Any = getattr(image, "tile", None)
    if image.format != "PNG" or key is None or isinstance(key, bytes) or not tiles:
        return
    scale = KEY_SCALES.get(str(tiles[0][3]))
    if scale is not None:
        image.info["transparency"] = (
            tuple(int(value * scale) for value in key) if isinstance(key, tuple) else int(key * scale)
        )


def _in_srgb(image: Image.Image, info: dict[Any, Any], points: tuple[int, int]) -> Image.Image:
    """Return a picture without transparency in sRGB: by its ICC profile, coding points, a PNG's gamma, or as it is."""
    profile = info.get("icc_profile")
    if image.mode not in SPACES:  # a palette, 1 bit, YCbCr
        image = image.convert("L" if image.mode == "1" else "RGB")
    transform = _transform(profile, image.mode) if profile or image.mode == "LAB" else None
    if transform is not None:
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None  # it is None only in place
        return converted
    pixels = image if image.mode == "RGB" else image.convert("RGB")
    if points[0] in WIDE_PRIMARIES:
        return pixels.filter(_gamut(points[0]))
    gamma = info.get("gamma")
    if profile or points != (2, 2) or "srgb" in info or not gamma or abs(gamma / SRGB_GAMMA - 1) <= GAMMA_TOLERANCE:
        return pixels
    return pixels.point(_srgb_levels(gamma).tolist() * 3)


@lru_cache(maxsize=16)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of an ICC profile to sRGB. None if the profile is sRGB, damaged, or of another mode.

    sRGB comes in many profiles, which their names do not tell: one that hardly changes any colour is taken for it, so
    that its pictures keep their bits.
    """
    srgb = ImageCms.createProfile("sRGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile) if profile else ImageCms.createProfile("LAB"))
        header: Any = source.profile
        if header.xcolor_space.strip() != SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL)
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode in ("L", "RGB"):
        probe = Image.fromarray(_probe()).convert(mode)
        converted = ImageCms.applyTransform(probe, transform)
        changes = np.asarray(converted, np.int16) - np.asarray(probe.convert("RGB"), np.int16)
        if np.abs(changes).max() <= SRGB_TOLERANCE:
            return None
    return transform


def _probe() -> UInt8[np.ndarray, "27 27 3"]:
    """Return a picture of 9 x 9 x 9 colours, which are the corners of equal cubes."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)


@lru_cache
def _gamut(primaries: int) -> ImageFilter.Color3DLUT:
    """Return the filter that turns colours of other primaries, with the curve of sRGB, to sRGB."""
    levels = np.linspace(0, 1, 33)
    blue, green, red = np.meshgrid(levels, levels, levels, indexing="ij")
    colours = np.stack([red, green, blue], axis=-1)
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    table = _srgb_curve((linear @ np.array(WIDE_PRIMARIES[primaries]).T).clip(0, 1))
    return ImageFilter.Color3DLUT(33, table.ravel().tolist())


def _srgb_levels(gamma: float) -> UInt8[np.ndarray, " 256"]:
    """Return the sRGB level of each level of a PNG with a gamma (the exponent of its encoding)."""
    return (_srgb_curve((np.arange(256) / 255) ** (1 / gamma)) * 255 + 0.5).astype(np.uint8)


def _srgb_curve(linear: Float64[np.ndarray, ...]) -> Float64[np.ndarray, ...]:
    """Return light of 0 to 1 in the encoding of sRGB (IEC 61966-2-1), which is from 0 to 1 too."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
