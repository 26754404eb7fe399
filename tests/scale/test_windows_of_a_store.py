"""A window of shards in a store takes the time of one request; many row groups and chunks make one window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from held_requests import Proxy, proxy

from groundray.data.plan import Plan
from groundray.data.row_groups import STORE_READS, read_parts, read_rows
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.data.stream import rows_of
from groundray.storage.folder import Folder

COLUMNS = ["id", "image", "captions"]


def rows(count: int, size: int = 100) -> list[dict[str, Any]]:
    return [
        {"id": str(i), "image": bytes([i % 251]) * size, "width": i, "height": 1, "captions": [f"caption {i}", "b"]}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[servers.Server, Proxy]]:
    with servers.s3() as server, proxy(server.environment["AWS_ENDPOINT_URL"]) as before:
        yield servers.Server("s3", {**server.environment, "AWS_ENDPOINT_URL": before.endpoint}), before


def test_a_window_of_a_store_takes_the_time_of_one_request(
    store: tuple[servers.Server, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, before = store
    server.use(monkeypatch)
    dataset = write_shards(Folder.at(server.folder()), "captions", rows(200), {}, {}, row_group_bytes=1200)
    groups, shards = len(dataset.groups), len(dataset.shards)
    assert 20 < groups + shards <= STORE_READS
    order = np.random.default_rng(0).permutation(200)
    before.hold(1)
    first = read_rows(dataset, order, COLUMNS)
    assert Counter(before.methods)["GET"] >= groups + shards  # with the footers

    before.hold(groups + shards)
    again = read_rows(dataset, order, COLUMNS)
    assert Counter(before.methods) == {"GET": groups, "HEAD": shards}
    assert before.most == groups + shards  # none waited for the answer to another
    assert again.equals(first)
    assert first["id"].to_pylist() == [str(row) for row in order]


def test_a_shard_that_is_replaced_in_a_store_is_an_error(
    store: tuple[servers.Server, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, before = store
    server.use(monkeypatch)
    before.hold(0)
    folder, other = Folder.at(server.folder()), Folder.at(server.folder())
    dataset = write_shards(folder, "captions", rows(20), {}, {})
    read_rows(dataset, np.arange(20), COLUMNS)
    write_shards(other, "captions", [row | {"width": 7} for row in rows(20)], {}, {})
    other.copy(["shard-00000.parquet"], folder)
    with pytest.raises(ValueError, match=r"shard-00000\.parquet: expected (id|[\d,]+ bytes)"):
        read_rows(dataset, np.arange(20), COLUMNS)


def windows_rows(plan: Plan, window: int) -> list[np.ndarray]:
    first = window * plan.window_steps
    return [rows_of(plan, 0, step, range(plan.chunks)) for step in range(first, first + plan.window_steps)]


def test_64_chunks_on_one_rank_read_a_window_of_100_row_groups(tmp_path: Path) -> None:
    dataset: Dataset = write_shards(Folder.at(tmp_path), "captions", rows(2000), {}, {}, row_group_bytes=1200)
    plan = Plan(dataset.group_sizes, batch_size=128, chunks=64, window=768)
    parts = windows_rows(plan, 1)
    groups = np.unique(np.searchsorted(dataset.group_ends, np.concatenate(parts), side="right"))
    assert len(groups) >= 100
    tables = list(read_parts(dataset, parts, COLUMNS))
    assert [table["id"].to_pylist() for table in tables] == [[str(row) for row in part] for part in parts]
    assert tables[0]["image"].to_pylist() == [bytes([row % 251]) * 100 for row in parts[0]]


@pytest.mark.slow
def test_a_window_beyond_the_offsets_of_arrow_is_read(tmp_path: Path) -> None:
    """140 row groups of a row of 17 MB: together more than the 2 GiB of one column of byte strings."""
    dataset = write_shards(Folder.at(tmp_path), "captions", rows(140, 33 * 2**19), {}, {})
    assert len(dataset.groups) == 140
    order = np.random.default_rng(0).permutation(140)
    (table,) = read_parts(dataset, [order], COLUMNS)
    assert table["id"].to_pylist() == [str(row) for row in order]
    assert sum(len(chunk.buffers()[2]) for chunk in table["image"].chunks) > 2**31
    assert [image.as_py()[:1] for image in table["image"]] == [bytes([row % 251]) for row in order]
