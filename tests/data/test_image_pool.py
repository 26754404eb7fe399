"""Image files checked in several processes: the order, the bytes and the reasons of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SmallWorld

from groundray.data.image_decoder import UnusableImage
from groundray.data.sources import image_pool
from groundray.data.sources.image_files import CheckedImage, check_image
from groundray.storage.folder import Folder


@pytest.mark.parametrize("per_task", [5, 64])
def test_processes_give_what_one_process_gives(
    world: SmallWorld, per_task: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [file.name for file in (world.source / "coco" / "val").iterdir()]
    for name in names:
        (tmp_path / name).write_bytes((world.source / "coco" / "val" / name).read_bytes())
    (tmp_path / names[3]).write_bytes(b"not a picture")
    folder = Folder.at(tmp_path)
    candidates = [("missing.png", name) for name in names] + [("missing.png", "missing.jpg"), ("../outside.jpg",)]

    monkeypatch.setattr(image_pool, "IMAGES_PER_TASK", per_task)
    images = list(image_pool.checked_images(folder, candidates, workers=2))
    assert len(images) == len(candidates)
    reasons = {}
    for number, (image, some) in enumerate(zip(images, candidates, strict=True)):
        if isinstance(image, CheckedImage):
            assert image == check_image(folder, some)
        else:
            with pytest.raises(UnusableImage) as expected:
                check_image(folder, some)
            assert str(image) == str(expected.value)
            reasons[number] = image.reason
    assert reasons == {3: "not an image", len(names): "missing", len(names) + 1: "outside"}
