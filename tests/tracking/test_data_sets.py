"""The data sets of a run as inputs of its MLflow run."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from conftest import SmallWorld
from mlflow.types import Schema

from groundray import config
from groundray.data.schema import Dataset
from groundray.storage.folder import Folder
from groundray.tracking.mlflow_log import MlflowLog
from groundray.training import identity


def test_each_data_set_of_a_run_is_one_input(uri: str, world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings("--tracking.enabled=true", f"--tracking.uri={uri}", stages="language,grounding,relational")
    settings, folder = config.load("demo", words), Folder.at(tmp_path / "run")
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(settings.tracking.experiment, tmp_path.as_uri())
    shards = {
        f"{stage}.{part}": Dataset.open(getattr(settings.stage(stage), part))
        for stage in settings.stages
        for part in ("train", "val")
    }
    run = identity.claim(folder, settings, {name: dataset.fingerprint for name, dataset in shards.items()})
    for _ in range(2):
        log = MlflowLog.open(settings, folder, run, None)
        log.catch_up(folder, pytest.fail)
        log.release()

    (found,) = client.search_runs([experiment])
    assert found.inputs
    inputs = {each.dataset.name: each for each in found.inputs.dataset_inputs}
    assert len(inputs) == len(found.inputs.dataset_inputs)
    assert inputs.keys() == shards.keys()
    for name, each in inputs.items():
        stage, _, part = name.partition(".")
        tags = {tag.key: tag.value for tag in each.tags}
        context = {"train": "training", "val": "validation"}[part]
        assert tags == {"mlflow.data.context": context, "groundray.stage": stage}
        assert shards[name].fingerprint.startswith(each.dataset.digest)
        assert len(each.dataset.digest) >= 16
        source = mlflow.data.get_source(each)
        assert Path(source.load()) == Path(str(shards[name].folder))
        profile = json.loads(each.dataset.profile or "")
        assert (profile["kind"], profile["num_rows"]) == (shards[name].kind, shards[name].rows)
        schema = Schema.from_json(json.dumps(json.loads(each.dataset.schema or "")["mlflow_colspec"]))
        assert "id" in schema.input_names()


def test_a_data_set_that_was_moved_is_an_input_without_a_profile(uri: str, world: SmallWorld, tmp_path: Path) -> None:
    """As of a run that ended long ago and is logged now."""
    words = world.settings("--tracking.enabled=true", f"--tracking.uri={uri}")
    settings, folder = config.load("demo", words), Folder.at(tmp_path / "run")
    moved = settings.model_copy(
        update={"grounding": settings.grounding.model_copy(update={"val": str(tmp_path / "moved")})}
    )
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(settings.tracking.experiment, tmp_path.as_uri())
    run = identity.claim(folder, moved, {"grounding.val": "0123456789" * 6})
    log = MlflowLog.open(moved, folder, run, None)
    log.catch_up(folder, pytest.fail)
    log.release()
    (found,) = client.search_runs([experiment])
    assert found.inputs
    (each,) = found.inputs.dataset_inputs
    assert (each.dataset.name, each.dataset.profile, each.dataset.schema) == ("grounding.val", None, None)
    assert each.dataset.digest == ("0123456789" * 6)[:36]
    assert json.loads(each.dataset.source) == {"uri": str(tmp_path / "moved")}
