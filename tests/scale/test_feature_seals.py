"""A derived data set is completed without reading its rows again, and is the one that reading them gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from groundray.data import derived, shards
from groundray.data.derived import DerivedDataset, KnownParts, finalize, make_missing, make_parts, open_derived
from groundray.data.shards import Footer, verify_shards, write_shards
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class Repeated:
    """Encodes a line as the line a number of times, as another machine may round a number otherwise."""

    times: int = 2
    columns: tuple[str, ...] = ("id", "text")

    def decode(self, table: pa.Table) -> pa.Table:
        return table

    def encode(self, item: pa.Table) -> dict[str, pa.Array]:
        texts = [text[::-1] if self.times < 0 else text for text in item["text"].to_pylist()]
        return {"id": item["id"].combine_chunks(), "text": pa.array([2 * text for text in texts], pa.string())}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DerivedDataset:
    """Twelve row groups of four rows, in parts of two rows."""
    monkeypatch.setattr(derived, "PART_BYTES", 80)
    lines = [{"id": f"{number:02d}", "text": f"line {number:03d} of some"} for number in range(48)]
    source = write_shards(Folder.at(tmp_path / "source").make(), "text", lines, {}, {}, row_group_bytes=80)
    assert source.group_sizes.tolist() == [4] * 12
    return DerivedDataset(source, Folder.at(tmp_path / "derived"), "key", "text", 40, "lines", "use another disk")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that are read to be hashed."""
    names: list[str] = []
    plain = Folder.seal
    monkeypatch.setattr(Folder, "seal", lambda folder, name: names.append(name) or plain(folder, name))
    return names


def test_no_row_is_read_again(spec: DerivedDataset, hashed: list[str]) -> None:
    list(make_missing(spec, Repeated()))
    made = finalize(spec)
    assert hashed == []
    spec.folder.delete("seals")
    spec.folder.delete("dataset.json")
    assert finalize(spec) == made  # the naive twin reads all
    assert len(hashed) == len(made.shards) == 24
    verify_shards(made)


def lost(folder: Folder, name: str) -> None:
    folder.delete(f"seals/{name}")


def damaged(folder: Folder, name: str) -> None:
    content = (folder / "seals").read_bytes(name)
    (folder / "seals").write_bytes(name, content.replace(b'"bytes": ', b'"bytes": 1'))


@pytest.mark.parametrize("spoil", [lost, damaged])
def test_parts_without_a_seal_are_read(
    spec: DerivedDataset, hashed: list[str], spoil: Callable[[Folder, str], None]
) -> None:
    list(make_missing(spec, Repeated()))
    spoil(spec.folder, "00003-000.json")  # of a task with both parts of a row group
    made = finalize(spec)
    assert sorted(hashed) == ["part-00003-000.parquet", "part-00003-001.parquet"]
    verify_shards(made)


def test_the_seal_of_another_writer_is_not_taken(spec: DerivedDataset, hashed: list[str]) -> None:
    """Two processes write a part with other bytes of the same size; the last part and the last seal are not of one."""
    list(make_missing(spec, Repeated()))
    name = "part-00000-000.parquet"
    first, seal = spec.folder.read_bytes(name), (spec.folder / "seals").read_bytes("00000-000.json")
    spec.folder.delete(name)
    make_parts(spec, 0, [name], Repeated(-1))
    second = spec.folder.read_bytes(name)
    assert len(first) == len(second)
    assert first != second
    (spec.folder / "seals").write_bytes("00000-000.json", seal)
    verify_shards(finalize(spec))
    assert hashed[0] == name


def test_a_part_is_opened_once(spec: DerivedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    plain = derived.read_footer

    def counted(folder: Folder, file: str) -> Footer:
        opened.append(file)
        return plain(folder, file)

    for module in (derived, shards):
        monkeypatch.setattr(module, "read_footer", counted)
    known, calls = KnownParts(spec), list[Any]()
    passes = make_missing(spec, Repeated())
    for made in range(2, 26, 2):  # a task makes the two parts of a row group
        assert next(passes) == 4
        opened.clear()  # those that the pass itself looked for
        missing = known.missing(lambda: calls.append(1))
        assert sum(map(len, missing.values())) == 24 - made
        assert len(opened) == 2
        assert len(calls) == made
    opened.clear()
    name = "part-00005-000.parquet"
    (Path(spec.folder.path) / name).write_bytes(b"cut")
    for _ in range(2):
        assert known.missing(lambda: pytest.fail("nothing was made")) == {5: [name]}
    assert opened == [name] * 2
    list(make_missing(spec, Repeated()))
    assert known.missing() == {}
    opened.clear()
    finalize(spec, known=known)
    assert opened == []
    assert open_derived(spec) is not None
