"""Rows of parts, in their order, from row groups that are read in parallel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundray.data import row_groups
from groundray.data.row_groups import read_group, read_parts, read_rows
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.storage.folder import Folder

COLUMNS = ["id", "image", "captions"]


def rows(count: int) -> list[dict[str, Any]]:
    """Return rows of kind `captions` whose images and captions differ in length."""
    return [
        {"id": str(i), "image": bytes([i % 251]) * (i % 37), "width": i, "height": 1, "captions": [f"c {i}"] * (i % 4)}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = Folder.at(tmp_path_factory.mktemp("shards"))
    return write_shards(folder, "captions", rows(200), {}, {}, row_group_bytes=200)


def naive(dataset: Dataset, parts: list[list[int]]) -> list[list[dict[str, Any]]]:
    """Return the rows of each part from a list of all rows."""
    every = [row for group in range(len(dataset.groups)) for row in read_group(dataset, group, COLUMNS).to_pylist()]
    return [[every[row] for row in part] for part in parts]


@pytest.mark.parametrize("take_bytes", [1, 100, 2**30])
@given(parts=st.lists(st.lists(st.integers(0, 199), max_size=30), min_size=1, max_size=6))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=15
)
def test_parts_have_their_rows_in_order(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, take_bytes: int, parts: list[list[int]]
) -> None:
    monkeypatch.setattr(row_groups, "TAKE_BYTES", take_bytes)
    tables = list(read_parts(dataset, [np.array(part, np.int64) for part in parts], COLUMNS))
    assert [table.to_pylist() for table in tables] == naive(dataset, parts)
    assert all(table.schema.equals(tables[0].schema) for table in tables)


def test_a_damaged_row_group_is_named_among_many(dataset: Dataset, tmp_path: Path) -> None:
    copy = write_shards(Folder.at(tmp_path), "captions", rows(200), {}, {}, row_group_bytes=200)
    file = tmp_path / copy.shards[1].file
    read_rows(copy, np.arange(200), COLUMNS)  # its footer is kept
    content = file.read_bytes()
    group = len(copy.shards[0].row_groups) + 2
    row = next(iter(read_group(copy, group, ["id"])["id"])).as_py()
    place = content.index(bytes([int(row) % 251]) * (int(row) % 37))
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(ValueError, match=rf"{file.name}, row group 2 cannot be read .*groundray\.prepare"):
        read_rows(copy, np.arange(200), COLUMNS)
    file.write_bytes(content)
    assert read_rows(copy, np.arange(200), ["id"])["id"].to_pylist() == [row["id"] for row in rows(200)]
    file.unlink()
    with pytest.raises(ValueError, match=rf"{file.name}, row group 2 cannot be read .*no such file|No such file"):
        read_group(copy, group, COLUMNS)
