"""Derived data sets: parts that are gone, cut or another's are made again, and none is filed for a replaced source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from groundray.data import derived
from groundray.data.derived import (
    DerivedDataset,
    damaged_parts,
    finalize,
    make_missing,
    make_parts,
    missing_parts,
    open_derived,
)
from groundray.data.row_groups import read_rows
from groundray.data.shards import write_shards
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class Doubled:
    """Encodes a line as the line twice."""

    before_encoding: Callable[[], None] = lambda: None
    columns: tuple[str, ...] = ("id", "text")

    def decode(self, table: pa.Table) -> pa.Table:
        return table

    def encode(self, item: pa.Table) -> dict[str, pa.Array]:
        self.before_encoding()
        return {
            "id": item["id"].combine_chunks(),
            "text": pa.array([2 * text for text in item["text"].to_pylist()], pa.string()),
        }


def lines(letter: str = "a") -> list[dict[str, Any]]:
    return [{"id": str(number), "text": 20 * letter} for number in range(12)]


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DerivedDataset:
    """Two row groups of four rows and one of four, in parts of two rows."""
    monkeypatch.setattr(derived, "PART_BYTES", 80)
    source = write_shards(Folder.at(tmp_path / "source").make(), "text", lines(), {}, {}, row_group_bytes=88)
    assert source.group_sizes.tolist() == [4, 4, 4]
    return DerivedDataset(source, Folder.at(tmp_path / "derived"), "key", "text", 40, "lines", "use another disk")


def make(spec: DerivedDataset) -> int:
    made = sum(make_missing(spec, Doubled()))
    finalize(spec)
    return made


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read_bytes(name) for name in folder.files()}


def test_rows_follow_the_source(spec: DerivedDataset) -> None:
    assert make(spec) == 12
    dataset = open_derived(spec)
    assert dataset is not None
    assert len(dataset.shards) == 6
    assert read_rows(dataset, np.array([5]), ["id", "text"]).to_pylist() == [{"id": "5", "text": 40 * "a"}]
    assert make(spec) == 0


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def garbage(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def another(path: Path) -> None:
    path.write_bytes(path.with_name("part-00002-000.parquet").read_bytes())


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("spoil", [Path.unlink, empty, cut, garbage, another])
def test_a_spoilt_part_is_named_and_made_again(
    spec: DerivedDataset, spoil: Callable[[Path], None], complete: bool
) -> None:
    """Before `dataset.json` is written and after it; a lifecycle rule deletes the older part and leaves the younger
    manifest."""
    make(spec)
    before = contents(spec.folder)
    part = Path(spec.folder.path) / "part-00001-000.parquet"
    if not complete:
        spec.folder.delete("dataset.json")
    spoil(part)
    sized = part.exists() and part.stat().st_size == len(before[part.name])
    if complete and not sized:
        assert open_derived(spec) is None
    assert missing_parts(spec) == {1: [part.name]}
    named = damaged_parts(spec)
    assert len(named) == part.exists()
    assert all(line.startswith(str(part)) and line.endswith("is made again") for line in named)
    assert make(spec) == 2
    assert contents(spec.folder) == before


def test_a_replaced_source_files_nothing(spec: DerivedDataset) -> None:
    """The shards are replaced by others of the same sizes while a part is computed, and before one is read."""

    def replace_source() -> None:
        write_shards(spec.source.folder, "text", lines("b"), {}, {}, row_group_bytes=88)

    names = ["part-00000-000.parquet", "part-00000-001.parquet"]
    with pytest.raises(ValueError, match=f"{spec.source.folder}: expected the data set with fingerprint"):
        make_parts(spec, 0, names, Doubled(replace_source))
    with pytest.raises(ValueError, match=r"source/shard-00000.parquet: expected id .* replaced since this command"):
        make_parts(spec, 1, ["part-00001-000.parquet"], Doubled())
    assert spec.folder.files() == []
    with pytest.raises(ValueError, match="rerun the command"):
        finalize(spec)


def test_parts_of_another_key_are_made_again(spec: DerivedDataset) -> None:
    make(spec)
    other = replace(spec, key="other")
    assert open_derived(other) is None
    assert make(other) == 12
    assert open_derived(spec) is None


def test_an_index_that_cannot_be_read_is_written_again(spec: DerivedDataset) -> None:
    make(spec)
    for content in (b"", b"{", b"[]", b'{"schema": 2}'):
        spec.folder.write_bytes("dataset.json", content)
        assert open_derived(spec) is None
        assert make(spec) == 0
        assert open_derived(spec) is not None


def test_reading_the_parts_reports_progress_and_can_be_ended(spec: DerivedDataset) -> None:
    for _ in make_missing(spec, Doubled()):
        pass
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise InterruptedError("stopped")

    with pytest.raises(InterruptedError):
        finalize(spec, stop)
    assert len(calls) == 2
    assert open_derived(spec) is None
    calls.clear()
    finalize(spec, lambda: calls.append(1))
    assert len(calls) == 6 + 6  # seals and parts
    assert open_derived(spec) is not None
