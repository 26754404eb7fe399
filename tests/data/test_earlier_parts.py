"""A derived data set of a source that was added to: unchanged row groups are taken over, byte by byte as rebuilt."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from groundray.data import derived
from groundray.data.derived import (
    DerivedDataset,
    count_earlier_rows,
    finalize,
    make_missing,
    make_parts,
    open_derived,
)
from groundray.data.schema import Dataset
from groundray.data.shards import write_index, write_shard_files
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class Upper:
    """Encodes a line in capitals, and notes the ids that it has encoded."""

    encoded: list[str] = field(default_factory=list)
    columns: tuple[str, ...] = ("id", "text")

    def decode(self, table: pa.Table) -> pa.Table:
        return table

    def encode(self, item: pa.Table) -> dict[str, pa.Array]:
        self.encoded.extend(item["id"].to_pylist())
        return {
            "id": item["id"].combine_chunks(),
            "text": pa.array([text.upper() for text in item["text"].to_pylist()]),
        }


def written(folder: Path, shards: Sequence[Sequence[str]]) -> Dataset:
    """A source with a shard for each of these words, of row groups of four rows."""
    entries = []
    for words in shards:
        rows: list[dict[str, Any]] = [
            {"id": f"{word}{number}", "text": 20 * word} for word in words for number in range(4)
        ]
        name = f"shard-{''.join(words)}-{{:03d}}.parquet"
        entries += write_shard_files(Folder.at(folder).make(), "text", rows, {}, 90, name)
    return write_index(Folder.at(folder), "text", entries, {}, {}, {})


def spec_of(root: Path | str, source: Dataset, lineage: str = "upper") -> DerivedDataset:
    key = source.fingerprint[:8]
    return DerivedDataset(source, Folder.at(f"{root}/{key}"), key, "text", 40, "lines", "other disk", lineage=lineage)


def make(spec: DerivedDataset) -> list[str]:
    """The ids that were encoded."""
    encoder = Upper()
    for _ in make_missing(spec, encoder):
        pass
    finalize(spec)
    return sorted(encoder.encoded)


def contents(folder: Folder) -> dict[str, bytes]:
    """All files but the seals, of which each process has some."""
    return {name: folder.read_bytes(name) for name in folder.files() if not name.startswith("seals/")}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "PART_BYTES", 120)  # three rows
    monkeypatch.setattr(derived, "BATCH", 2)


def test_only_new_rows_are_encoded_and_the_files_are_those_of_a_rebuild(tmp_path: Path, anywhere: str) -> None:
    """A shard is added in front, one behind, and one has left."""
    before = written(tmp_path / "before", ["ab", "c", "d"])
    assert make(spec_of(anywhere, before)) == [f"{letter}{number}" for letter in "abcd" for number in range(4)]
    after = written(tmp_path / "after", ["x", "ab", "d", "y"])
    spec = spec_of(anywhere, after)
    assert count_earlier_rows(spec) == 12
    assert make(spec) == [f"{letter}{number}" for letter in "xy" for number in range(4)]
    alone = spec_of(tmp_path / "alone", after)
    assert count_earlier_rows(alone) == 0
    assert len(make(alone)) == 20
    assert contents(spec.folder) == contents(alone.folder)
    assert count_earlier_rows(spec) == 0
    # and what was added to is added to again
    third = spec_of(anywhere, written(tmp_path / "third", ["y", "z"]))
    assert make(third) == ["z0", "z1", "z2", "z3"]


@pytest.mark.parametrize("spoil", ["deleted", "damaged", "incomplete"])
def test_an_earlier_part_that_is_not_whole_is_encoded(tmp_path: Path, spoil: str) -> None:
    earlier = spec_of(tmp_path, written(tmp_path / "source", ["a", "b"]))
    make(earlier)
    part = Path(earlier.folder.path, "part-00000-001.parquet")
    if spoil == "incomplete":
        earlier.folder.delete("dataset.json")
    elif spoil == "deleted":
        part.unlink()
    else:
        content = bytearray(part.read_bytes())
        content[40] ^= 1
        part.write_bytes(content)
    after = written(tmp_path / "after", ["a", "b", "c"])
    spec = spec_of(tmp_path, after)
    everything = [f"{letter}{number}" for letter in "abc" for number in range(4)]
    assert make(spec) == (everything if spoil == "incomplete" else ["a3", "c0", "c1", "c2", "c3"])
    alone = spec_of(tmp_path / "alone", after)
    make(alone)
    assert contents(spec.folder) == contents(alone.folder)


def test_another_lineage_and_none_share_nothing(tmp_path: Path) -> None:
    make(spec_of(tmp_path, written(tmp_path / "source", ["a"])))
    after = written(tmp_path / "after", ["a", "c"])
    assert len(make(spec_of(tmp_path, after, "lower"))) == 8
    other = spec_of(tmp_path, written(tmp_path / "third", ["a", "d"]), "")
    assert len(make(other)) == 8
    dataset = open_derived(other)
    assert dataset is not None
    assert dataset.source.keys() == {"images", "fingerprint"}


def test_other_content_under_the_same_names_is_encoded(tmp_path: Path) -> None:
    make(spec_of(tmp_path, written(tmp_path / "source", ["a", "b"])))
    rows = [{"id": f"a{number}", "text": "other"} for number in range(4)]
    other = written(tmp_path / "other", ["b"])
    entries = write_shard_files(other.folder, "text", rows, {}, 90, "shard-a-{:03d}.parquet")
    source = write_index(other.folder, "text", [*entries, *other.shards], {}, {}, {})
    assert make(spec_of(tmp_path, source)) == ["a0", "a1", "a2", "a3"]


def test_an_interrupted_update_resumes_and_two_at_once_make_one(tmp_path: Path) -> None:
    make(spec_of(tmp_path, written(tmp_path / "source", ["a", "b"])))
    after = written(tmp_path / "after", ["a", "b", "c"])
    spec = spec_of(tmp_path, after)
    assert make_parts(spec, 1, ["part-00001-000.parquet"], Upper()) == 3  # and then the process was killed
    spec.folder.write_bytes("part-00000-000.parquet.0123abcd.writing", b"half")
    encoded: list[list[str]] = []
    threads = [threading.Thread(target=lambda: encoded.append(make(replace(spec)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id for some in encoded for id in some} == {"c0", "c1", "c2", "c3"}
    spec.folder.delete("part-00000-000.parquet.0123abcd.writing")
    alone = spec_of(tmp_path / "alone", after)
    make(alone)
    assert contents(spec.folder) == contents(alone.folder)
