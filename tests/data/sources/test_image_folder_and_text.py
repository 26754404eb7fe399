"""Image folders and text files."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from groundray.data.sources.image_files import all_files
from groundray.data.sources.image_folder import ClassFolders, unread
from groundray.data.sources.rejected import Rejected, tally
from groundray.data.sources.text import read_lines


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(out, "PNG")
    return out.getvalue()


PICTURE = picture()


def read_folder(root: Path, classes: Sequence[str] | None = None) -> SimpleNamespace:
    rejected: list[Rejected] = []
    found = ClassFolders(root, rejected, classes)
    images = list(found.images())
    assert len(images) == found.count
    return SimpleNamespace(images=images, classes=found.classes, rejected=rejected, passed_over=found.passed_over)


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PICTURE)


def test_classes_are_numbered_alphabetically(tmp_path: Path) -> None:
    files(tmp_path, "dog/b.jpg", "dog/deep/a.jpg", "cat/z.jpg", "cat/.hidden")
    found = read_folder(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [(image.id, image.label) for image in found.images] == [
        ("cat/z.jpg", 0),
        ("dog/b.jpg", 1),
        ("dog/deep/a.jpg", 1),
    ]
    assert found.rejected == []


def test_files_are_listed_in_the_order_of_their_paths(tmp_path: Path) -> None:
    files(tmp_path, "a/c.png", "a.png", "a/b/z.png", "a-b/1.png", "a/b.png", "b")
    assert list(all_files(tmp_path)) == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_files_outside_known_classes_are_rejected(tmp_path: Path) -> None:
    files(tmp_path, "dog/a.jpg", "emu/a.jpg", "emu/b.jpg", "stray.jpg")
    found = read_folder(tmp_path, classes=["cat", "dog"])
    assert [(image.id, image.label) for image in found.images] == [("dog/a.jpg", 1)]
    assert tally(found.rejected) == {"file: in no class": 1, "image: unknown class": 2}


def test_folder_without_classes_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected class folders such as"):
        read_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a folder of class folders"):
        read_folder(tmp_path / "none")


def test_folders_without_pictures_are_told_and_are_no_classes(tmp_path: Path) -> None:
    files(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "old" / "deep").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("not a picture")
    found = read_folder(tmp_path)
    assert found.classes == ("cat", "dog")
    assert [(item.what, item.id, item.reason) for item in found.rejected] == [
        ("folder", "notes", "no picture"),
        ("file", "notes/readme.txt", "in no class"),
        ("folder", "old", "no picture"),
    ]
    assert len(found.images) == 2


def test_hidden_and_system_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    """At any depth: a folder of them is no class, and counts once."""
    files(tmp_path, "cat/1.png", "cat/Thumbs.db", "cat/.DS_Store", "cat/.ipynb_checkpoints/1.png", "cat/deep/._1.png")
    files(tmp_path, "__MACOSX/cat/._1.png", ".git/1.png", "desktop.ini", "@eaDir/1.png")
    found = read_folder(tmp_path)
    assert [image.id for image in found.images] == ["cat/1.png"]
    assert (found.classes, found.rejected, found.passed_over) == (("cat",), [], 8)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    files(store, "1.png", "more/2.png")
    files(root, "cat/3.png")
    (root / "dog").symlink_to(store)
    (root / "cat" / "also").symlink_to(store / "more")
    (root / "cat" / "circle").symlink_to(root / "cat")
    (root / "cat" / "itself.png").symlink_to("itself.png")
    (root / "cat" / "broken.png").symlink_to("nowhere")
    found = read_folder(root)
    assert [image.id for image in found.images] == [
        *("cat/3.png", "cat/also/2.png", "cat/broken.png", "cat/itself.png", "dog/1.png", "dog/more/2.png"),
    ]
    assert [(item.id, item.reason) for item in found.rejected] == [("cat/circle", "link loop")]
    listed = list(all_files(root))
    assert listed == sorted(listed)
    assert {path.relative_to(root).as_posix() for path in listed if path.is_file()} == {
        *("cat/3.png", "cat/also/2.png", "dog/1.png", "dog/more/2.png"),
    }


def test_names_that_are_not_utf8_are_rejected_by_their_escaped_name(tmp_path: Path) -> None:
    files(
        tmp_path,
        "dog/1.png",
        os.fsdecode(b"dog/caf\xe9.png"),
        os.fsdecode(b"\xc4sel/1.png"),
        os.fsdecode(b"str\xe4y.png"),
    )
    found = read_folder(tmp_path)
    assert [image.id for image in found.images] == ["dog/1.png"]
    assert found.classes == ("dog",)
    assert sorted((item.what, item.id, item.reason) for item in found.rejected) == [
        ("folder", r"\xc4sel", "name not UTF-8"),
        ("image", r"dog/caf\xe9.png", "name not UTF-8"),
        ("image", r"str\xe4y.png", "name not UTF-8"),
    ]
    assert all(item.detail.encode() for item in found.rejected)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "cat/1.png", "cat/deep/2.png")
    listing = os.scandir

    def denied(path: Path) -> Any:
        if path.name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", denied)
    found = read_folder(tmp_path)
    assert [image.id for image in found.images] == ["cat/1.png"]
    assert [(item.what, item.id, item.reason) for item in found.rejected] == [("folder", "cat/deep", "unreadable")]


def test_folders_beside_train_and_val_are_named(tmp_path: Path) -> None:
    files(tmp_path, "train/dog/1.png", "validation/dog/1.png", "__MACOSX/1.png", "readme.png", ".cache/1.png")
    assert unread(tmp_path, ["train"]) == ["validation"]


def test_each_nonblank_line_is_a_row(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("  two  words \n\n\t\nnaïve\n".encode() + b"\xff\xfe\nlast")
    rejected: list[Rejected] = []
    assert list(read_lines([file, file], rejected))[:3] == [
        {"id": "text.txt:1", "text": "two words"},
        {"id": "text.txt:4", "text": "naïve"},
        {"id": "text.txt:6", "text": "last"},
    ]
    assert tally(rejected) == {"line: not UTF-8": 2}
    assert rejected[0].id == "text.txt:5"


@pytest.mark.parametrize(
    "content",
    [
        b"the dog\rthe cat\r",
        b"\xef\xbb\xbfthe dog\r\nthe cat\r\n",
        b"\xef\xbb\xbf\n\xef\xbb\xbfthe dog\nthe cat",
        "\ufeffthe dog\nthe cat\n".encode("utf-16-le"),
        "\ufeffthe dog\r\nthe cat".encode("utf-16-be"),
    ],
)
def test_text_of_any_mark_and_line_ends(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    rejected: list[Rejected] = []
    assert [row["text"] for row in read_lines([file], rejected)] == ["the dog", "the cat"]
    assert rejected == []


def test_text_in_utf_16_without_a_mark_is_rejected_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("the dog\nthe cat\n".encode("utf-16-le"))
    rejected: list[Rejected] = []
    assert list(read_lines([file], rejected)) == []
    assert {item.reason for item in rejected} == {"not UTF-8"}


def test_long_lines_are_split_into_even_parts(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a b c d e f g\nh i\n\nj k l\n")
    assert list(read_lines([file], [], max_words=3)) == [
        {"id": "text.txt:1.1", "text": "a b"},
        {"id": "text.txt:1.2", "text": "c d"},
        {"id": "text.txt:1.3", "text": "e f g"},
        {"id": "text.txt:2", "text": "h i"},
        {"id": "text.txt:4", "text": "j k l"},
    ]
