"""The moving average of a stage's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import SmallWorld
from test_recovery import kill_at, resume_killed, train
from torch import Tensor, nn

from groundray import config
from groundray.data.plan import Cursor
from groundray.model import export
from groundray.model.freezing import freeze
from groundray.storage.folder import Folder
from groundray.training import history, loop, preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import EpochDone, Event, StepDone
from groundray.training.weight_average import WeightAverage
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs, of a setting that test_optimizer.py tests


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


EVERY = ("--grounding.validate_every_steps=4", "--checkpoints.keep_every=1")
POINTS = (4, 8, 9, 13, 17, 18)  # validations of two epochs of 9 steps


def test_validations_within_an_epoch_are_of_the_averages_and_leave_the_weights(
    world: SmallWorld, tmp_path: Path
) -> None:
    """The naive twin averages the weights after every step of a run without."""
    plain, _ = trained(world, tmp_path / "plain", "--grounding.validate_every_steps=1", "--checkpoints.keep_every=1")
    run, _ = trained(world, tmp_path / "averaged", "--grounding.optimizer.ema=0.5", *EVERY)
    checked = preflight.check(config.load("demo", world.settings("--scaling.num_workers=0")))
    model, heads = progression.initial_model(checked.settings)
    stage = checked.stages[0]
    progression.attach_heads(stage, model, heads, checked.settings)
    freeze(model, "grounding", stage.settings.trained)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    expected = {name: model.state_dict()[name].double() for name in names}

    store, without = CheckpointStore.at(run), CheckpointStore.at(plain)
    by_step = {one.done: one for one in without.committed("grounding") if one.kept}
    averaged = {one.done: one for one in store.committed("grounding") if one.kept}
    assert list(by_step) == list(range(1, 19))
    assert sorted(averaged) == list(POINTS)
    told = {e.step: e for e, _ in history.read(run) if isinstance(e, EpochDone)}
    for step in range(1, 19):
        weights, decay = without.weights(by_step[step]), min(0.5, step / (step + 9))
        expected = {name: decay * mean + (1 - decay) * weights[name].double() for name, mean in expected.items()}
        if step not in POINTS:
            continue
        means, in_training = store.weights(averaged[step]), store._tensors(averaged[step], "training.safetensors")
        for name in names:
            torch.testing.assert_close(means[name].double(), expected[name], rtol=1e-4, atol=1e-6)
            assert torch.equal(in_training[name], weights[name]), (step, name)
        if step in (4, 13):
            store.load(averaged[step], model)
            batches = InProcess(lambda event: None).batches(stage.val, Cursor(), epochs=1)
            assert loop.validate(stage, model, batches) == told[step].metrics


def validations(folder: Path) -> list[tuple[int, dict[str, float], bool]]:
    events = [event for event, _ in history.read(Folder.at(folder)) if isinstance(event, EpochDone)]
    return [(event.step, event.metrics, event.best) for event in events]


@pytest.mark.parametrize(("place", "count"), [("mid-step", 6), ("validation", 2), ("write", 5)])
def test_resume_between_validations_of_averages_gives_equal_weights(
    within_epochs: tuple[list[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    words, whole = within_epochs
    kill_at(place, count, monkeypatch)
    resume_killed(words, whole, tmp_path, monkeypatch)
    ours, theirs = (validations(folder) for folder in (tmp_path / "demo", whole))
    assert ours == theirs
    assert [step for step, _, _ in ours] == list(POINTS)


@pytest.fixture(scope="module")
def within_epochs(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Returns the arguments of a run with an average and validations within epochs, and the folder of a whole one."""
    storage = tmp_path_factory.mktemp("within")
    words = world.settings(
        "--grounding.optimizer.ema=0.9", "--checkpoints.every_steps=3", "--run.log_samples=true", *EVERY
    )
    train([*words, f"--run.storage={storage}"])
    return words, storage / "demo"


def test_ema_with_skip_is_refused(world: SmallWorld) -> None:
    words = world.settings("--grounding.optimizer.ema=0.9", "--run.on_nan=skip")
    with pytest.raises(
        config.SettingsError, match=r"grounding.optimizer.ema: expected run.on_nan stop with it, got skip"
    ):
        config.load("demo", words)
