"""COCO captions: unusable items are rejected with their reason, all others are read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundray.data.image_decoder import UnusableImage
from groundray.data.sources import image_files
from groundray.data.sources.coco import CaptionedImage, Captions
from groundray.data.sources.image_files import check_image
from groundray.data.sources.rejected import Rejected, tally
from groundray.storage.folder import Folder


def write(tmp_path: Path, content: Any) -> Path:
    file = tmp_path / "captions.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def read(tmp_path: Path, content: Any) -> tuple[list[CaptionedImage], list[Rejected]]:
    rejected: list[Rejected] = []
    captions = Captions(write(tmp_path, content), tmp_path, rejected)
    images = list(captions.images())
    assert len(images) == captions.count
    return images, rejected


def picture(size: tuple[int, int] = (40, 30), format: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(out, format)
    return out.getvalue()


def test_usable_images_are_read_in_order_of_ids(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 9, "file_name": "b.jpg"}, {"id": 4, "file_name": "a.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 9, "caption": " two  spaces\n"},
            {"id": 2, "image_id": 4, "caption": "first"},
            {"id": 3, "image_id": 4, "caption": "second"},
        ],
    }
    expected = [
        CaptionedImage("4", ("a.jpg",), ("first", "second")),
        CaptionedImage("9", ("b.jpg",), ("two spaces",)),
    ]
    assert read(tmp_path, content) == (expected, [])
    assert read(tmp_path, dict(reversed(content.items())) | {"info": {"a": [1]}}) == (expected, [])


def test_every_unusable_item_is_rejected_with_its_reason(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": 1, "file_name": "a.jpg"},
            {"id": 1, "file_name": "again.jpg"},
            {"id": 2},
            "text",
            {"id": 3, "file_name": "silent.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "caption": "good"},
            {"id": 1, "image_id": 1, "caption": "same id"},
            {"id": 2, "image_id": 1, "caption": "   "},
            {"id": 3, "image_id": 1, "caption": "..."},
            {"id": 4, "image_id": 77, "caption": "of nothing"},
            {"id": 5, "image_id": 1, "caption": None},
            {"id": 6, "image_id": 1},
            {"image_id": 1, "caption": "no id"},
            [],
        ],
    }
    images, rejected = read(tmp_path, content)
    assert [image.captions for image in images] == [("good",)]
    assert tally(rejected) == {
        "caption: duplicate id": 1,
        "caption: empty": 2,
        "caption: malformed": 4,
        "caption: unknown image": 1,
        "image: duplicate id": 1,
        "image: malformed": 2,
        "image: no caption": 1,
    }
    assert all(item.detail for item in rejected)


def test_ids_are_numbers_or_text_on_either_side(tmp_path: Path) -> None:
    content = {
        "images": [
            {"id": "10", "file_name": "a.jpg"},
            {"id": 9, "file_name": "b.jpg"},
            {"id": 8.0, "file_name": "c.jpg"},
            {"id": "0007", "file_name": "d.jpg"},
            {"id": "7", "file_name": "e.jpg"},
            {"id": "n-3", "file_name": "f.jpg"},
            {"id": 10, "file_name": "again.jpg"},
        ],
        "annotations": [
            {"id": number, "image_id": id, "caption": f"caption {number}"}
            for number, id in enumerate([10, "10", "9", 9.0, 8, "8", "0007", 7, "7", "n-3", "x", 8.5])
        ],
    }
    images, rejected = read(tmp_path, content)
    assert {image.id: [caption.split()[-1] for caption in image.captions] for image in images} == {
        "8": ["4", "5"],
        "9": ["2", "3"],
        "0007": ["6"],
        "10": ["0", "1"],
        "7": ["7", "8"],
        "n-3": ["9"],
    }
    assert [image.id for image in images] == ["8", "9", "0007", "10", "7", "n-3"]
    assert tally(rejected) == {"caption: malformed": 1, "caption: unknown image": 1, "image: duplicate id": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"captions\.json is not JSON after 0 entries, at character 12"),
        ("[]", "expected COCO captions with a list 'images'"),
        ('{"images": []}', "expected COCO captions with a list 'annotations'"),
        ("[" * 100_000, "is not JSON"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 1}, {"id', "is not JSON after 2 entries"),
        ('{"images": [], "annotations": {}}', "expected COCO captions with a list 'annotations'"),
        ('{"images" []}', "expected ':' after the name"),
        ("{images: []}", "expected a name in double quotes"),
        ('{"info": 1 "images": []}', "expected ',' or '}' after the value of 'info'"),
    ],
)
def test_file_without_captions_raises(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)


def test_image_bytes_are_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    found = check_image(Folder.at(tmp_path), ["no.jpg", "a.jpg"])
    assert (found.encoded, found.width, found.height) == ((tmp_path / "a.jpg").read_bytes(), 40, 30)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.jpg", None, "missing"),
        ("empty.jpg", b"", "not an image"),
        ("text.jpg", b"this is no picture at all", "not an image"),
        ("cut.jpg", picture()[:-400], "truncated"),
        ("../out.jpg", None, "outside"),
        ("/etc/hostname", None, "outside"),
        ("cut.png", picture(format="PNG")[:-400], "truncated"),
    ],
)
def test_unusable_image_raises_with_its_reason(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnusableImage) as caught:
        check_image(Folder.at(tmp_path), [name])
    assert caught.value.reason == reason


def test_links_are_followed_and_an_unreadable_file_spoils_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "store.jpg").write_bytes(picture())
    (images / "link.jpg").symlink_to(tmp_path / "store.jpg")
    (images / "loop.jpg").symlink_to("loop.jpg")
    (images / "folder.jpg").mkdir()
    assert check_image(Folder.at(images), ["link.jpg"]).encoded == (tmp_path / "store.jpg").read_bytes()
    for name, reason in (("loop.jpg", "missing"), ("folder.jpg", "missing"), ("x" * 300, "unreadable")):
        with pytest.raises(UnusableImage) as caught:
            check_image(Folder.at(images), [name])
        assert caught.value.reason == reason

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(UnusableImage, match=r"link\.jpg cannot be read: Permission denied") as caught:
        check_image(Folder.at(images), ["link.jpg"])
    assert caught.value.reason == "unreadable"
    monkeypatch.setattr(image_files, "MAX_BYTES", 10)
    with pytest.raises(UnusableImage, match="at most 10 bytes"):
        check_image(Folder.at(images), ["link.jpg"])


def test_decompression_bomb_is_not_decoded(tmp_path: Path) -> None:
    """A small file whose header claims 30,000 x 30,000 pixels."""
    out = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(out, "PNG")
    (tmp_path / "bomb.png").write_bytes(out.getvalue())
    with pytest.raises(UnusableImage, match="pixels") as caught:
        check_image(Folder.at(tmp_path), ["bomb.png"])
    assert caught.value.reason == "too large"
