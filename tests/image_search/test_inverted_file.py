"""An inverted file: built once, of blocks, with a recall that is told; its scores are those of exact search."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundray.image_search import inverted_file
from groundray.image_search.inverted_file import (
    ABOUT,
    DATA,
    FILE,
    MAX_CELLS,
    cells_of,
    centres_of,
    check_inverted_file,
    open_inverted_file,
    require_faiss,
    write_inverted_file,
)
from groundray.image_search.knn import ExactSearch, recall
from groundray.storage.folder import Folder

pytestmark = pytest.mark.thorough  # large indexes

pytest.importorskip("faiss")


def drawn(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 around a few centres, as an encoder's are, float16."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((20, width))
    vectors = centres[generator.integers(0, 20, count)] + 0.7 * generator.standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def test_an_inverted_file_reaches_its_recall(tmp_path: Path) -> None:
    """On queries that it has not been measured with."""
    vectors, queries = np.split(drawn(4050, 16), [4000])
    measured = write_inverted_file(vectors, Folder.at(tmp_path), "a")
    found = open_inverted_file(Folder.at(tmp_path), "a")
    assert found.recall == measured.recall >= inverted_file.RECALL
    assert found.index.nprobe == measured.probed < measured.cells == cells_of(4000)  # it is no search of everything
    queries = queries.astype(np.float32)
    assert recall(found(queries, 10), ExactSearch(vectors)(queries, 10)) > 0.9


def test_a_search_of_all_cells_is_exact_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 20 vectors, which have parts of many cells."""
    monkeypatch.setattr(inverted_file, "BLOCK_BYTES", 20 * 2 * 16)
    vectors, queries = np.split(drawn(1030, 16), [1000])
    queries = queries.astype(np.float32)
    blocks: list[int] = []
    converted = inverted_file._converted
    monkeypatch.setattr(
        inverted_file, "_converted", lambda some, rows: (blocks.append(len(rows)), converted(some, rows))[1]
    )
    write_inverted_file(vectors, Folder.at(tmp_path), "a")
    assert blocks[1:] == [20] * 50  # after the sample of k-means
    found = open_inverted_file(Folder.at(tmp_path), "a")
    assert found.index.nlist == 15
    found.index.nprobe = found.index.nlist
    exact, all_cells = ExactSearch(vectors)(queries, 10), found(queries, 10)
    np.testing.assert_array_equal(all_cells.rows, exact.rows)
    np.testing.assert_allclose(all_cells.scores, exact.scores, atol=1e-6)
    assert Path(tmp_path, DATA).stat().st_size == 1000 * (2 * 16 + 8)


def test_a_filtered_search_finds_k_if_k_are_accepted(tmp_path: Path) -> None:
    """The fewer are accepted, the more cells are visited: all of them, which is exact, below a share of the cells."""
    vectors, queries = np.split(drawn(4050, 16), [4000])
    queries = queries.astype(np.float32)
    measured = write_inverted_file(vectors, Folder.at(tmp_path), "a")
    found = open_inverted_file(Folder.at(tmp_path), "a")
    generator = np.random.default_rng(1)
    for share in (1.0, 0.3, 0.01, 0.002, 0.0):
        accepted = generator.random(4000) < share
        some, exact = found(queries, 10, accepted), ExactSearch(vectors)(queries, 10, accepted)
        assert some.rows.shape == (50, min(10, accepted.sum()))
        assert accepted[some.rows].all()
        if some.rows.size:
            assert recall(some, exact) > 0.9
        if share * measured.cells <= measured.probed:
            np.testing.assert_array_equal(some.rows, exact.rows)
    assert found.index.nprobe == measured.probed
    corner = vectors.astype(np.float32) @ queries[0] < -0.2  # far from the cells that a query visits first
    assert (found(queries[:1], 10, corner).rows >= 0).all()
    assert corner[found(queries[:1], 10, corner).rows].all()


def test_more_are_found_than_the_usual_cells_have(tmp_path: Path) -> None:
    vectors = drawn(4000, 16)
    write_inverted_file(vectors, Folder.at(tmp_path), "a")
    rows = open_inverted_file(Folder.at(tmp_path), "a")(vectors[:2].astype(np.float32), 4000).rows
    assert [sorted(each) for each in rows.tolist()] == [[*range(4000)]] * 2


def test_the_number_of_cells_is_bounded() -> None:
    assert cells_of(1) == 1
    assert cells_of(100_000) == 1264
    assert {cells_of(count) for count in (1_100_000, 5_000_000, 100_000_000)} == {MAX_CELLS}


def test_a_missed_target_is_told(tmp_path: Path) -> None:
    """Vectors without any structure: no few cells have the nearest ones."""
    noise = np.random.default_rng(0).standard_normal((4000, 64))
    vectors = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float16)
    measured = write_inverted_file(vectors, Folder.at(tmp_path), "a")
    assert measured.probed == measured.cells // inverted_file.MAX_PROBED
    assert measured.recall < inverted_file.RECALL
    assert "below the target of 0.97" in str(measured)


def test_files_of_other_vectors_or_formats_are_missing(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_inverted_file(folder, "a")
    measured = write_inverted_file(drawn(200, 4), folder, "a")
    assert folder.names() == [DATA, FILE, ABOUT]
    assert check_inverted_file(folder, "a")[0] == measured
    with pytest.raises(FileNotFoundError):
        check_inverted_file(folder, "b")
    folder.write_sealed(ABOUT, folder.read_sealed(ABOUT) | {"format": 0})
    with pytest.raises(FileNotFoundError):
        check_inverted_file(folder, "a")


def test_faiss_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A command writes JSON to stdout."""
    write_inverted_file(drawn(4000, 4), Folder.at(tmp_path), "a")
    open_inverted_file(Folder.at(tmp_path), "a")
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, usage = Folder.at(tmp_path), shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patches:
        patches.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        with pytest.raises(ValueError, match=r"inverted file of the index takes 3.2 kB, 100 B are free at .*--index"):
            write_inverted_file(drawn(200, 4), folder, "a")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: free space there.*ivf\.data"):
        write_inverted_file(drawn(200, 4), folder, "a")
    assert folder.names() == []


def test_a_file_in_a_store_is_mapped_from_a_copy(anywhere: str) -> None:
    vectors, folder = drawn(600, 8), Folder.at(anywhere).make()
    measured = write_inverted_file(vectors, folder, "a")
    found = open_inverted_file(folder, "a")
    assert (found.measured, folder.names()) == (measured, [DATA, FILE, ABOUT])
    queries = vectors[:5].astype(np.float32)
    assert found(queries, 1).rows[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_faiss_is_needed_above_a_million(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted_file.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    require_faiss(1_000_000)
    with pytest.raises(ValueError, match=r"1,000,000 .*FAISS.*groundray\[search\]"):
        require_faiss(1_000_001)


MEMORY = """
import sys, threading, time
from pathlib import Path
import numpy as np
from groundray.image_search import inverted_file
from groundray.storage.folder import Folder

inverted_file.BLOCK_BYTES, inverted_file.MAX_CELLS = 2**22, 64
vectors = np.memmap(sys.argv[1], np.float16, mode="c").reshape(-1, 64)
anonymous = lambda: next(int(l.split()[1]) for l in Path("/proc/self/status").open() if l.startswith("RssAnon"))
inverted_file.write_inverted_file(vectors[:20_000], Folder.at(sys.argv[2]), "warm")
before, most, ended = anonymous(), 0, threading.Event()

def watch():
    global most
    while not ended.wait(0.005):
        most = max(most, anonymous())

thread = threading.Thread(target=watch)
thread.start()
inverted_file.write_inverted_file(vectors, Folder.at(sys.argv[2]), "a")
ended.set()
thread.join()
print((most - before) * 1024)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_blocks(tmp_path: Path) -> None:
    """600,000 more vectors of width 64 would take 154 MB in float32, and 82 MB in FAISS's lists; what is kept of them
    takes 5 MB. Measured: 34 MB more, at 168 and 202 MB; why it is more than 5 is not known."""
    memory = []
    for count in (200_000, 800_000):
        vectors, folder = tmp_path / f"{count}.vectors", tmp_path / str(count)
        folder.mkdir()
        with vectors.open("wb") as file:
            for seed in range(count // 20_000):
                file.write(drawn(20_000, 64, seed).tobytes())
        arguments = [sys.executable, "-c", MEMORY, str(vectors), str(folder)]
        ended = subprocess.run(arguments, capture_output=True, text=True, check=True)
        memory.append(int(ended.stdout.split()[-1]))
    print(f"200,000 vectors: {memory[0] / 1e6:.0f} MB; 800,000: {memory[1] / 1e6:.0f} MB")
    assert memory[1] - memory[0] < 50_000_000


def test_a_file_with_more_vectors_keeps_the_cells_and_measures_its_recall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = np.split(drawn(4150, 16), [4040])
    first, second = Folder.at(tmp_path / "a").make(), Folder.at(tmp_path / "b").make()
    assert centres_of(first) is None
    write_inverted_file(vectors[:4000], first, "a")
    centres = centres_of(first)
    assert centres is not None
    assert centres.shape == (cells_of(4000), 16)
    with monkeypatch.context() as patches:
        patches.setattr("faiss.Kmeans", lambda *arguments, **options: pytest.fail("cells are learned again"))
        measured = write_inverted_file(vectors, second, "b", centres)
    np.testing.assert_array_equal(centres_of(second), centres)
    found, exact = open_inverted_file(second, "b"), ExactSearch(vectors)
    assert found.recall == measured.recall >= inverted_file.RECALL
    queries = queries.astype(np.float32)
    assert recall(found(queries, 10), exact(queries, 10)) > 0.9
    itself = vectors[4000:].astype(np.float32)  # the new ones are found
    assert (found(itself, 1).rows[:, 0] == np.arange(4000, 4040)).mean() > 0.9


@pytest.mark.parametrize("unfit", ["too few", "recall"])
def test_cells_that_do_not_fit_are_learned_again(tmp_path: Path, unfit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = drawn(4000, 16)
    first, alone, other = (Folder.at(tmp_path / name).make() for name in "abc")
    write_inverted_file(vectors[:3900], first, "a")
    centres = centres_of(first)
    assert centres is not None
    if unfit == "recall":
        monkeypatch.setattr(inverted_file, "RECALL", 2)  # which no cells reach
    else:
        centres = centres[:10]
    expected = write_inverted_file(vectors, alone, "b")
    assert write_inverted_file(vectors, other, "b", centres) == expected
    np.testing.assert_array_equal(centres_of(other), centres_of(alone))
