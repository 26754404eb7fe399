"""The worked examples of the documentation run."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import SmallWorld
from PIL import Image

pytestmark = pytest.mark.thorough  # runs every example

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("example", ["tsv_source"], indirect=True)
def test_the_source_writes_usable_rows_and_lists_the_others(example: ModuleType, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (8, 6)).save(images / "a.png")
    (images / "b.png").write_text("no image")
    (tmp_path / "c.tsv").write_text("a.png\tone\na.png\ttwo\nb.png\tthree\nmissing.png\tfour\nno tab\n")
    dataset = example.prepare(str(images), str(tmp_path / "c.tsv"), str(tmp_path / "out"))
    assert dataset.rows == 1
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert {(one["id"], one["reason"]) for one in rejected} == {
        ("c.tsv:5", "malformed"),
        ("b.png", "not an image"),
        ("missing.png", "missing"),
    }


@pytest.mark.parametrize("example", ["neighbour_analysis"], indirect=True)
def test_the_analysis_counts_nearest_neighbours(example: ModuleType) -> None:
    angles = np.radians([0, 5, 90, 95, 12])
    vectors = {"model": np.stack([np.cos(angles), np.sin(angles)], axis=1)}
    found = example.neighbours(vectors, ["a", "b", "c", "d", "e"], ["x", "x", "y", "y", "y"])
    (purity,) = found.measures
    assert purity.values["model"].value == pytest.approx(4 / 5)  # e's nearest is b
    assert found.tables[0].rows[4] == ("e", "y", "b")


@pytest.mark.parametrize("example", ["hardest_negative_stage"], indirect=True)
def test_the_stage_trains(
    example: ModuleType, world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from groundray import config
    from groundray.stage.stages import STAGES
    from groundray.training import preflight, progression
    from groundray.training.worker import InProcess

    monkeypatch.setitem(STAGES, "grounding", example.HardestNegativeStage.open)
    argv = world.settings(f"--run.storage={tmp_path}", "--scaling.num_workers=0", "--grounding.temperature=0.1")
    events: list[object] = []
    progression.run_stages(preflight.check(config.load("demo", argv)), InProcess(events.append))
    steps = [event.metrics for event in events if "violated" in getattr(event, "metrics", {})]
    assert len(steps) == 2 * (72 // 8)
    first, last = (np.mean([step["loss"] for step in part]) for part in (steps[:3], steps[-3:]))
    assert last < first
