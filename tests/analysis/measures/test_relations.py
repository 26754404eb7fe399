"""Relation metrics of a model, on shards whose vocabulary may differ from its training data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import SmallWorld

from groundray import analyse, config
from groundray.storage.folder import Folder
from groundray.training import preflight, progression
from groundray.training.worker import InProcess


@pytest.fixture(scope="module")
def model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("relations")
    words = world.settings(f"--run.storage={storage}", "--relational.epochs=3", stages="relational")
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(lambda _: None))
    return storage / "demo" / "model"


def found(model: Path, data: Path, out: Path) -> dict:
    words = ["relations", "--checkpoint", str(model), "--data", str(data), "--json", str(out)]
    assert analyse.main(words) == 0
    return json.loads(out.read_text())


@pytest.mark.thorough
def test_the_numbers_are_those_of_the_run(
    world: SmallWorld, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = found(model, world.shards / "scene_graphs" / "val", tmp_path / "numbers.json")
    told = json.loads((model.parent / "result.json").read_text())["stages"]["relational"]
    for name in ("predicate/top1", "predicate/top5", "object/top1"):
        assert numbers["metrics"][name] == pytest.approx(told[name])
        assert numbers["without_image"][name] == pytest.approx(told[f"without_image/{name}"])
    graphs = json.loads((world.source / "visual_genome" / "val" / "relationships.json").read_text())
    predicates = [one["predicate"] for image in graphs for one in image["relationships"]]
    assert numbers["triplets"] == len(predicates)
    most = max(map(predicates.count, predicates))
    assert numbers["majority"]["predicate"] == pytest.approx(most / len(predicates))
    shown = capsys.readouterr().out
    assert "without image" in shown
    assert "majority" in shown


def test_words_are_matched_by_name_and_unknown_ones_left_out(world: SmallWorld, model: Path, tmp_path: Path) -> None:
    """Shards whose predicates are numbered the other way round, one of them renamed."""
    whole = found(model, world.shards / "scene_graphs" / "val", tmp_path / "whole.json")
    data = tmp_path / "renamed"
    shutil.copytree(world.shards / "scene_graphs" / "val", data)
    index = json.loads((data / "dataset.json").read_text())
    names = index["vocabulary"]["predicates"]
    index["vocabulary"]["predicates"] = [names[0], "beside", *names[2:]]
    Folder.at(data).write_sealed("dataset.json", index)
    numbers = found(model, data, tmp_path / "renamed.json")
    assert numbers["unknown"]["triplets"] > 0
    assert numbers["triplets"] + numbers["unknown"]["triplets"] == whole["triplets"]
    assert numbers["metrics"]["object/top1"] == pytest.approx(whole["metrics"]["object/top1"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("captions", "expected shards of kind 'scene_graphs'"),
        ("scene_graphs", "the model knows none of the predicates"),
    ],
)
def test_shards_that_say_nothing_to_the_model_are_refused(
    world: SmallWorld, model: Path, tmp_path: Path, kind: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(world.shards / kind / "val", data)
    index = json.loads((data / "dataset.json").read_text())
    if kind == "scene_graphs":
        names = index["vocabulary"]["predicates"]
        index["vocabulary"]["predicates"] = [names[0], *(f"not {name}" for name in names[1:])]
    Folder.at(data).write_sealed("dataset.json", index)
    assert analyse.main(["relations", "--checkpoint", str(model), "--data", str(data)]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_the_stage_is_refused(
    model: Path, world: SmallWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["retrieval", "--checkpoint", str(model), "--data", f"{world.shards}/captions/val"]
    assert analyse.main(words) == 2
    assert "neither stage grounding nor retrieval: it was trained in relational" in capsys.readouterr().err
