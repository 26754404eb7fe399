"""Nearest neighbours among many vectors: groundray's exact search of float16 vectors against exact and approximate
search of float32 vectors with FAISS, and groundray's inverted file of float16 vectors; and the second stage, in which
the match map ranks what they find again."""

from __future__ import annotations

import importlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from groundray.benchmarks.measure import Column, Missing, Report, Row, machine, seconds
from groundray.benchmarks.session import Case, Session
from groundray.image_search.inverted_file import open_inverted_file, write_inverted_file
from groundray.image_search.knn import ExactSearch, Neighbours, recall
from groundray.image_search.positions import Positions, row_bytes
from groundray.image_search.query import RERANK
from groundray.image_search.rerank import SAMPLE, best_matches
from groundray.storage.folder import Folder

OURS = "groundray"
K = 10
QUERIES = 64  # different queries, used in turns
TOGETHER = (1, 16)  # queries in one call
CENTRES, SPREAD = 400, 0.8  # of the generated vectors
AGAIN = "match map"
GROWTH = 25  # of the time to build for ten times as many vectors: 22 was measured of HNSW
WIDTH = 384  # of features
POSITIONS, FEATURES = (49, 196), 10  # of an image, at EfficientNet's and VGG16's grids, and words of a query
COLUMNS = (
    Column("median", seconds, ("median",)),
    Column("99th\npercentile", seconds, ("p99",)),
    Column(f"recall@{K}", lambda fraction: f"{fraction:.3f}", ("recall",)),
    Column("build time", seconds, ("build",)),
)
Nearest = Callable[[np.ndarray, int], Neighbours]


def measure(count: int, width: int, threads: int, session: Session) -> Report:
    """Run the benchmark `search`.

    Args:
        count, width: number and length of the vectors.
        threads: number of threads of each contender.
        session: decides which rows there is time for. A round is one call of each contender.
    """
    torch.set_num_threads(threads)
    builds = contenders(width, threads)
    titles = {together: f"{together} at once" for together in TOGETHER}
    session.plan([Case(title, tuple(builds), together) for together, title in titles.items()])
    session.plan([Case(_ranking(positions), (AGAIN,), positions) for positions in POSITIONS])
    session.note(f"generating {count:,} vectors of {width}")
    vectors = random_vectors(count + QUERIES, width)
    vectors, queries = np.ascontiguousarray(vectors[:count]), np.ascontiguousarray(vectors[count:])
    exact = ExactSearch(vectors)(queries, K)
    rows: list[Row] = []
    with session.until_stopped():
        built = build_all(builds, vectors, list(titles.values()), session)
        recalls = {name: recall(nearest(queries, K), exact) for name, (nearest, _) in built.items()}
        for together, title in titles.items():
            case = {"vectors": count, "width": width, "together": together}
            runs = session.interleaved(
                title, {name: timed(nearest, queries, together) for name, (nearest, _) in built.items()}
            )
            for name, of in runs.items():
                figures = {**_times(of), "recall": recalls[name], "build": built[name][1]}
                rows.append(Row(case, name, figures, of))
            if len(builds) == 1:
                rows.append(Row(case, "FAISS", {"median": Missing("pip install groundray[search]")}))
        for positions in POSITIONS:
            rows += ranked_again(positions, session)
    caption = (
        f"The {K} nearest of {count:,} vectors of {width} in {CENTRES} clusters to queries from the same clusters, on "
        f"{threads} thread{'s' if threads > 1 else ''}; `together` is the number of queries in the timed call. "
        f"The match map ranks {RERANK} found images again for {FEATURES} words, "
        f"against {SAMPLE} images of the pool, on features of width {WIDTH}."
    )
    return Report("search", caption, COLUMNS, rows, machine())


def ranked_again(positions: int, session: Session) -> list[Row]:
    """Return the time in which the match map ranks RERANK images again, whose features are read from 2,000 images'."""
    generator = np.random.default_rng(0)
    content = generator.integers(0, 256, 2000 * row_bytes(positions, WIDTH), np.uint8)
    pool = Positions(content, positions, WIDTH)
    content.reshape(len(pool), -1)[:, : 4 * positions].view("<f4")[:] = 1 / 127  # scales
    features = generator.standard_normal((FEATURES, WIDTH), np.float32)
    sample = pool[np.arange(SAMPLE)]

    def run() -> dict[str, float]:
        rows = generator.choice(len(pool), RERANK, replace=False)
        started = time.perf_counter()
        best_matches(pool[rows], features)
        best_matches(sample, features)
        return {"seconds": time.perf_counter() - started}

    case = {"vectors": RERANK, "width": WIDTH, "together": 1}
    found = session.interleaved(_ranking(positions), {AGAIN: run})
    return [Row(case, f"{AGAIN}, {positions} positions", _times(runs), runs) for runs in found.values()]


def _ranking(positions: int) -> str:
    return f"{positions} positions"


def _times(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {"median": float(np.median(runs["seconds"])), "p99": float(np.percentile(runs["seconds"], 99))}


def contenders(width: int, threads: int) -> Mapping[str, Callable[[np.ndarray], Nearest]]:
    """Return the contenders: functions that build the search of some vectors."""
    ours = {OURS: lambda vectors: ExactSearch(vectors.astype(np.float16))}
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError:
        return ours
    faiss.omp_set_num_threads(threads)

    def filled(index: Any, vectors: np.ndarray) -> Nearest:
        index.add(vectors)
        return lambda queries, k: Neighbours(*index.search(queries, k))

    def graph(vectors: np.ndarray) -> Nearest:
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 128
        return filled(index, vectors)

    def inverted(vectors: np.ndarray) -> Nearest:
        with tempfile.TemporaryDirectory() as folder:
            write_inverted_file(vectors.astype(np.float16), Folder.at(folder), "")
            return open_inverted_file(Folder.at(folder), "")

    return ours | {
        "FAISS flat": lambda vectors: filled(faiss.IndexFlatIP(width), vectors),
        "FAISS IVF": inverted,
        "FAISS HNSW": graph,
    }


def build_all(
    builds: Mapping[str, Callable[[np.ndarray], Nearest]], vectors: np.ndarray, titles: Sequence[str], session: Session
) -> dict[str, tuple[Nearest, float]]:
    """Return the contenders, each with the seconds that it took to build.

    Where time is limited, one that is expected to take over half of what is left is left out of the cases.
    """
    built = {}
    for name, build in builds.items():
        session.note(f"building {name}")
        if session.limit is not None:
            started = session.clock()
            build(vectors[: len(vectors) // 10])
            needs, left = GROWTH * (session.clock() - started), session.left() / 2
            if needs > left:
                for title in titles:
                    session.leave_out(title, name, f"takes about {needs:.0f} s to build, of {max(0.0, left):.0f} s")
                continue
        started = time.perf_counter()
        built[name] = (build(vectors), time.perf_counter() - started)
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
