"""A run that continues another run's checkpoint with settings of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SmallWorld
from safetensors.torch import load_file

from groundray import config
from groundray.config import SettingsError
from groundray.data.plan import Cursor
from groundray.storage.folder import Folder
from groundray.training import history, preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.endings import Stopped
from groundray.training.events import EpochDone, Event, StepDone
from groundray.training.worker import InProcess

STEPS = 9  # of an epoch


def train(words: list[str], *more: str, stop_after: int | None = None) -> list[Event]:
    """Train, and return the events; with `stop_after`, stop at the end of that epoch."""
    torch.set_num_threads(1)
    events: list[Event] = []

    def reason() -> str:
        ended = any(isinstance(event, EpochDone) and event.epoch + 1 == stop_after for event in events)
        return "stopped" if ended else ""

    run = preflight.check(config.load("demo", [*words, *more]))
    progression.run_stages(run, InProcess(events.append, get_stop_reason=reason))
    return events


@pytest.fixture(scope="module")
def words(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    storage = tmp_path_factory.mktemp("continued")
    return world.settings(f"--run.storage={storage}", "--checkpoints.keep_every=1", "--grounding.epochs=3")


@pytest.fixture(scope="module")
def storage(words: list[str]) -> Path:
    """The folder of runs, which has `whole`."""
    preflight.claim(preflight.check(config.load("demo", [*words, "--run.name=whole"])))  # records its settings
    train(words, "--run.name=whole")
    return Path(next(word for word in words if word.startswith("--run.storage=")).partition("=")[2])


def after(run: Path, epochs: int) -> str:
    """Return the path of a run's checkpoint at the end of an epoch."""
    (name,) = (
        one.name for one in CheckpointStore.at(Folder.at(run)).committed("grounding") if one.cursor == Cursor(epochs)
    )
    return str(run / "checkpoints" / name)


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights after the last epoch, the best or not."""
    last = CheckpointStore.at(Folder.at(run)).committed("grounding")[-1]
    return load_file(run / "checkpoints" / last.name / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_continuing_with_equal_settings_gives_equal_weights(words: list[str], storage: Path) -> None:
    """Weights, moments, schedule and order of the samples go on where the other run was."""
    source = after(storage / "whole", 1)
    events = train(words, "--run.name=same", f"--run.continue_from={source}")
    assert equal(last_weights(storage / "same"), last_weights(storage / "whole"))
    steps = [event.step for event in events if isinstance(event, StepDone)]
    assert steps == list(range(STEPS + 1, 3 * STEPS + 1))
    losses = {
        name: [
            (event.step, event.metrics["loss"])
            for event, _ in history.read(Folder.at(storage / name))
            if isinstance(event, StepDone)
        ]
        for name in ("whole", "same")
    }
    assert losses["same"] == losses["whole"][STEPS:]
    validations = [event for event in events if isinstance(event, EpochDone)]
    assert next((event.epoch, event.best) for event in validations) == (1, True)  # the best is of its own


@pytest.mark.thorough
def test_its_own_settings_count_from_there_on(words: list[str], storage: Path) -> None:
    source = after(storage / "whole", 1)
    train(words, "--run.name=other", f"--run.continue_from={source}", "--grounding.optimizer.lr=0.01")
    assert not equal(last_weights(storage / "other"), last_weights(storage / "whole"))
    preflight.claim(preflight.check(config.load("demo", [*words, "--run.name=claimed"])))
    mine = preflight.check(config.load("demo", [*words, "--run.name=claimed", f"--run.continue_from={source}"]))
    with pytest.raises(SettingsError, match=r"another configuration:\n.*run\.continue_from"):
        preflight.claim(mine)


@pytest.mark.thorough
def test_it_resumes_from_its_own_checkpoints_without_the_other_run(words: list[str], storage: Path) -> None:
    shutil.copytree(storage / "whole", storage / "gone")
    source = f"--run.continue_from={after(storage / 'gone', 1)}"
    with pytest.raises(Stopped):
        train(words, "--run.name=resumed", source, stop_after=2)
    assert CheckpointStore.at(Folder.at(storage / "resumed")).committed("grounding")[-1].cursor == Cursor(2)
    shutil.rmtree(storage / "gone")
    train(words, "--run.name=resumed", source)
    assert equal(last_weights(storage / "resumed"), last_weights(storage / "whole"))


@pytest.mark.parametrize(
    ("changes", "epochs", "said"),
    [
        ([], 3, r"within the 3 of grounding\.epochs, got .* with 3 done: raise grounding\.epochs"),
        (["--grounding.batch_size=16"], 1, r"of 4 steps an epoch.* with 9 steps at step 0 of epoch 1: use that run's"),
        (["--grounding.optimizer.kind=sgd"], 1, r"expected grounding\.optimizer\.kind adam, .*got .*kind sgd: its mom"),
        (["--grounding.trains.trunk=false"], 1, r"expected grounding\.trains\.trunk True, .*got .*trunk False"),
        (
            ["--grounding.optimizer.layer_decay=0.5"],
            1,
            r"expected grounding\.optimizer\.layer_decay 1, .*got .*below 1",
        ),
        (["--grounding.optimizer.weight_decay=0.1"], 1, r"optimizer\.weight_decay 0, .*got .*weight_decay above 0"),
    ],
)
def test_a_checkpoint_of_other_steps_or_parameters_is_refused_before_training(
    words: list[str], storage: Path, changes: list[str], epochs: int, said: str
) -> None:
    source = f"--run.continue_from={after(storage / 'whole', epochs)}"
    with pytest.raises(SettingsError, match=said):
        preflight.check(config.load("demo", [*words, "--run.name=refused", source, *changes]))


def test_a_run_that_ended_goes_on_with_more_epochs(words: list[str], storage: Path) -> None:
    source = f"--run.continue_from={after(storage / 'whole', 3)}"
    preflight.check(config.load("demo", [*words, "--run.name=longer", source, "--grounding.epochs=4"]))


def test_a_checkpoint_that_cannot_be_continued_is_refused(words: list[str], storage: Path) -> None:
    source = after(storage / "whole", 1)
    with pytest.raises(SettingsError, match=r"expected a checkpoint of stage grounding.* is no checkpoint"):
        train(words, "--run.name=refused", f"--run.continue_from={source}x")
    other = [word for word in words if not word.startswith("--stages")]
    with pytest.raises(SettingsError, match=r"expected a checkpoint of stage language.*of stage grounding: start with"):
        train(other, "--run.name=refused", f"--run.continue_from={source}", "--stages=language,grounding")
    assert not (storage / "refused" / "checkpoints").exists()
    shutil.copytree(storage / "whole", storage / "damaged")
    damaged = Path(after(storage / "damaged", 1))
    (damaged / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"optimizer\.safetensors.*continue from another checkpoint"):
        train(words, "--run.name=refused", f"--run.continue_from={damaged}")
