"""Images of a part: on any number of threads they come in order, and what cannot be used is rejected by its id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from groundray.data.sources.image_files import check_image
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class Item:
    id: str
    file_names: tuple[str, ...]


@pytest.mark.parametrize("threads", [1, 3])
def test_images_come_in_order_and_others_are_rejected(tmp_path: Path, threads: int) -> None:
    for number in range(40):
        Image.effect_noise((8 + number, 9), 50).save(tmp_path / f"{number}.jpg")
    (tmp_path / "3.jpg").write_bytes(b"not a picture")
    folder = Folder.at(tmp_path)
    items = [Item(f"i{number}", ("missing.png", f"{number}.jpg")) for number in range(40)]
    items += [Item("none", ("missing.png", "missing.jpg")), Item("out", ("../outside.jpg",))]
    rejected: list[Rejected] = []
    found = list(Reading(rejected, threads).files(folder, iter(items)))
    assert [item for item, _ in found] == [item for item in items[:40] if item.id != "i3"]
    assert all(image == check_image(folder, item.file_names) for item, image in found)
    assert [(item.what, item.id, item.reason) for item in rejected] == [
        ("image", "i3", "not an image"),
        ("image", "none", "missing"),
        ("image", "out", "outside"),
    ]
