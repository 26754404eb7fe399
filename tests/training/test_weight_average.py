"""The moving average of a stage's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SmallWorld
from torch import Tensor, nn

from groundray import config
from groundray.data.plan import Cursor
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.training import preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import Event, StepDone
from groundray.training.weight_average import WeightAverage
from groundray.training.worker import InProcess


def test_average_is_that_of_a_loop_over_all_weights() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    expected = model.weight.detach().clone()
    average = WeightAverage(model, decay=0.8)
    for step in range(1, 61):
        with torch.no_grad():
            model.weight += torch.randn(2, 3)
        average.update(step)
        decay = min(0.8, step / (step + 9))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    trained = model.weight.detach().clone()
    with average.applied():
        assert torch.allclose(model.weight.detach(), expected, atol=1e-5)
        with average.applied():
            assert torch.equal(average.trained()["weight"], trained)
        assert not torch.equal(model.weight, trained)
    assert torch.equal(model.weight, trained)
    assert average.names == ("weight",)


def test_an_average_that_does_not_fit_is_named() -> None:
    average = WeightAverage(nn.Linear(3, 2), decay=0.8)
    with pytest.raises(ValueError, match="weights of there do not fit the model: missing bias"):
        average.load({"weight": torch.zeros(2, 3)}, "there")


def trained(world: SmallWorld, storage: Path, *words: str) -> tuple[Folder, list[StepDone]]:
    settings = config.load("demo", world.settings(f"--run.storage={storage}", "--scaling.num_workers=0", *words))
    steps: list[StepDone] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepDone):
            steps.append(event)

    torch.set_num_threads(1)
    progression.run_stages(preflight.check(settings), InProcess(observe))
    return Folder.at(storage / "demo"), steps


def weights_in_training(store: CheckpointStore) -> dict[str, Tensor]:
    """Returns the weights with which training continues after the last checkpoint."""
    last = store.last("grounding")
    assert last is not None
    assert last.cursor == Cursor(2, 0)
    files = json.loads((Path(store.folder.path) / last.name / "manifest.json").read_text())["files"]
    return store._tensors(last, "training.safetensors") if "training.safetensors" in files else store.weights(last)


def test_the_average_is_validated_and_exported_and_the_weights_are_trained_on(
    world: SmallWorld, tmp_path: Path
) -> None:
    """Training is that of a run without, step by step."""
    plain, steps = trained(world, tmp_path / "plain")
    run, same = trained(world, tmp_path / "averaged", "--grounding.optimizer.ema=0.9")
    assert [step.metrics["loss"] for step in same] == [step.metrics["loss"] for step in steps]
    assert [step.metrics["gradient_norm"] for step in same] == [step.metrics["gradient_norm"] for step in steps]

    store, plain_store = CheckpointStore.at(run), CheckpointStore.at(plain)
    in_training, expected = weights_in_training(store), weights_in_training(plain_store)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in in_training.items())

    finished, without = store.finished("grounding"), plain_store.finished("grounding")
    assert finished is not None
    assert without is not None
    averages = store.weights(store.get(finished.best))
    assert not torch.equal(averages["visual.embedder.weight"], expected["visual.embedder.weight"])
    assert finished.metrics["loss"] != without.metrics["loss"]
    exported = export.load(str(run / "model")).model.state_dict()
    assert [name for name, tensor in exported.items() if not torch.equal(tensor, averages[name])] == []


def test_ema_with_skip_is_refused(world: SmallWorld) -> None:
    words = world.settings("--grounding.optimizer.ema=0.9", "--run.on_nan=skip")
    with pytest.raises(
        config.SettingsError, match=r"grounding.optimizer.ema: expected run.on_nan stop with it, got skip"
    ):
        config.load("demo", words)
