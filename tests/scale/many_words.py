"""Time and memory of one analysis of many made-up words: `python tests/scale/many_words.py axes`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from groundray.analysis.measures.axes import axes
from groundray.analysis.measures.categories import categories
from groundray.analysis.measures.composition import composition
from groundray.analysis.result import Analysis
from groundray.resident_memory import peak_resident

WIDTH = 256


@dataclass(frozen=True)
class ManyWords:
    """Words of two models around the middles of their categories, of 50 words each; and a phrase for 100 words."""

    words: list[str]
    category: list[str]
    ratings: np.ndarray
    vectors: dict[str, np.ndarray]
    phrases: list[str]
    targets: list[str]
    of_phrases: dict[str, np.ndarray]

    @classmethod
    def of(cls, count: int, width: int = WIDTH) -> ManyWords:
        draw = np.random.default_rng(0)
        groups = count // 50
        middles = draw.normal(size=(groups, width)).astype(np.float32)
        of = draw.integers(groups, size=count)
        of[:groups] = np.arange(groups)
        vectors = {
            model: middles[of] + draw.standard_normal((count, width), dtype=np.float32) * (1 + number)
            for number, model in enumerate("ab")
        }
        ratings = (vectors["a"][:, 0].astype(float) + draw.normal(size=count)).round(2)
        targets = draw.choice(count, count // 100, replace=False)
        near = {
            model: rows[targets] + draw.standard_normal((len(targets), width), dtype=np.float32)
            for model, rows in vectors.items()
        }
        words = [f"w{number}" for number in range(count)]
        phrases = [f"{words[(target + 1) % count]} {words[(target + 2) % count]}" for target in targets.tolist()]
        return cls(
            words, [f"c{group}" for group in of], ratings, vectors, phrases, [words[one] for one in targets], near
        )


ANALYSES: dict[str, Callable[[ManyWords], Analysis]] = {
    "axes": lambda made: axes(made.vectors, made.words, made.category, made.ratings),
    "categories": lambda made: categories(made.vectors, made.words, made.category),
    "composition": lambda made: composition(made.of_phrases, made.vectors, made.phrases, made.targets, made.words),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("analysis", choices=ANALYSES)
    parser.add_argument("--words", type=int, default=100_000)
    options = parser.parse_args()
    made = ManyWords.of(options.words)
    began, cpu = time.perf_counter(), time.process_time()
    ANALYSES[options.analysis](made)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = peak_resident()
    print(json.dumps({"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mb": round(peak / 1e6)}))


if __name__ == "__main__":
    main()
