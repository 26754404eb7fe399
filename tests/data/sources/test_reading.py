"""Images of a part: on any number of threads they come in order, and what cannot be used is rejected by its id."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from groundray.data.image_decoder import decode
from groundray.data.sources.caption_text import distinct
from groundray.data.sources.image_files import ImageRules, check_image
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import Rejected
from groundray.storage import object_store
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


def test_images_are_made_smaller_upright_and_small_ones_rejected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.effect_noise((60, 20), 50).save(tmp_path / "large.png", exif=exif)
    Image.effect_noise((30, 20), 50).save(tmp_path / "fits.png")
    Image.effect_noise((30, 9), 50).save(tmp_path / "small.png")
    rejected: list[Rejected] = []
    reading = Reading(rejected, rules=ImageRules(min_side=10, max_side=30, quality=80))
    items = [Item(name, (f"{name}.png",)) for name in ("large", "fits", "small")]
    (large, fits) = (image for _, image in reading.files(Folder.at(tmp_path), items))
    assert (large.width, large.height) == decode(large.encoded).size == (10, 30)
    assert large.encoded.startswith(b"\xff\xd8")
    assert fits.encoded == (tmp_path / "fits.png").read_bytes()
    assert [(item.id, item.reason) for item in rejected] == [("small", "too small")]


@pytest.mark.parametrize("anywhere", ["s3", "gs"], indirect=True)
def test_an_object_that_cannot_be_read_is_rejected_and_a_store_that_cannot_ends_the_command(
    anywhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder.at(anywhere)
    out = io.BytesIO()
    Image.effect_noise((8, 9), 50).save(out, "JPEG")
    for name in ("a.jpg", "b.jpg"):
        folder.write_bytes(name, out.getvalue())
    real = Folder.read_bytes

    def denied(folder: Folder, name: str) -> bytes:
        if name == "a.jpg":
            raise OSError(f"{folder}/{name}: expected credentials that may read it")
        return real(folder, name)

    monkeypatch.setattr(Folder, "read_bytes", denied)
    items = [Item(name, (f"{name}.jpg",)) for name in "abc"]
    rejected: list[Rejected] = []
    assert [item.id for item, _ in Reading(rejected).files(folder, items)] == ["b"]
    assert [(item.id, item.reason) for item in rejected] == [("a", "unreadable"), ("c", "missing")]

    def refuse(url: str) -> None:
        raise OSError(f"{url}: expected an answer, got none")

    monkeypatch.setattr(object_store, "probe", refuse)
    with pytest.raises(OSError, match="expected an answer"):
        list(Reading(rejected).files(folder, items))


def test_captions_that_say_the_same_are_told_by_their_words() -> None:
    texts = ["A dog runs.", "a dog  runs", "A dog, runs!", "A dog ran.", "\u00c9t\u00e9", "E\u0301t\u00e9 "]
    assert distinct(texts) == ["A dog runs.", "A dog ran.", "\u00c9t\u00e9"]
