"""Shards: bounded row groups, reproducible bytes, and detection of damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundray.data.schema import Dataset
from groundray.data.shards import GROUPS_PER_SHARD, read_rows, verify_shards, write_shards
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
    with pytest.raises(ValueError, match=r"shard-00000\.parquet, row group 0 cannot be read"):
        read_rows(dataset, np.array([0]), ["id"])


def test_shards_of_another_schema_raise(tmp_path: Path) -> None:
    write_shards(Folder.at(tmp_path), "captions", rows(2), {}, {})
    folder = Folder.at(tmp_path)
    folder.write_sealed("dataset.json", folder.read_sealed("dataset.json") | {"schema": 99})
    with pytest.raises(ValueError, match=r"have schema 99, this version reads 2: run .*prepare.* again"):
        Dataset.open(str(tmp_path))


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
