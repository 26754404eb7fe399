"""Reads and checks the images of a source on the cluster's CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from groundray.data.image_decoder import UnusableImage
from groundray.data.sources.image_files import CheckedImage, check_image
from groundray.runtime.data.ray_stream import quiet_context
from groundray.storage.folder import Folder

IMAGES_PER_TASK = 64
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class CheckImages:
    """Reads and decodes the images of a folder whose names are in a block."""

    folder: Folder

    def __call__(self, names: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(
            [self.check(file_names) for file_names in names["names"].to_pylist()], schema=SCHEMA
        )

    def check(self, file_names: Sequence[str]) -> dict[str, object]:
        try:
            image = check_image(self.folder, file_names)
        except UnusableImage as error:
            return {"reason": error.reason, "detail": str(error)}
        return {"image": image.encoded, "width": image.width, "height": image.height}


def check_images(folder: Folder, names: Sequence[Sequence[str]]) -> Iterator[CheckedImage | UnusableImage]:
    """Yield each image of a folder in the order of `names`, or the reason why it cannot be used.

    One block of images is in memory at a time.

    Args:
        names: for each image, the names that its file may have.
    """
    if not names:
        return
    context = quiet_context()
    context.execution_options.preserve_order = True
    with DataContext.current(context):
        blocks = -(-len(names) // IMAGES_PER_TASK)
        dataset = ray.data.from_items(
            [{"names": list(file_names)} for file_names in names], override_num_blocks=blocks
        ).map_batches(CheckImages(folder), batch_size=None, batch_format="pyarrow")
        tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        for table in tables:
            for row in table.to_pylist():
                if row["reason"] is None:
                    yield CheckedImage(row["image"], row["width"], row["height"])
                else:
                    yield UnusableImage(row["reason"], row["detail"])
