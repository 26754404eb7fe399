"""The data sets of a training run as inputs of its MLflow run."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from groundray.config import Settings
from groundray.credentials import without_secrets
from groundray.data.schema import KINDS, Dataset
from groundray.storage.folder import Folder
from groundray.training.identity import Identity

CONTEXTS = {"train": "training", "val": "validation"}  # MLflow's words for them
DIGEST_CHARACTERS = 36  # of a digest in MLflow


def log_data_sets(client: Any, run_id: str, settings: Settings, run: Identity) -> None:
    """Log the training and validation data of each stage as inputs that the MLflow run has not.

    An input is named as in the settings, such as `grounding.train`. Its digest is the beginning of the data set's
    fingerprint; its tags are its use (`mlflow.data.context`) and the stage (`groundray.stage`).
    """
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    inputs = client.get_run(run_id).inputs
    known = {each.dataset.name for each in inputs.dataset_inputs} if inputs else set()
    new = []
    for stage in settings.stages:
        for part, context in CONTEXTS.items():
            name = f"{stage}.{part}"
            if name in known or name not in run.fingerprints:
                continue
            place = Folder.at(getattr(settings.stage(stage), part))
            kind = "local" if place.local else str(place).partition("://")[0]
            source = json.dumps({"uri": without_secrets(str(place))})
            entity = Entity(name, run.fingerprints[name][:DIGEST_CHARACTERS], kind, source, *_described(place))
            tags = [InputTag("mlflow.data.context", context), InputTag("groundray.stage", stage)]
            new.append(DatasetInput(entity, tags))
    if new:
        client.log_inputs(run_id, new)


def _described(place: Folder) -> tuple[str | None, str | None]:
    """Return the schema and the profile of a data set as MLflow's JSON; None if it cannot be read any more."""
    from mlflow.types import ColSpec, Schema

    try:
        dataset = Dataset.open(str(place))
    except (OSError, ValueError):
        return None, None
    columns: list[Any] = [ColSpec(_type(field.type), field.name) for field in KINDS[dataset.kind]]
    profile = {"kind": dataset.kind, "num_rows": dataset.rows, "bytes": dataset.bytes, **dataset.counts}
    return json.dumps({"mlflow_colspec": Schema(columns).to_dict()}), json.dumps(profile)


def _type(arrow: pa.DataType) -> Any:
    """Return MLflow's type of an Arrow column."""
    from mlflow.types import DataType
    from mlflow.types.schema import Array, Object, Property

    if pa.types.is_list(arrow):
        return Array(_type(arrow.value_type))
    if pa.types.is_struct(arrow):
        return Object([Property(field.name, _type(field.type)) for field in arrow])
    if pa.types.is_integer(arrow):
        return DataType.integer
    if pa.types.is_floating(arrow):
        return DataType.float
    return DataType.string if pa.types.is_string(arrow) else DataType.binary
