"""An index of any size is opened with one read, in memory that processes share."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import servers
from held_requests import Proxy, proxy
from vector_index import RandomVectors, vector_index

from groundray.data.schema import Dataset, Shard
from groundray.image_search import compact
from groundray.image_search.index import KIND, Index, make_compact
from groundray.image_search.knn import ExactSearch
from groundray.storage import block_seals
from groundray.storage.folder import Folder

MILLION, WIDTH = 1_000_000, 64


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[servers.Server, Proxy]]:
    with servers.s3() as server, proxy(server.environment["AWS_ENDPOINT_URL"]) as before:
        yield servers.Server("s3", {**server.environment, "AWS_ENDPOINT_URL": before.endpoint}), before


def test_a_store_is_read_once(
    tmp_path: Path, store: tuple[servers.Server, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compact file, 12 kB, in ranges of 4 kB; of a large pool only what lies behind the vectors, and one vector."""
    spec = vector_index(tmp_path, 200, 16)
    server, before = store
    server.use(monkeypatch)
    monkeypatch.setattr(block_seals, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(block_seals, "READ_BYTES", 4096)
    folder = Folder.at(server.folder())
    spec.folder.copy(spec.folder.files(), folder)
    stored = replace(spec, folder=folder)
    before.hold(0)
    make_compact(stored, pytest.fail)
    total = folder.sizes()[compact.FILE]
    before.methods.clear()
    found = Index.open(stored, pytest.fail)
    opening = Counter(before.methods)
    np.testing.assert_array_equal(found.vectors[:], RandomVectors(16).vectors(range(200)))
    before.methods.clear()
    lazy = Index.open(stored, pytest.fail, keep_vectors_in_store=True)
    assert Counter(before.methods)["GET"] == opening["GET"] - 1  # the vectors are 6.4 kB of the 12
    assert opening["GET"] == 3 + -(-total // 4096)  # with a listing and two descriptions
    before.methods.clear()
    for _ in range(2):
        np.testing.assert_array_equal(lazy.vector(150), found.vector(150))
    assert before.methods.count("GET") == 1
    assert (lazy.ids[3], lazy.sizes[3].tolist()) == (found.ids[3], found.sizes[3].tolist())


def written(folder: Folder, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Write the compact file of a pool of vectors whose parts are only pretended."""
    shard = Shard("part", (10_000,) * (len(vectors) // 10_000), 0, "")
    dataset = Dataset(folder, KIND, (shard,), {}, {"width": vectors.shape[1]}, "a")

    def read_group(_: Dataset, group: int, columns: list[str]) -> pa.Table:
        rows = np.arange(10_000 * group, 10_000 * (group + 1))
        return pa.table(
            {
                "id": pa.array([f"{row * 7919 % MILLION:08d}.jpg" for row in rows.tolist()]),
                "width": pa.array(rows, pa.int32()),
                "height": pa.array(rows, pa.int32()),
                "vector": pa.FixedSizeListArray.from_arrays(vectors[rows].ravel(), vectors.shape[1]),
            }
        )

    monkeypatch.setattr(compact, "read_group", read_group)
    compact.write_compact(dataset, folder)
    return dataset


OPENED = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from groundray.image_search.compact import open_compact
from groundray.image_search.knn import ExactSearch
from groundray.storage.folder import Folder

def anonymous():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("RssAnon")) * 1024

before, started = anonymous(), time.perf_counter()
found = open_compact(SimpleNamespace(fingerprint="a"), Folder.at(sys.argv[1]))
opened = time.perf_counter() - started
assert found.ids.row("00007919.jpg") == 1
started = time.perf_counter()
for row in range(1000):
    found.ids.row(f"{row:08d}.jpg")
looked = (time.perf_counter() - started) / 1000
search = ExactSearch(found.vectors)
query = np.asarray(found.vectors[5:6], np.float32)
rows = search(query, 10).rows
started = time.perf_counter()
search(query, 10)
asked = time.perf_counter() - started
assert rows[0, 0] == 5, rows
print(opened, looked, asked, anonymous() - before)
"""


@pytest.mark.slow
def test_a_million_vectors_are_opened_with_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 MB of vectors and 44 MB of ids and sizes; the process that opens and searches them takes 40 MB of its own."""
    folder = Folder.at(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((MILLION, WIDTH), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    halves = vectors.astype(np.float16)
    written(folder, halves, monkeypatch)
    assert sum(folder.sizes().values()) < MILLION * (2 * WIDTH + 50)
    ended = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path)], capture_output=True, text=True, check=True)
    opened, looked, asked, memory = map(float, ended.stdout.split())
    print(
        f"opened in {opened:.2f} s, an id found in {1e6 * looked:.0f} us, asked in {asked:.3f} s, {memory / 1e6:.0f} MB"
    )
    assert opened < 10
    assert memory < 60e6
    queries = vectors[:3] + vectors[3:6]
    exact, found = ExactSearch(vectors)(queries, 10), ExactSearch(halves)(queries, 10)
    np.testing.assert_allclose(found.scores, exact.scores, atol=2**-10)
