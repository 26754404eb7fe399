"""Small pictures of some images of a pool, for the pictures of a report."""

from __future__ import annotations

import io
from collections.abc import Sequence

from groundray.data.image_decoder import UnusableImage, decode
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset

SIDE, QUALITY = 128, 85  # longer side in pixels, and JPEG quality


def thumbnails(images: Dataset, rows: Sequence[int]) -> list[bytes]:
    """Return a small JPEG of each image, given their row numbers. A group of rows is read once for all of its images.

    Raises:
        ValueError: an image cannot be decoded; the message names it.
    """
    made: dict[int, bytes] = {}
    groups = images.group_ends.searchsorted(sorted(set(rows)), side="right")
    for group, row in zip(groups.tolist(), sorted(set(rows)), strict=True):
        start = int(images.group_ends[group] - images.group_sizes[group])
        if row in made:
            continue
        table = read_group(images, group, ["id", "image"])
        for own in (one for one in set(rows) if start <= one < start + len(table)):
            made[own] = _small(images, table["id"][own - start].as_py(), table["image"][own - start].as_py())
    return [made[row] for row in rows]


def _small(images: Dataset, id: str, encoded: bytes) -> bytes:
    try:
        small = decode(encoded, SIDE)
    except UnusableImage as error:
        raise ValueError(f"{images.folder}: image {id!r} cannot be decoded: {error}") from error
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
