"""The compact file of an index: made once of its parts, opened with one read, and made again where it is damaged."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from vector_index import RandomVectors, vector_index

from groundray.data.derived import DerivedDataset
from groundray.image_search import compact, index, inverted_file
from groundray.image_search.image_ids import DuplicateIds, ImageIds
from groundray.image_search.index import Index, make_compact
from groundray.image_search.neighbours import make_missing_files, nearest_neighbours
from groundray.storage import block_seals


@pytest.fixture
def spec(tmp_path: Path) -> DerivedDataset:
    return vector_index(tmp_path, 200, 4)


def test_it_holds_what_the_parts_hold(spec: DerivedDataset) -> None:
    found = Index.open(spec, pytest.fail)
    assert list(found.ids) == [f"image {number}" for number in range(200)]
    assert found.sizes.tolist() == [[number + 1, 2] for number in range(200)]
    np.testing.assert_array_equal(found.vectors[:], RandomVectors(4).vectors(range(200)))
    assert found.vectors[:].dtype == np.float16
    assert [found.row(id) for id in found.ids] == [*range(200)]
    assert "image 200" not in found
    assert not spec.folder.exists("making")


def test_an_opened_index_reads_no_part(spec: DerivedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    make_compact(spec, pytest.fail)
    monkeypatch.setattr(compact, "read_group", lambda *arguments: pytest.fail("a part is read"))
    monkeypatch.setattr(index, "read_group", lambda *arguments: pytest.fail("a part is read"))
    found = Index.open(spec, pytest.fail)
    np.testing.assert_array_equal(found.vector(7), RandomVectors(4).vectors([7])[0].astype(np.float32))


def test_vectors_of_processes_are_one_copy(spec: DerivedDataset) -> None:
    found = np.asarray(Index.open(spec, pytest.fail).vectors)
    with Path("/proc/self/maps").open() as maps:
        assert any(spec.folder.locate(compact.FILE) in line for line in maps)
    assert not found.flags.owndata


@pytest.mark.parametrize("name", compact.FILES)
@pytest.mark.parametrize("damage", [lambda old: old[:-9], lambda old: b"", lambda old: bytes([old[0] ^ 1]) + old[1:]])
def test_a_damaged_file_is_made_again_with_a_note(spec: DerivedDataset, name: str, damage: Any) -> None:
    make_compact(spec, pytest.fail)
    whole, notes = spec.folder.read_bytes(name), list[str]()
    spec.folder.write_bytes(name, damage(whole))
    assert len(Index.open(spec, notes.append)) == 200
    assert [name in note for note in notes] == [True]
    assert spec.folder.read_bytes(name) == whole
    spec.folder.delete(name)
    assert len(Index.open(spec, lambda line: None)) == 200
    assert spec.folder.read_bytes(name) == whole


def test_a_file_of_other_parts_or_another_format_is_made_again(spec: DerivedDataset) -> None:
    make_compact(spec, pytest.fail)
    about = spec.folder.read_sealed(compact.ABOUT)
    for other in ({"made_of": "others"}, {"format": 0}):
        spec.folder.write_sealed(compact.ABOUT, about | other)
        Index.open(spec, pytest.fail)
        assert spec.folder.read_sealed(compact.ABOUT) == about


def test_a_full_disk_is_named(spec: DerivedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(spec.folder.path)
    with monkeypatch.context() as patches:
        patches.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(ValueError, match=r"compact file of the index takes 13.6 kB, 100 B are free at .*--index"):
            Index.open(spec, pytest.fail)

    def full(writer: Any, content: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(block_seals.SealingWriter, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: free space there.*compact\.bin"):
        Index.open(spec, pytest.fail)
    assert not [name for name in spec.folder.files() if "compact" in name]


KILLED = """
import os, signal, sys
from pathlib import Path
from vector_index import opened
from groundray.image_search import inverted_file, neighbours
from groundray.storage import block_seals

calls = 0

def counted(plain, at):
    def call(*arguments):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*arguments)
    return call

where, at = sys.argv[2], int(sys.argv[3])
if where == "compact":
    block_seals.SealingWriter.write = counted(block_seals.SealingWriter.write, at)
elif where == "ivf":
    inverted_file._converted = counted(inverted_file._converted, at)
else:
    inverted_file._write_cells = counted(inverted_file._write_cells, at)
neighbours.make_missing_files(opened(Path(sys.argv[1])), print, max_exact=100)
print("whole")
"""


@pytest.mark.thorough
@pytest.mark.parametrize(("where", "at"), [("compact", 1), ("compact", 6), ("ivf", 2), ("cells", 1)])
def test_a_kill_while_the_files_are_made_is_made_good(tmp_path: Path, where: str, at: int) -> None:
    if where != "compact":
        pytest.importorskip("faiss")
    spec = vector_index(tmp_path, 200, 4)
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{KILLED}", str(tmp_path)]
    killed = subprocess.run([*command, where, str(at)], check=False, capture_output=True)
    assert killed.returncode == -9
    notes: list[str] = []
    assert "recall@10" in make_missing_files(spec, notes.append, max_exact=100)
    assert [note.split()[0] for note in notes] == ["FAISS's", "FAISS's"]  # that it is built; no damage
    names = {*compact.FILES, *inverted_file.FILES, "dataset.json"}
    assert {name for name in spec.folder.files() if not name.startswith(("part-", "seals/"))} == names


def test_a_pool_is_searched_exactly_or_by_cells(spec: DerivedDataset) -> None:
    pytest.importorskip("faiss")
    queries = RandomVectors(4).vectors(range(20)).astype(np.float32)
    assert make_missing_files(spec, pytest.fail, max_exact=200) == "exact search"
    assert not spec.folder.exists(inverted_file.FILE)
    found = Index.open(spec, pytest.fail)
    assert nearest_neighbours(found, pytest.fail, max_exact=200).recall == 1
    notes: list[str] = []
    built = nearest_neighbours(found, notes.append, max_exact=199)
    assert isinstance(built, inverted_file.InvertedFileSearch)
    assert len(notes) == 2
    again = nearest_neighbours(found, pytest.fail, max_exact=199)  # nothing is built
    assert again.recall == built.recall == pytest.approx(spec.folder.read_sealed(inverted_file.ABOUT)["recall"])
    np.testing.assert_array_equal(again(queries, 3).rows, built(queries, 3).rows)
    assert make_missing_files(spec, pytest.fail, max_exact=199) == f"FAISS, {built.measured}"


def test_duplicate_ids_are_counted() -> None:
    texts = ["b", "a", "", "b", "é", "zz", "a", "a"]
    with pytest.raises(DuplicateIds, match="3 images have a duplicate id"):
        ImageIds.of(pa.chunked_array([texts[:3], texts[3:]]))
    ids = ImageIds.of(pa.chunked_array([["b", "a", ""], ["é", "zz", "\U0001f600", "\uffff"]]))
    assert [ids.row(id) for id in ids] == [*range(7)]
    assert [ids.row(id) for id in ("c", "\ud800", "zzz", "A")] == [None] * 4
    assert ids[-1] == "\uffff"
    assert ids[1:3] == ("a", "")
