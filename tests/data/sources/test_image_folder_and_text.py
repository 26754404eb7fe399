"""Image folders and text files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from groundray.data.sources.image_folder import read_folder
from groundray.data.sources.rejected import Rejected, tally
from groundray.data.sources.text import read_lines


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "green").save(out, "PNG")
    return out.getvalue()


PICTURE = picture()


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
    assert found.rejected == ()


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
