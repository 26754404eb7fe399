"""Approximate search of a large pool with FAISS: k-means cells of vectors, of which a query visits the nearest ones.

    FOLDER/KEY/ivf.data    the float16 vectors and the rows of one cell after another
    FOLDER/KEY/ivf.faiss   FAISS's index: the cells' centres, and where each cell lies in the data
    FOLDER/KEY/ivf.json    recall, number of cells, and the seals of both; written last

Both are made once, by one process, and mapped into memory, which the processes of a machine share. Above a million
vectors, where the number of cells is MAX_CELLS, the work of building is in proportion to the pool. Memory: the sample
that k-means learns from, or blocks of vectors if they take more, and 8 bytes a vector. At width 768 and five million
these are .5 GB and 40 MB by their sizes (not measured). The recall is measured against exact search.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Float32, Int32, Int64

from groundray.image_search.compact import ANOTHER_FOLDER
from groundray.image_search.knn import ExactSearch, Neighbours, recall
from groundray.storage.block_seals import BlockSeals, check_size, map_sealed
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged, FileSeal

MAX_EXACT = 1_000_000  # vectors; a larger pool needs an inverted file
DATA, FILE, ABOUT = "ivf.data", "ivf.faiss", "ivf.json"
FILES = (DATA, FILE, ABOUT)
FORMAT = 1  # of the files; increment it when their content changes
RECALL = 0.97  # target recall@10
PROBE_QUERIES = 500  # that measure the recall
MAX_CELLS = 4096
MIN_VECTORS_PER_CELL = 64  # on average
TRAINED_PER_CELL = 40  # vectors that k-means learns from, on average
ITERATIONS = 10  # of k-means
MAX_PROBED = 4  # of so many cells, a query visits one at most
CELLS_FIT = 1.25  # earlier cells are used if they are so many times more or fewer than new ones would be, at most
FEW_CELLS = 8  # that a query may visit all the same
BLOCK_BYTES = 2**27  # of vectors that are put in order at once
ROW_BYTES = 8
REPAIR = "delete it, and the next search makes it again"


@dataclass(frozen=True)
class Measured:
    """What is known of an inverted file.

    Attributes:
        recall: measured recall@10 against exact search.
        cells: number of cells.
        probed: number of cells that a query visits.
    """

    recall: float
    cells: int
    probed: int

    def __str__(self) -> str:
        missed = f", below the target of {RECALL:g}" if self.recall < RECALL else ""
        return f"recall@10 {self.recall:.3f}{missed}: a query visits {self.probed:,} of {self.cells:,} cells"


@dataclass(frozen=True)
class InvertedFileSearch:
    """Approximate search of an inverted file with FAISS."""

    index: Any
    measured: Measured

    @property
    def recall(self) -> float:
        return self.measured.recall

    def __call__(
        self, queries: Float32[np.ndarray, "query dim"], k: int, accepted: Bool[np.ndarray, " image"] | None = None
    ) -> Neighbours:
        """Return about the `k` nearest vectors of each query, or all if there are fewer.

        A query visits more cells in proportion as fewer vectors are accepted, so that about as many are compared as
        without a filter; and twice as many again, at most all, while it finds fewer than `k`.

        Args:
            accepted: which vectors may be found (default: all).
        """
        total = self.index.ntotal if accepted is None else int(np.count_nonzero(accepted))
        k = min(k, total)
        if not k:
            return Neighbours(np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64))
        faiss, cells = _faiss(), min(self.index.nlist, -(-self.index.nprobe * self.index.ntotal // total))
        bits = None if accepted is None else np.packbits(accepted, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        while True:
            found = Neighbours(
                *self.index.search(queries, k, params=faiss.SearchParametersIVF(sel=selector, nprobe=cells))
            )
            if cells == self.index.nlist or (found.rows >= 0).all():
                return found
            cells = min(self.index.nlist, 2 * cells)


def require_faiss(count: int) -> None:
    """Raise ValueError if a pool of this size needs FAISS and it is not installed."""
    if count > MAX_EXACT:
        _faiss()


def cells_of(count: int) -> int:
    """Return the number of cells for a number of vectors."""
    return max(1, min(count // MIN_VECTORS_PER_CELL, 4 * round(count**0.5), MAX_CELLS))


def write_inverted_file(
    vectors: Float16[np.ndarray, "image dim"],
    folder: Folder,
    made_of: str,
    earlier: Float32[np.ndarray, "cell dim"] | None = None,
) -> Measured:
    """Build the inverted file of vectors of length 1, tuned to a recall@10 of RECALL.

    Args:
        vectors: may be mapped from a file; they are read in blocks.
        folder: a local folder or a store; of a store, the files are made in a temporary folder first.
        made_of: identifies the vectors.
        earlier: centres of the cells of a file that has most of these vectors. They are used if their number still fits
            and the recall is reached with them; else others are learned.

    Raises:
        ValueError: FAISS is not installed, or the disk has no room.
    """
    if folder.local:
        return _write_local(vectors, folder, made_of, earlier)
    with tempfile.TemporaryDirectory() as temporary:
        local = Folder.at(temporary)
        measured = _write_local(vectors, local, made_of, earlier)
        local.copy([DATA, FILE], folder)
        folder.write_bytes(ABOUT, local.read_bytes(ABOUT))
        return measured


def check_inverted_file(folder: Folder, made_of: str) -> tuple[Measured, BlockSeals, FileSeal]:
    """Return what is known of the inverted file of a folder, and its seals, after a check of its sizes.

    Raises:
        FileNotFoundError: there is none, or it is one of other vectors or of another version.
        Damaged: it is damaged.
    """
    about = folder.read_sealed(ABOUT, repair=REPAIR)
    if (about.get("format"), about.get("made_of")) != (FORMAT, made_of):
        raise FileNotFoundError(f"{folder}/{ABOUT} is not of this index")
    data, file = BlockSeals.parse(about["data"]), FileSeal.parse(about["file"])
    for name, seals in ((DATA, data), (FILE, BlockSeals(file.bytes, ()))):
        check_size(folder, name, seals, REPAIR)
    return Measured(about["recall"], about["cells"], about["probed"]), data, file


def open_inverted_file(folder: Folder, made_of: str) -> InvertedFileSearch:
    """Open and check the inverted file of a folder. One in a store is copied to a temporary file.

    Raises:
        FileNotFoundError, Damaged: as `check_inverted_file`.
        ValueError: FAISS is not installed.
    """
    faiss = _faiss()
    measured, data, file = check_inverted_file(folder, made_of)
    folder.verify(FILE, file, REPAIR)
    content = np.frombuffer(folder.read_bytes(FILE), np.uint8)
    if folder.local:
        map_sealed(folder, DATA, data, REPAIR)
        return InvertedFileSearch(_mapped(faiss, content, folder.locate(DATA)), measured)
    with tempfile.TemporaryDirectory() as temporary:  # the mapped file stays until it is unmapped
        local = Folder.at(temporary)
        folder.copy([DATA], local, flush=False)
        try:
            map_sealed(local, DATA, data, REPAIR)
        except Damaged as error:
            raise Damaged(f"{folder}/{DATA}", error.reason, REPAIR) from None
        return InvertedFileSearch(_mapped(faiss, content, local.locate(DATA)), measured)


def centres_of(folder: Folder) -> Float32[np.ndarray, "cell dim"] | None:
    """Return the centres of the cells of a folder's inverted file; None if there is none, or it is damaged."""
    faiss = _faiss()
    try:
        about = folder.read_sealed(ABOUT, repair=REPAIR)
        if about.get("format") != FORMAT:
            return None
        folder.verify(FILE, FileSeal.parse(about["file"]), REPAIR)
        content = np.frombuffer(folder.read_bytes(FILE), np.uint8)
    except (OSError, ValueError, KeyError):
        return None
    index = faiss.deserialize_index(content, faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY)
    quantizer = faiss.downcast_index(index.quantizer)
    return quantizer.reconstruct_n(0, quantizer.ntotal)


def _write_local(
    vectors: Float16[np.ndarray, "image dim"],
    folder: Folder,
    made_of: str,
    earlier: Float32[np.ndarray, "cell dim"] | None,
) -> Measured:
    faiss = _faiss()
    count, width = vectors.shape
    repair = f"{ANOTHER_FOLDER} (TMPDIR for an index in a store)"
    folder.check_room(count * (2 * width + ROW_BYTES), "the inverted file of the index takes", repair)
    cells = cells_of(count)
    sample = min(count, max(TRAINED_PER_CELL * cells, PROBE_QUERIES))
    drawn = np.random.default_rng(0).choice(count, sample, replace=False)
    if earlier is not None and cells / CELLS_FIT <= len(earlier) <= cells * CELLS_FIT:
        measured = _write_files(vectors, folder, made_of, earlier, drawn[:PROBE_QUERIES])
        if measured.recall >= RECALL:
            return measured
    kmeans = faiss.Kmeans(width, cells, niter=ITERATIONS, spherical=True, seed=0)
    kmeans.train(_converted(vectors, np.sort(drawn[: TRAINED_PER_CELL * cells])))
    return _write_files(vectors, folder, made_of, kmeans.centroids, drawn[:PROBE_QUERIES])


def _write_files(
    vectors: Float16[np.ndarray, "image dim"],
    folder: Folder,
    made_of: str,
    centres: Float32[np.ndarray, "cell dim"],
    probes: Int64[np.ndarray, " row"],
) -> Measured:
    """Write the files of cells with these centres, and return what is measured with the vectors of rows `probes`."""
    faiss = _faiss()
    count, width = vectors.shape
    cells, row_bytes = len(centres), 2 * width + ROW_BYTES
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(centres)

    cell_of, sizes = np.empty(count, np.int32), np.zeros(cells, np.int64)
    for rows in _blocks(count, width, BLOCK_BYTES):
        _, nearest = quantizer.search(_converted(vectors, rows), 1)
        cell_of[rows.start : rows.stop] = nearest[:, 0]
        sizes += np.bincount(nearest[:, 0], minlength=cells)
    with folder.open_output(DATA) as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, before anything is written
            os.posix_fallocate(file.fileno(), 0, count * row_bytes)
        _write_cells(file, vectors, cell_of, sizes)
    index = _index(faiss, quantizer, sizes, width)
    mapped = _mapped(faiss, faiss.serialize_index(index), folder.locate(DATA))
    measured = _tune(mapped, vectors, probes)
    index.nprobe = measured.probed
    content = faiss.serialize_index(index).tobytes()
    folder.write_bytes(FILE, content)
    seals = BlockSeals.of(np.memmap(folder.locate(DATA), np.uint8, mode="r"))
    about = {"format": FORMAT, "made_of": made_of, **vars(measured)}
    folder.write_sealed(ABOUT, {**about, "data": seals.as_json(), "file": FileSeal.of(content).as_json()})
    return measured


def _write_cells(
    file: BinaryIO,
    vectors: Float16[np.ndarray, "image dim"],
    cell_of: Int32[np.ndarray, " image"],
    sizes: Int64[np.ndarray, " cell"],
) -> None:
    """Write all vectors, cell by cell, in FAISS's layout of lists on disk: the codes of a cell, and then its rows.

    FAISS's code of a vector, of type QT_fp16, is the vector in float16.
    """
    code_bytes = 2 * vectors.shape[1]
    starts = (np.cumsum(sizes) - sizes) * (code_bytes + ROW_BYTES)
    filled = np.zeros(len(sizes), np.int64)
    for block in _blocks(len(vectors), vectors.shape[1], BLOCK_BYTES):
        cells = cell_of[block.start : block.stop]
        order = np.argsort(cells, kind="stable")
        sorted_vectors = vectors[block.start : block.stop][order]
        found, first = np.unique(cells[order], return_index=True)
        for cell, start, stop in zip(found, first, [*first[1:], len(order)], strict=True):
            file.seek(starts[cell] + filled[cell] * code_bytes)
            file.write(sorted_vectors[start:stop].data)
            file.seek(starts[cell] + sizes[cell] * code_bytes + filled[cell] * ROW_BYTES)
            file.write((order[start:stop] + block.start).astype("<i8").data)
            filled[cell] += stop - start


def _index(faiss: Any, quantizer: Any, sizes: Int64[np.ndarray, " cell"], width: int) -> Any:
    """Return FAISS's index over the file that `_write_cells` writes."""
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, len(sizes), faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.is_trained = True  # these codes need no training
    row_bytes = 2 * width + ROW_BYTES
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size, lists.filename = len(sizes), 2 * width, DATA
    lists.totsize, lists.read_only = int(sizes.sum()) * row_bytes, True
    for size, end in zip(sizes.tolist(), np.cumsum(sizes).tolist(), strict=True):
        cell = faiss.OnDiskOneList()
        cell.size = cell.capacity = size
        cell.offset = (end - size) * row_bytes
        lists.lists.push_back(cell)
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = int(sizes.sum())
    return index


def _mapped(faiss: Any, content: np.ndarray, data: str) -> Any:
    """Return a serialized index, with its lists mapped from a local file."""
    # as much as torch uses, which `cpus` of a replica limits
    faiss.omp_set_num_threads(torch.get_num_threads())
    # reading an index with its lists would print a line to stdout, so they are mapped afterwards
    index = faiss.deserialize_index(content, faiss.IO_FLAG_SKIP_IVF_DATA | faiss.IO_FLAG_READ_ONLY)
    lists = faiss.downcast_InvertedLists(index.invlists)
    lists.filename = str(data)
    lists.do_mmap()
    return index


def _tune(index: Any, vectors: Float[np.ndarray, "image dim"], rows: Int64[np.ndarray, " row"]) -> Measured:
    """Visit more cells until the recall reaches RECALL, and return what was measured."""
    queries = _probes(vectors, rows)
    limit = min(index.nlist, max(FEW_CELLS, index.nlist // MAX_PROBED))
    exact = ExactSearch(vectors)(queries, 10)
    index.nprobe = 1
    while True:
        measured = recall(Neighbours(*index.search(queries, exact.rows.shape[1])), exact)
        if measured >= RECALL or index.nprobe >= limit:
            return Measured(measured, index.nlist, index.nprobe)
        index.nprobe = min(limit, 2 * index.nprobe)


def _probes(vectors: Float[np.ndarray, "image dim"], rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row dim"]:
    """Return realistic queries: midpoints of two images, where no image need lie."""
    chosen = vectors[rows].astype(np.float32)
    mixed = chosen + np.roll(chosen, -1, axis=0)
    return mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)


def _converted(
    vectors: Float16[np.ndarray, "image dim"], rows: Int64[np.ndarray, " row"] | range
) -> Float32[np.ndarray, "row dim"]:
    """Return some rows in float32, without a copy of all of them in float16."""
    width = vectors.shape[1]
    converted = np.empty((len(rows), width), np.float32)
    for part in _blocks(len(rows), width, BLOCK_BYTES // 16):
        some = rows[part.start : part.stop]
        index = slice(some.start, some.stop) if isinstance(some, range) else some
        torch.from_numpy(converted[part.start : part.stop]).copy_(torch.from_numpy(vectors[index]))
    return converted


def _blocks(count: int, width: int, bytes: int) -> list[range]:
    """Return ranges of rows of about so many bytes of float16."""
    step = max(1, bytes // (2 * width))
    return [range(start, min(count, start + step)) for start in range(0, count, step)]


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        raise ValueError(
            f"a pool of more than {MAX_EXACT:,} images needs FAISS: run `pip install groundray[search]`"
        ) from None
