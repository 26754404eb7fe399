"""Losses, collectives and the model's modules import without Ray, MLflow and pydantic."""

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


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [(("ray", "mlflow", "pydantic"), MODULES), (("ray", "mlflow", "pydantic", "transformers"), WITHOUT_TRANSFORMERS)],
)
def test_tensor_modules_import_without(blocked: tuple[str, ...], modules: tuple[str, ...]) -> None:
    program = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\nimport {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
