"""What is refused before training starts: unsuitable data, and a name that holds another run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import SmallWorld

from groundray import config
from groundray.training import preflight


def drop_last_word(source: Path, target: Path, kind: str) -> Path:
    """Copy shards and drop the last word of a kind from their index."""
    shutil.copytree(source, target)
    index = json.loads((target / "dataset.json").read_text())
    index["vocabulary"][kind] = index["vocabulary"][kind][:-1]
    (target / "dataset.json").write_text(json.dumps(index))
    return target


def test_claim_refuses_a_name_with_another_configuration(world: SmallWorld, tmp_path: Path) -> None:
    words = [*world.settings(), f"--run.storage={tmp_path}"]

    def claim(*more: str) -> None:
        settings = config.load("demo", [*words, *more])
        preflight.claim(preflight.check(settings))

    claim("--grounding.temperature=0.1")
    # workers, and settings of stages that are not run, may change
    claim("--grounding.temperature=0.1", "--scaling.num_workers=1", "--relational.temperature=3")
    with pytest.raises(config.SettingsError) as caught:
        claim("--grounding.temperature=0.5")
    message = str(caught.value)
    assert re.search(r"grounding\.temperature: 0\.1 .*0\.5 ", message)
    assert "another --run.name" in message


def test_claim_refuses_a_name_with_other_data(world: SmallWorld, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(world.shards / "captions" / "val", shards)
    settings = config.load("demo", [*world.settings(), f"--run.storage={tmp_path}/runs", f"--grounding.val={shards}"])
    preflight.claim(preflight.check(settings))
    shutil.rmtree(shards)
    shutil.copytree(world.shards / "captions" / "train", shards)
    with pytest.raises(config.SettingsError, match=r"grounding\.val \(the shards' fingerprint\)"):
        preflight.claim(preflight.check(settings))


def test_training_and_validation_need_equal_vocabularies(world: SmallWorld, tmp_path: Path) -> None:
    val = drop_last_word(world.shards / "scene_graphs" / "val", tmp_path / "val", "predicates")
    words = world.settings(f"--relational.val={val}", stages="relational")
    with pytest.raises(ValueError, match=r"different predicates \(7 and 6; in only one of them: "):
        preflight.check(config.load("demo", words))


def test_expected_number_of_classes_is_checked(world: SmallWorld) -> None:
    with pytest.raises(ValueError, match="expected 1000 classes, as the settings say, got 15"):
        preflight.check(config.load("demo", world.settings("--visual.classes=1000", stages="visual")))


@pytest.mark.parametrize(
    ("stage", "kind", "wanted"),
    [
        ("visual", "captions", "'labelled_images'"),
        ("language", "scene_graphs", "'text' or 'captions'"),
        ("grounding", "text", "'captions'"),
        ("relational", "captions", "'scene_graphs'"),
    ],
)
def test_shards_of_another_kind_are_refused(world: SmallWorld, stage: str, kind: str, wanted: str) -> None:
    words = world.settings(f"--{stage}.train={world.shards / kind / 'train'}", stages=stage)
    with pytest.raises(ValueError, match=f"kind {wanted} .* kind '{kind}'"):
        preflight.check(config.load("demo", words))
