"""Reading and checking a source's images on the cluster's CPUs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext

from groundray.data.sources.image_files import CheckedImage, UnusableImage, check_image
from groundray.storage.folder import Folder

IMAGES_A_TASK = 64
CHECKED = pa.schema(
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
    """Reads and decodes the images of a folder that a block names."""

    folder: Folder

    def __call__(self, names: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self.check(some) for some in names["names"].to_pylist()], schema=CHECKED)

    def check(self, names: Sequence[str]) -> dict[str, object]:
        try:
            found = check_image(self.folder, names)
        except UnusableImage as problem:
            return {"reason": problem.reason, "detail": str(problem)}
        return {"image": found.encoded, "width": found.width, "height": found.height}


def check_images(folder: Folder, names: Sequence[Sequence[str]]) -> Iterator[CheckedImage | UnusableImage]:
    """Each image of a folder, in the order of `names`: its bytes, or why it cannot be used.

    Each entry of `names` holds the names that an image's file may have.
    The images pass through one block at a time, never all at once.
    """
    if not names:
        return
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with DataContext.current(context):
        blocks = -(-len(names) // IMAGES_A_TASK)
        dataset = ray.data.from_items(
            [{"names": list(some)} for some in names], override_num_blocks=blocks
        ).map_batches(CheckImages(folder), batch_size=None, batch_format="pyarrow")
        tables: Any = dataset.iter_batches(batch_size=None, batch_format="pyarrow")
        for table in tables:
            for row in table.to_pylist():
                if row["reason"] is None:
                    yield CheckedImage(row["image"], row["width"], row["height"])
                else:
                    yield UnusableImage(row["reason"], row["detail"])
