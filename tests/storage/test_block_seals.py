"""Files sealed by block: each damage is found, in the whole file and in a part of it."""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from groundray.storage import block_seals
from groundray.storage.block_seals import BlockSeals, SealingWriter, map_copy, map_sealed, read_sealed_bytes
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_seals, "BLOCK_BYTES", 8)
    monkeypatch.setattr(block_seals, "READ_BYTES", 16)


def random_bytes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, count, np.uint8)


@given(some.lists(some.binary(max_size=30), max_size=8))
def test_a_file_written_in_pieces_has_the_seals_of_the_whole(pieces: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(block_seals, "BLOCK_BYTES", 8)
        file = io.BytesIO()
        writer = SealingWriter(file)
        for piece in pieces:
            writer.write(piece)
        whole = b"".join(pieces)
        assert file.getvalue() == whole
        assert writer.bytes == len(whole)
        assert writer.seals() == BlockSeals.of(np.frombuffer(whole, np.uint8))
        assert len(writer.seals().blocks) == -(-len(whole) // 8)
        assert BlockSeals.parse(writer.seals().as_json()) == writer.seals()


def test_arrays_are_written_as_their_bytes() -> None:
    file, array = io.BytesIO(), np.arange(12, dtype=np.float16).reshape(3, 4)
    writer = SealingWriter(file)
    for each in (array, array[:0], np.empty(0, np.int64)):
        writer.write(each)
    assert file.getvalue() == array.tobytes()


def test_any_part_of_a_file_is_read_and_checked(anywhere: str) -> None:
    folder, content = Folder.at(anywhere).make(), random_bytes(45)
    seals = BlockSeals.of(content)
    folder.write_bytes("x", content.tobytes())
    for start, stop in ((0, 45), (0, 1), (44, 45), (7, 9), (16, 40), (5, 5)):
        found = read_sealed_bytes(folder, "x", seals, start, stop, "make it again")
        assert found.tolist() == content[start:stop].tolist()
    content[20] ^= 1  # in the third block
    folder.write_bytes("x", content.tobytes())
    assert read_sealed_bytes(folder, "x", seals, 0, 16, "").tolist() == content[:16].tolist()
    with pytest.raises(Damaged, match=r"x is damaged: the checksum of its bytes from 16 on .*: make it again"):
        read_sealed_bytes(folder, "x", seals, 3, 17, "make it again")


def test_a_file_in_a_store_is_mapped_from_a_copy_without_a_name(
    anywhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    folder, content = Folder.at(anywhere).make(), random_bytes(45)
    seals = BlockSeals.of(content)
    folder.write_bytes("x", content.tobytes())
    found = map_copy(folder, "x", seals, "")
    assert isinstance(found, np.memmap)
    assert found.tolist() == content.tolist()
    assert not list(temporary.iterdir())
    content[20] ^= 1
    folder.write_bytes("x", content.tobytes())
    with pytest.raises(Damaged, match="the checksum of its bytes from 16 on"):
        map_copy(folder, "x", seals, "")
    folder.write_bytes("x", content[:40].tobytes())
    with pytest.raises(Damaged, match="it has 40 bytes of 45"):
        map_copy(folder, "x", seals, "")
    disk = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk._replace(free=40))
    folder.write_bytes("x", content.tobytes())
    with pytest.raises(ValueError, match=f"copy of {folder}/x takes 45 B, 40 B are free at {temporary}.* TMPDIR"):
        map_copy(folder, "x", seals, "")


def test_a_mapped_file_is_checked_and_keeps_what_was_written(tmp_path: object) -> None:
    folder, content = Folder.at(str(tmp_path)), random_bytes(45)
    seals = BlockSeals.of(content)
    folder.write_bytes("x", content.tobytes())
    mapped = map_sealed(folder, "x", seals, "")
    assert mapped.tolist() == content.tolist()
    mapped[3] = ~mapped[3]
    assert folder.read_bytes("x") == content.tobytes()
    for damaged, reason in (
        (content[:44], "44 bytes of 45"),
        (content[::-1], "from 0 on"),
        (np.r_[content[:44], content[:1]], "from 40 on"),
    ):
        folder.write_bytes("x", damaged.tobytes())
        with pytest.raises(Damaged, match=reason):
            map_sealed(folder, "x", seals, "")
    folder.delete("x")
    with pytest.raises(Damaged, match="missing"):
        map_sealed(folder, "x", seals, "")
