"""Losses, collectives and the model's modules import without Ray, MLflow and pydantic. Processes of a run that do not
train load none of the libraries that do: each takes seconds and hundreds of MB."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = (
    "groundray.arithmetic",
    "groundray.distributed",
    "groundray.rng",
    "groundray.loss.match_map",
    "groundray.loss.grounding_loss",
    "groundray.loss.relation_loss",
    "groundray.model.trunk",
    "groundray.model.visual_stream",
    "groundray.model.language_stream",
    "groundray.model.packing",
    "groundray.model.heads",
    "groundray.model.relation_module",
    "groundray.model.grounded",
    "groundray.model.weights",
    "groundray.benchmarks.contrastive_loss",
    "groundray.benchmarks.relation_step",
)
WITHOUT_TRANSFORMERS = tuple(
    name for name in MODULES if name.rpartition(".")[2] not in {"language_stream", "heads", "grounded"}
)

# of the run's mailbox, its controller, and the tasks that read and decode
NOT_TRAINING = (
    "groundray.runtime.train.mailbox",
    "groundray.training.stragglers",
    "groundray.runtime.train.failure_policy",
    "groundray.runtime.train.group",
    "groundray.runtime.train.reports",
    "groundray.runtime.train.scaling_policy",
    "groundray.runtime.data.scheduling",
    "groundray.runtime.data.stream_tasks",
    "groundray.data.captions",
    "groundray.data.image_rows",
    "groundray.data.labelled",
    "groundray.data.scene_graphs",
    "groundray.data.texts",
)
TRAINING = ("torch", "torchvision", "transformers", "mlflow", "scipy", "sklearn", "joblib")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (("ray", "mlflow", "pydantic"), MODULES),
        (("ray", "mlflow", "pydantic", "transformers"), WITHOUT_TRANSFORMERS),
        (TRAINING, NOT_TRAINING),
    ],
)
def test_modules_import_without(blocked: tuple[str, ...], modules: tuple[str, ...]) -> None:
    program = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\nimport {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
