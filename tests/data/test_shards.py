"""Shards: bounded row groups, reproducible bytes, and detection of damage."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundray.data.footers import check_unchanged
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset, arrow_schema, class_name
from groundray.data.shards import GROUPS_PER_SHARD, OPTIONS, verify_shards, write_shards
from groundray.storage.folder import Folder


def rows(count: int, size: int = 1000) -> list[dict[str, Any]]:
    """Return rows of kind `captions` of about `size` bytes each, whose bytes are their number."""
    return [
        {"id": str(i), "image": bytes([i % 251]) * size, "width": i, "height": 1, "captions": [f"caption {i}", "b"]}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = Folder.at(tmp_path_factory.mktemp("shards"))
    return write_shards(folder, "captions", rows(100), {"images": 100}, {"format": "test"}, row_group_bytes=3500)


def test_written_rows_are_read_back(dataset: Dataset) -> None:
    again = Dataset.open(str(dataset.folder))
    assert again == dataset
    assert again.rows == 100
    assert read_rows(again, np.arange(100), ["id", "image", "width", "height", "captions"]).to_pylist() == rows(100)


def test_row_groups_and_shards_are_bounded(dataset: Dataset) -> None:
    assert set(dataset.group_sizes.tolist()) == {3, 1}  # three rows fit into 3,500 bytes; one remains
    assert [len(shard.row_groups) for shard in dataset.shards] == [GROUPS_PER_SHARD, GROUPS_PER_SHARD, 2]
    for shard in dataset.shards:
        with pq.ParquetFile(dataset.folder.locate(shard.file)) as file:
            found = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert found == list(shard.row_groups)


def test_row_larger_than_a_group_gets_its_own(tmp_path: Path) -> None:
    dataset = write_shards(Folder.at(tmp_path), "captions", rows(3), {}, {}, row_group_bytes=10)
    assert dataset.group_sizes.tolist() == [1, 1, 1]


@given(st.lists(st.integers(0, 99), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_rows_are_returned_in_the_requested_order(dataset: Dataset, asked: list[int]) -> None:
    table = read_rows(dataset, np.array(asked, dtype=np.int64), ["width"])
    assert table["width"].to_pylist() == asked


def test_same_rows_give_the_same_fingerprint(dataset: Dataset, tmp_path: Path) -> None:
    def fingerprint(name: str, count: int) -> str:
        folder = Folder.at(tmp_path / name).make()
        return write_shards(folder, "captions", rows(count), {}, {}, row_group_bytes=3500).fingerprint

    assert fingerprint("same", 100) == dataset.fingerprint
    assert fingerprint("other", 99) != dataset.fingerprint


def test_flipped_byte_raises_with_its_row_group(tmp_path: Path) -> None:
    dataset = write_shards(Folder.at(tmp_path), "captions", rows(10), {}, {}, row_group_bytes=3500)
    file = tmp_path / "shard-00000.parquet"
    content = bytearray(file.read_bytes())
    place = content.find(bytes([7]) * 500)  # inside the image of row 7, in row group 2
    content[place] ^= 0x10
    file.write_bytes(content)
    assert read_rows(dataset, np.array([0]), ["id", "image"])["id"].to_pylist() == ["0"]
    with pytest.raises(ValueError, match=r"shard-00000\.parquet, row group 2 cannot be read .*groundray\.prepare"):
        read_rows(dataset, np.array([7]), ["image"])


def test_truncated_shard_is_named(tmp_path: Path) -> None:
    dataset = write_shards(Folder.at(tmp_path), "captions", rows(10), {}, {})
    file = tmp_path / "shard-00000.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"shard-00000\.parquet: expected .* bytes, got .*groundray\.prepare"):
        read_rows(dataset, np.array([0]), ["id"])
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard-00000\.parquet: expected .* bytes, got 0: restore the file"):
        read_rows(dataset, np.array([0]), ["id"])


def test_shards_of_another_schema_raise(tmp_path: Path) -> None:
    write_shards(Folder.at(tmp_path), "captions", rows(2), {}, {})
    folder = Folder.at(tmp_path)
    folder.write_sealed("dataset.json", folder.read_sealed("dataset.json") | {"schema": 99})
    with pytest.raises(ValueError, match=r"have schema 99, this version reads 2: run .*prepare.* again"):
        Dataset.open(str(tmp_path))


def changed(row: dict[str, Any], letter: bytes = b"?") -> dict[str, Any]:
    """Return a row with other pixels in an image of the same size."""
    return row | {"image": row["image"][:-1] + letter}


def sizes(dataset: Dataset) -> list[tuple[int, tuple[int, ...]]]:
    return [(shard.bytes, shard.row_groups) for shard in dataset.shards]


def test_shards_replaced_under_a_reader_are_an_error(tmp_path: Path) -> None:
    """Another data set of the same sizes in the same folder, as a whole and file by file."""
    out = Folder.at(tmp_path / "out").make()
    opened = write_shards(out, "captions", rows(40), {}, {}, row_group_bytes=2500)
    for number in range(256):  # a checksum takes four or five bytes
        other_rows = [changed(row, bytes([number])) for row in rows(40)]
        folder = Folder.at(tmp_path / f"other-{number}").make()
        other = write_shards(folder, "captions", other_rows, {}, {}, row_group_bytes=2500)
        if sizes(other) == sizes(opened):
            break
    assert sizes(other) == sizes(opened)
    check_unchanged(opened)

    second = opened.shards[1].file
    other.folder.copy([second], out)
    assert read_rows(opened, np.array([0]), ["id"])["id"].to_pylist() == ["0"]
    with pytest.raises(ValueError, match=rf"{second}: expected id {opened.shards[1].id}, got {other.shards[1].id}: .*"):
        read_rows(opened, np.array([39]), ["id"])
    other.folder.copy(other.folder.files(), out)
    for row in (0, 39):
        with pytest.raises(
            ValueError, match=r"shard-0000.\.parquet: expected id .* replaced since .* rerun the command"
        ):
            read_rows(opened, np.array([row]), ["id"])
    with pytest.raises(ValueError, match=f"{out}: expected the data set with fingerprint {opened.fingerprint[:12]}"):
        check_unchanged(opened)
    assert read_rows(Dataset.open(str(out)), np.array([39]), ["id"])["id"].to_pylist() == ["39"]


def test_id_follows_from_content_and_vocabulary(tmp_path: Path) -> None:
    def ids(name: str, some: list[dict[str, Any]], **words: tuple[str, ...]) -> list[str | None]:
        folder = Folder.at(tmp_path / name).make()
        dataset = write_shards(folder, "captions", some, {}, {"format": name}, words, row_group_bytes=2500)
        for shard in dataset.shards:
            with pq.ParquetFile(folder.locate(shard.file)) as file:
                assert file.metadata.metadata[b"groundray.id"].decode() == shard.id
            content = folder.read_bytes(shard.file)
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        return [shard.id for shard in dataset.shards]

    first = ids("first", rows(40))
    assert ids("again", rows(40)) == first
    other = ids("other", [*rows(39), changed(rows(40)[-1])])  # in the last row group, written just before the metadata
    assert other[0] == first[0]
    assert other[1] != first[1]
    assert set(first).isdisjoint(ids("words", rows(40), classes=("a", "b")))


def without_ids(dataset: Dataset) -> Dataset:
    """Rewrite a data set as earlier versions wrote it."""
    shards = []
    for shard in dataset.shards:
        path = dataset.folder.locate(shard.file)
        tables = [pq.ParquetFile(path).read_row_group(group) for group in range(len(shard.row_groups))]
        with pq.ParquetWriter(path, arrow_schema(dataset.kind), **OPTIONS) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=len(table))
        content = Path(path).read_bytes()
        shards.append({**vars(shard), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        del shards[-1]["id"]
    index = dataset.folder.read_sealed("dataset.json")
    dataset.folder.write_json("dataset.json", index | {"shards": shards})
    return Dataset.open(str(dataset.folder))


def test_data_sets_of_earlier_versions_open(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path).make()
    new = write_shards(folder, "captions", rows(40), {}, {}, row_group_bytes=2500)
    content = {shard.file: folder.read_bytes(shard.file) for shard in new.shards}
    old = without_ids(new)
    assert [shard.id for shard in old.shards] == [None] * len(new.shards)
    verify_shards(old)
    assert len(read_rows(old, np.arange(40), ["id"])) == 40

    last = old.shards[-1].file
    folder.write_bytes(last, folder.read_bytes(last)[:-1])  # checked as far as it is recorded
    with pytest.raises(ValueError, match=rf"{last}: expected .* bytes"):
        read_rows(old, np.array([39]), ["id"])
    folder.write_bytes(last, content[last])
    with pytest.raises(ValueError, match=rf"{last}: expected .* bytes"):
        read_rows(old, np.array([39]), ["id"])


def test_verify_shards_names_the_damaged_shard(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path).make()
    dataset = write_shards(folder, "captions", rows(40), {}, {}, row_group_bytes=2500)
    verify_shards(dataset)
    file = tmp_path / dataset.shards[1].file
    content = file.read_bytes()

    damaged = bytearray(content)
    place = content.index(bytes([35]) * 500)  # in the image of row 35, which is in row group 1 of shard 1
    damaged[place] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"{file.name}, row group 1 cannot be read .*restore the file, or delete"):
        verify_shards(dataset)

    file.write_bytes(content + b"more")
    with pytest.raises(ValueError, match=rf"{file.name}"):
        verify_shards(dataset)
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.name} is missing: restore the file"):
        verify_shards(dataset)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("tennis_racket.n.01", "tennis racket"),
        ("dog", "dog"),
        ("St. Bernard", "St. Bernard"),
        ("no.n.1x", "no.n.1x"),
        ("none", "none"),
    ],
)
def test_a_class_is_named_by_the_lemma_of_its_synset(label: str, name: str) -> None:
    assert class_name(label) == name
