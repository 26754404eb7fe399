"""The nearest of many vectors: groundray's matrix product against FAISS, exactly and not."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from groundray.benchmarks.measure import Column, Missing, Report, Row, interleaved, machine, seconds
from groundray.image_search.knn import ExactSearch, Neighbours, inverted_file, recall

OURS = "groundray"
K = 10
QUERIES = 64  # different ones, in turns
TOGETHER = (1, 16)
CENTRES, SPREAD = 400, 0.8  # of the drawn vectors
COLUMNS = (
    Column("median", seconds, ("median",)),
    Column("99th\npercentile", seconds, ("p99",)),
    Column(f"recall@{K}", lambda share: f"{share:.3f}", ("recall",)),
    Column("built in", seconds, ("build",)),
)
Nearest = Callable[[np.ndarray, int], Neighbours]


def measure(
    count: int, width: int, threads: int, repeats: int, most_seconds: float, note: Callable[[str], None]
) -> Report:
    """The benchmark `search`.

    Args:
        count, width: of the vectors.
        threads: that each contender may take.
        repeats: rounds, of a query each.
        most_seconds: no round but the first starts when the rounds have taken so long.
        note: told what is done next.
    """
    torch.set_num_threads(threads)
    note(f"search: drawing {count:,} vectors of {width}")
    vectors = drawn(count + QUERIES, width)
    vectors, queries = np.ascontiguousarray(vectors[:count]), np.ascontiguousarray(vectors[count:])
    exact = ExactSearch(vectors)(queries, K)
    rows = []
    built = dict(contenders(vectors, threads, note))
    for together in TOGETHER:
        case = {"vectors": count, "width": width, "together": together}
        note(f"search: {together} at once")
        runs = interleaved(
            {name: timed(nearest, queries, together) for name, (nearest, _) in built.items()}, repeats, most_seconds
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
        f"{threads} thread{'s' if threads > 1 else ''}; `together` are answered in one call, whose time is told."
    )
    return Report("search", caption, COLUMNS, rows, machine())


def contenders(vectors: np.ndarray, threads: int, note: Callable[[str], None]) -> Mapping[str, tuple[Nearest, float]]:
    """Each way to find the nearest, and the seconds that it took to build."""
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError:
        return {OURS: (ExactSearch(vectors), 0.0)}
    faiss.omp_set_num_threads(threads)
    width = vectors.shape[1]

    def filled(index: Any) -> Nearest:
        index.add(vectors)
        return lambda queries, k: Neighbours(*index.search(queries, k))

    def graph() -> Nearest:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
        return filled(index)

    ways: dict[str, Callable[[], Nearest]] = {
        OURS: lambda: ExactSearch(vectors),
        "FAISS flat": lambda: filled(faiss.IndexFlatIP(width)),
        "FAISS IVF": lambda: inverted_file(vectors),
        "FAISS HNSW": graph,
    }
    found = {}
    for name, way in ways.items():
        note(f"search: building {name}")
        started = time.perf_counter()
        found[name] = (way(), time.perf_counter() - started)
    return found


def timed(nearest: Nearest, queries: np.ndarray, together: int) -> Callable[[], dict[str, float]]:
    """A call for so many queries, the next ones each time: its seconds."""
    turn = 0

    def run() -> dict[str, float]:
        nonlocal turn
        some = np.take(queries, range(turn, turn + together), axis=0, mode="wrap")
        turn += together
        started = time.perf_counter()
        nearest(some, K)
        return {"seconds": time.perf_counter() - started}

    return run


def drawn(count: int, width: int) -> np.ndarray:
    """Vectors of length 1 in clusters, float32: an encoder's lie neither evenly nor in a few points."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, width), np.float32)
    vectors = SPREAD * generator.standard_normal((count, width), np.float32)
    vectors += centres[generator.integers(0, CENTRES, count)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
