"""Nearest neighbours among many vectors: groundray's exact search of float16 vectors against exact and approximate
search of float32 vectors with FAISS, and groundray's inverted file of float16 vectors."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from groundray.benchmarks.measure import Column, Missing, Report, Row, interleaved, machine, seconds
from groundray.image_search.inverted_file import open_inverted_file, write_inverted_file
from groundray.image_search.knn import ExactSearch, Neighbours, recall
from groundray.storage.folder import Folder

OURS = "groundray"
K = 10
QUERIES = 64  # different queries, used in turns
TOGETHER = (1, 16)  # queries in one call
CENTRES, SPREAD = 400, 0.8  # of the generated vectors
COLUMNS = (
    Column("median", seconds, ("median",)),
    Column("99th\npercentile", seconds, ("p99",)),
    Column(f"recall@{K}", lambda fraction: f"{fraction:.3f}", ("recall",)),
    Column("build time", seconds, ("build",)),
)
Nearest = Callable[[np.ndarray, int], Neighbours]


def measure(
    count: int, width: int, threads: int, repeats: int, max_seconds: float, note: Callable[[str], None]
) -> Report:
    """Run the benchmark `search`.

    Args:
        count, width: number and length of the vectors.
        threads: number of threads of each contender.
        repeats: number of rounds, each with one call.
        max_seconds: time after which no further round starts.
        note: receives a line about each step.
    """
    torch.set_num_threads(threads)
    note(f"search: generating {count:,} vectors of {width}")
    vectors = random_vectors(count + QUERIES, width)
    vectors, queries = np.ascontiguousarray(vectors[:count]), np.ascontiguousarray(vectors[count:])
    exact = ExactSearch(vectors)(queries, K)
    rows = []
    built = dict(contenders(vectors, threads, note))
    for together in TOGETHER:
        case = {"vectors": count, "width": width, "together": together}
        note(f"search: {together} at once")
        runs = interleaved(
            {name: timed(nearest, queries, together) for name, (nearest, _) in built.items()}, repeats, max_seconds
        )
        for name, (nearest, build) in built.items():
            times = runs[name]["seconds"]
            figures = {
                "median": float(np.median(times)),
                "p99": float(np.percentile(times, 99)),
                "recall": recall(nearest(queries, K), exact),
                "build": build,
            }
            rows.append(Row(case, name, figures, runs[name]))
        rows += [] if len(built) > 1 else [Row(case, "FAISS", {"median": Missing("pip install groundray[search]")})]
    caption = (
        f"The {K} nearest of {count:,} vectors of {width} in {CENTRES} clusters to queries from the same clusters, on "
        f"{threads} thread{'s' if threads > 1 else ''}; `together` is the number of queries in the timed call."
    )
    return Report("search", caption, COLUMNS, rows, machine())


def contenders(vectors: np.ndarray, threads: int, note: Callable[[str], None]) -> Mapping[str, tuple[Nearest, float]]:
    """Return the contenders, each with the seconds that it took to build."""
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError:
        return {OURS: (ExactSearch(vectors.astype(np.float16)), 0.0)}
    faiss.omp_set_num_threads(threads)
    width = vectors.shape[1]

    def filled(index: Any) -> Nearest:
        index.add(vectors)
        return lambda queries, k: Neighbours(*index.search(queries, k))

    def graph() -> Nearest:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
        return filled(index)

    def inverted() -> Nearest:
        with tempfile.TemporaryDirectory() as folder:
            write_inverted_file(vectors.astype(np.float16), Folder.at(folder), "")
            return open_inverted_file(Folder.at(folder), "")

    ways: dict[str, Callable[[], Nearest]] = {
        OURS: lambda: ExactSearch(vectors.astype(np.float16)),
        "FAISS flat": lambda: filled(faiss.IndexFlatIP(width)),
        "FAISS IVF": inverted,
        "FAISS HNSW": graph,
    }
    built = {}
    for name, build in ways.items():
        note(f"search: building {name}")
        started = time.perf_counter()
        built[name] = (build(), time.perf_counter() - started)
    return built


def timed(nearest: Nearest, queries: np.ndarray, together: int) -> Callable[[], dict[str, float]]:
    """Return a run that measures the seconds of a call for the next `together` queries."""
    turn = 0

    def run() -> dict[str, float]:
        nonlocal turn
        some = np.take(queries, range(turn, turn + together), axis=0, mode="wrap")
        turn += together
        started = time.perf_counter()
        nearest(some, K)
        return {"seconds": time.perf_counter() - started}

    return run


def random_vectors(count: int, width: int) -> np.ndarray:
    """Return unit vectors in clusters, float32: an encoder's lie neither evenly nor in a few points."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, width), np.float32)
    vectors = SPREAD * generator.standard_normal((count, width), np.float32)
    vectors += centres[generator.integers(0, CENTRES, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
