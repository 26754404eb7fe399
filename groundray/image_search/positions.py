"""Position features of a pool of images, with which the match map ranks found images again.

    FOLDER/KEY/part-00012-003.parquet ...    parts of the images' row groups (`data/derived.py`)
    FOLDER/KEY/dataset.json                  written when all parts are
    FOLDER/KEY/positions.bin, positions.json made of the parts: one row for each image, mapped into memory

They lie beside the index (`index.py`), under a key of their own. Each position has its features in one byte each and a
scale in float32: the largest absolute value is 127. An image of 49 positions and width 384 takes 19 kB in the file, and
as much in the parts: of a million images 38 GB in all, and of 196 positions 151 GB.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int8, Int64
from PIL import Image

from groundray.data import image_decoder
from groundray.data.ahead import map_ahead
from groundray.data.derived import DerivedDataset, check_room, finalize, make_missing, open_derived
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset
from groundray.data.shards import READS
from groundray.image_search.explain import Matcher
from groundray.image_search.index import Tell, complete, each_decoded, made_on_either
from groundray.image_search.query_vector import finite
from groundray.image_search.towers import PixelBatch
from groundray.storage.block_seals import BlockSeals, SealingWriter, check_size, map_copy, map_sealed
from groundray.storage.cache_key import cache_key
from groundray.storage.folder import Folder, format_bytes
from groundray.storage.made_once import made_once

KIND = "image_positions"
FILE, ABOUT = "positions.bin", "positions.json"
FILES = (FILE, ABOUT)
FORMAT = 1  # of the file; increment it when its content changes
REPAIR = "delete it, and the next search makes it again"
LARGER_DISK = "choose a folder on a larger disk with --index, or search without ranking again (--rerank 0)"


@dataclass(frozen=True)
class Quantised:
    """Features of the positions of some images: `values` times the scale of their position.

    Attributes:
        scales: of each position.
        values: -127 to 127.
    """

    scales: Float32[np.ndarray, "image position"]
    values: Int8[np.ndarray, "image position dim"]

    @staticmethod
    def of(features: Float32[np.ndarray, "image position dim"]) -> Quantised:
        """Return features rounded to 255 levels of each position. A value is rounded by half its scale at most."""
        scales = np.maximum(np.abs(features).max(axis=2), 1e-12).astype(np.float32) / np.float32(127)
        return Quantised(scales, np.rint(features / scales[:, :, None]).astype(np.int8))

    def __len__(self) -> int:
        return len(self.scales)

    def float32(self) -> Float32[np.ndarray, "image position dim"]:
        """Return the features as numbers."""
        return self.values * self.scales[:, :, None]


def shape_of(matcher: Matcher) -> tuple[int, int]:
    """Return the number of positions of a picture and the width of their features."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    _, positions, width = matcher.position_features(matcher.preprocess(file.getvalue())[None]).shape
    return positions, width


def row_bytes(positions: int, width: int) -> int:
    """Return the size of an image's features."""
    return positions * (4 + width)


def find_positions(matcher: Matcher, images: Dataset, folder: str, device: str = "cpu") -> DerivedDataset:
    """Return the specification of the complete position features of these images, made on either kind of device; if
    there are none, that of `device`. Arguments as of `positions_spec`."""
    return made_on_either(partial(positions_spec, matcher, images, folder), device)


def positions_spec(matcher: Matcher, images: Dataset, folder: str, device: str = "cpu") -> DerivedDataset:
    """Return the specification of the position features of these images, in their own subfolder of `folder`.

    Args:
        device: kind of device that makes the features, `cpu` or `cuda`.
    """
    positions, width = shape_of(matcher)
    model = {"matcher": matcher.fingerprint()}
    code = (image_decoder, *matcher.code, each_decoded, finite, PositionEncoder, Quantised)
    key_of = partial(cache_key, code=code, device=device, stored="int8")
    key = key_of({"images": images.fingerprint, **model})
    return DerivedDataset(
        images,
        Folder.at(folder) / key[:16],
        key,
        KIND,
        bytes_per_row=row_bytes(positions, width),
        provenance={"positions": positions, "width": width},
        title="position features",
        out_of_space_hint=LARGER_DISK,
        lineage=key_of(model),
    )


@dataclass(frozen=True)
class PositionEncoder:
    """Encodes images as rows of position features.

    Attributes:
        matcher: the model, on the device that it computes on.
        images: folder of the images, for messages.
    """

    matcher: Matcher
    images: str
    columns: tuple[str, ...] = ("id", "image")

    def decode(self, table: pa.Table) -> PixelBatch:
        """Return pixels.

        Raises:
            ValueError: an image cannot be decoded; the message names it.
        """
        return np.stack(each_decoded(table, self.images, self.matcher.preprocess))

    def encode(self, item: PixelBatch) -> dict[str, pa.Array]:
        """Return the column of features: scales, then values.

        Raises:
            ValueError: a feature is not finite.
        """
        found = Quantised.of(finite(self.matcher.position_features(item), "position features"))
        rows = zip(found.scales.astype("<f4"), found.values, strict=True)
        return {"positions": pa.array([scales.tobytes() + values.tobytes() for scales, values in rows], pa.binary())}


class Positions:
    """Position features of a pool, by row number.

    Args:
        content: bytes of all images, image after image.
        folder: that they are from; None if they are made up.
    """

    def __init__(self, content: np.ndarray, positions: int, width: int, folder: Folder | None = None):
        self.folder = folder
        self._rows = content.reshape(-1, row_bytes(positions, width))
        self._positions, self._width = positions, width

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of positions of an image and width of their features."""
        return self._positions, self._width

    def __getitem__(self, rows: Int64[np.ndarray, " row"]) -> Quantised:
        """Return the features of some images. Their bytes alone are read of a file that is mapped into memory."""
        taken, scales = np.asarray(self._rows[rows]), 4 * self._positions
        values = taken[:, scales:].view(np.int8)
        return Quantised(
            np.ascontiguousarray(taken[:, :scales]).view("<f4"), values.reshape(-1, self._positions, self._width)
        )


def open_positions(spec: DerivedDataset, tell: Tell) -> Positions:
    """Open position features whose parts are complete. Their file is made if it is missing or damaged. Of a store it is
    copied to a temporary file.

    Raises:
        FileNotFoundError: the features are not made.
        ValueError: they are damaged, the message names the repair; or the disk, or TMPDIR's, has no room.
    """
    dataset = complete(spec, spec.title)

    def read() -> Positions:
        mapped = map_sealed if spec.folder.local else map_copy
        return Positions(mapped(spec.folder, FILE, _check(spec, dataset), REPAIR), *_shape(spec), spec.folder)

    return made_once(spec.folder, "positions", FILES, read, lambda: _write(spec, dataset), tell)


def make_positions_file(spec: DerivedDataset, tell: Tell) -> None:
    """Make the file of position features whose parts are complete, unless it is there. What is there is not read.

    Raises:
        FileNotFoundError, ValueError: as `open_positions`.
    """
    dataset = complete(spec, spec.title)
    made_once(spec.folder, "positions", FILES, lambda: _check(spec, dataset), lambda: _write(spec, dataset), tell)


def check_positions_room(spec: DerivedDataset) -> None:
    """Check that the disk has room for the missing parts and for the file that is made of them.

    Raises:
        ValueError: it has not; the message has both sizes and the repair.
    """
    check_room(spec)
    if spec.folder.local and not spec.folder.exists(ABOUT):
        needed = spec.bytes if open_derived(spec) else 2 * spec.bytes
        spec.folder.check_room(needed, f"{spec.title} of {spec.source.folder} take", LARGER_DISK)


def make_position_features(spec: DerivedDataset, matcher: Matcher) -> Iterator[int]:
    """Make the missing parts of position features in this process and finalize them. Yields the number of images of
    each task.

    Raises:
        ValueError: the disk has no room, or an image cannot be decoded; the message names it.
    """
    check_positions_room(spec)
    yield from make_missing(spec, PositionEncoder(matcher, str(spec.source.folder)))
    finalize(spec)


def make_positions(matcher: Matcher, spec: DerivedDataset, tell: Tell) -> Positions:
    """Open position features; those that are missing are made in this process, after a line that says their size."""
    if open_derived(spec) is None:
        tell(size_line(spec))
        for _ in make_position_features(spec, matcher):
            pass
    return open_positions(spec, tell)


def size_line(spec: DerivedDataset) -> str:
    """Return what making the features takes, in a line for the user."""
    positions, width = _shape(spec)
    return (
        f"position features of {spec.source.rows:,} images ({positions} positions of width {width}), "
        f"{format_bytes(2 * spec.bytes)} in total, to {spec.folder}: they rank found images again (--rerank 0: none)"
    )


def _shape(spec: DerivedDataset) -> tuple[int, int]:
    return spec.provenance["positions"], spec.provenance["width"]


def _check(spec: DerivedDataset, dataset: Dataset) -> BlockSeals:
    """Return the seals of the file, after a check of its size."""
    about = spec.folder.read_sealed(ABOUT, repair=REPAIR)
    if (about.get("format"), about.get("made_of")) != (FORMAT, dataset.fingerprint):
        raise FileNotFoundError(f"{spec.folder}/{ABOUT} is not of these position features")
    seals = BlockSeals.parse(about["file"])
    check_size(spec.folder, FILE, seals, REPAIR)
    return seals


def _write(spec: DerivedDataset, dataset: Dataset) -> None:
    spec.folder.check_room(dataset.rows * row_bytes(*_shape(spec)), "the file of position features takes", LARGER_DISK)
    with spec.folder.open_output(FILE) as file:
        writer = SealingWriter(file)
        for table in _groups(dataset):
            for row in table["positions"]:
                writer.write(row.as_buffer())
    about = {"format": FORMAT, "made_of": dataset.fingerprint, "file": writer.seals().as_json()}
    spec.folder.write_sealed(ABOUT, about)


def _groups(dataset: Dataset) -> Iterator[pa.Table]:
    """Yield the row groups, read in parallel."""
    with ThreadPoolExecutor(READS) as pool:
        yield from map_ahead(
            pool, lambda group: read_group(dataset, group, ["positions"]), range(len(dataset.groups)), 2 * READS
        )
