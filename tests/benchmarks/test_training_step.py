"""The step benchmark: contenders differ in how they are fed, not in what they learn."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CALM, SmallWorld

from groundray import config
from groundray.benchmarks import training_step
from groundray.benchmarks.session import Session
from groundray.benchmarks.training_step import ALONE, ALONE_PIXELS, CACHED, FRACTIONS, PIXELS, Run, contenders, measure


def test_contenders_without_ray_learn_the_same(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings("--grounding.trains.trunk=false", *CALM, f"--run.storage={tmp_path}", "--scaling.threads=1")
    ways = contenders(config.load("demo", words), workers=2)
    assert {name: one.scaling.num_workers for name, one in ways.items()} == {
        CACHED: 2,
        PIXELS: 2,
        ALONE: 0,
        ALONE_PIXELS: 0,
    }
    assert {one.chunks for one in ways.values()} == {2}
    cached, pixels = Run(ways[ALONE])(), Run(ways[ALONE_PIXELS])()
    assert cached["loss"] == pytest.approx(pixels["loss"], rel=0.01)
    assert cached["loss"] != pixels["loss"]
    for found in (cached, pixels):
        assert found["step"] == pytest.approx(8 / found["samples_per_second"])
        assert {f"time/{part}" for part in FRACTIONS} <= set(found)


def test_a_trunk_that_learns_has_no_features(world: SmallWorld) -> None:
    with pytest.raises(ValueError, match=r"expected a frozen trunk, got grounding\.trains\.trunk true"):
        measure(
            *("demo", ["--grounding.trains.trunk=true"], f"{world.shards}/captions/train"),
            *(1, None, None, Session(repeats=1)),
        )


def test_fewer_images_than_two_batches_are_refused_before_any_run(world: SmallWorld) -> None:
    """The first steps of a run are not counted: of one batch an epoch none would be left."""
    words = ["--grounding.trains.trunk=false", "--grounding.batch_size=40"]  # of 72 images
    with pytest.raises(ValueError, match=r"expected at least 80 images \(2 batches\), got 72"):
        measure("demo", words, f"{world.shards}/captions/train", 0, "cpu", None, Session(repeats=1))


def test_images_are_drawn_where_none_are_given(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches at least."""
    monkeypatch.setattr(training_step, "PHOTOS", 4)
    tokenizer = f"--model.language.tokenizer={world.source}/tokenizer"
    words = ["--grounding.trains.trunk=false", "--grounding.batch_size=8", tokenizer, "--analysis.enabled=false"]
    report = measure("demo", words, None, 0, "cpu", None, Session(repeats=1))
    steps = {row.contender: row.figures["step"] for row in report.rows if row.case["device"] == "cpu"}
    assert steps.keys() == {ALONE, ALONE_PIXELS}
    assert all(isinstance(step, float) and step > 0 for step in steps.values())
