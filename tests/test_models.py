"""Runs of all stages with other networks than the presets', on the embedded world, through to search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import STAGES, SmallWorld

from groundray import config, search
from groundray.data.row_groups import read_rows
from groundray.image_search.explain import GroundingMatcher
from groundray.image_search.index import open_pool
from groundray.model import export
from groundray.training import preflight, progression
from groundray.training.events import Event, StageDone, StepDone
from groundray.training.worker import InProcess


@pytest.mark.slow  # minutes on two cores
@pytest.mark.timeout(1200)  # on a busy machine
def test_a_vision_transformer_from_scratch_trains_all_stages_and_searches(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="extra `models` is not installed")
    words = [
        *world.settings(f"--run.storage={tmp_path}", stages=STAGES),
        *("--model.trunk.name=timm/vit_tiny_patch16_224", "--model.trunk.weights=none", "--scaling.num_workers=0"),
        *("--visual.epochs=20", "--visual.optimizer.lr=5e-4", "--grounding.trains.trunk=false"),
    ]
    events: list[Event] = []
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(events.append))
    losses = [event.metrics["loss"] for event in events if isinstance(event, StepDone) and event.stage == "visual"]
    assert np.mean(losses[-7:]) < 0.8 * np.log(15)  # the last epoch's, of 15 classes
    assert [event.stage for event in events if isinstance(event, StageDone)] == STAGES.split(",")

    model, pool = str(tmp_path / "demo" / "model"), f"{world.shards}/captions/val"
    assert export.about(model).settings["model"]["trunk"] == {"name": "timm/vit_tiny_patch16_224", "weights": "none"}
    found = tmp_path / "found.json"
    assert search.main(["--checkpoint", model, "--images", pool, "--text", "a red circle", "--json", str(found)]) == 0
    capsys.readouterr()
    matcher = GroundingMatcher.load(model)
    assert matcher is not None
    picture = read_rows(open_pool(pool), np.array([0]), ["image"])["image"][0].as_py()
    word = matcher.match("circle", matcher.decode(picture)).words[0]
    assert word.map.shape == (7, 7)
    assert word.map.std() > 0
    assert json.loads(found.read_text())
