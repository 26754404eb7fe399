"""What the tests share: shapes checked at run time, a small world on disk, one Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a model hub, nor waits for one

# the shapes of every public tensor function are checked while the tests run
install_import_hook(
    [
        "groundray.loss",
        "groundray.model",
        "groundray.stage.grounding",
        "groundray.stage.recall",
        "groundray.data.batches",
    ],
    "beartype.beartype",
)


@dataclass(frozen=True)
class SmallWorld:
    """An embedded world of 72 scenes to train on and 20 held out."""

    source: Path
    shards: Path

    def settings(self, *words: str) -> list[str]:
        """Command-line words of the preset `demo` for this world: small batches, no tracking."""
        return [
            f"--model.language.tokenizer={self.source / 'tokenizer'}",
            f"--grounding.train={self.shards / 'train'}",
            f"--grounding.val={self.shards / 'val'}",
            "--grounding.batch_size=8",
            "--grounding.epochs=2",
            "--tracking.enabled=false",
            *words,
        ]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    from groundray.data.scenes import write_world
    from groundray.data.shards import write_shards
    from groundray.data.sources import coco
    from groundray.data.sources.images import check_image
    from groundray.storage import Folder

    root = tmp_path_factory.mktemp("world")
    source = root / "source"
    write_world(source, num_scenes=72, num_val=20, objects_a_shape=4, workers=1)
    for split in ("train", "val"):
        found = coco.read_captions(source / "coco" / "annotations" / f"captions_{split}.json")
        files = ((image, check_image(source / "coco" / split, image.file_names)) for image in found.images)
        folder = Folder.at(root / "shards" / split).make()
        write_shards(folder, "captions", coco.rows(files), {}, {}, row_group_bytes=40_000)
    return SmallWorld(source, root / "shards")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """The one Ray cluster of the session, for tests marked `ray`."""
    from groundray.runtime import cluster

    with cluster.connect():
        yield
