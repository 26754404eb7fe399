"""The options of `python -m groundray.bench`: which sizes and repetitions hold, and whether time is limited."""

from __future__ import annotations

import math
from typing import Any

import pytest

from groundray import bench

FIVE_ROUNDS: dict[str, Any] = {"repeats": 5, "max_seconds": 120, "fewest_rounds": 3}
FULL: dict[str, dict[str, Any]] = {
    "loss": {"batch": [32, 180, 512], "tokens": [32, 14], **FIVE_ROUNDS},
    "relation": {"triplets": [100, 500], "predicates": 100, **FIVE_ROUNDS},
    "input": {"batch_size": 64, "samples": None, **FIVE_ROUNDS},
    "step": {**FIVE_ROUNDS, "fewest_rounds": 1},
    "update": {"batch": [180], "precision": None, **FIVE_ROUNDS, "fewest_rounds": 1},
    "search": {"vectors": 41_620, "width": 768, "threads": 1, **FIVE_ROUNDS, "repeats": 300},
    "service": {"clients": 50, "replicas": 1, "seconds": 60, "repeats": 1, "max_seconds": math.inf},
}
SHORT = {**FULL, "update": {**FULL["update"], "batch": [32, 180]}}


@pytest.mark.parametrize("name", FULL)
def test_time_is_limited_by_default(name: str) -> None:
    options = bench.parse([name])
    assert options.limited
    assert {key: getattr(options, key) for key in SHORT[name]} == SHORT[name]


@pytest.mark.parametrize("name", FULL)
def test_full_measures_the_whole_table(name: str) -> None:
    options = bench.parse([name, "--full"])
    assert not options.limited
    assert {key: getattr(options, key) for key in FULL[name]} == FULL[name]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # as `make gpu` does
        ("loss --device cuda --batch 180 1024 4096 --tokens 32 --max-seconds 20", {"repeats": 5, "max_seconds": 20}),
        ("update --batch 180 1024 --max-seconds 10", {"batch": [180, 1024], "repeats": 5}),
        ("update --repeats 5", {"batch": [180]}),
        ("relation --predicates 4", {"triplets": [100, 500]}),
        ("input --samples 6000", {"samples": 6000, "max_seconds": 120}),
        ("step --repeats 3", {"repeats": 3}),
        ("search --vectors 20000", {"repeats": 300}),
        ("service --seconds 5", {"seconds": 5}),
    ],
)
def test_a_size_or_number_of_repetitions_that_is_given_is_measured_whole(words: str, expected: dict[str, Any]) -> None:
    options = bench.parse(words.split())
    assert not options.limited
    assert {key: getattr(options, key) for key in expected} == expected


@pytest.mark.parametrize(
    "words",
    ["loss --device cpu --precision bf16 --only groundray", "step --workers 0 --data shards", "search --threads 2"],
)
def test_what_is_no_size_leaves_time_limited(words: str) -> None:
    assert bench.parse(words.split()).limited
