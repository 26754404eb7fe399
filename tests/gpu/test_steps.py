"""A training step of every stage on a GPU: against float64 on the CPU, against itself, and its waits for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import STAGES, SmallWorld
from machines import EVERYWHERE, GPUS, REAL, Machine
from one_step import Outcome, distance, first_steps, stages_of
from torch import Tensor

from groundray import config
from groundray.arithmetic import Precision, using
from groundray.config import Settings
from groundray.training.loop import update
from groundray.training.optimizer import make_optimizer
from groundray.training.timing import StepTimer

# relative errors of a stage's gradient in float32: the visual stage trains maxima and ReLUs, whose gradients jump
FLOAT32 = dict.fromkeys(STAGES.split(","), 1e-4) | {"visual": 5e-3}
WAITS = 1  # for a step's metrics

SettingsOf = Callable[[Precision], Settings]


@pytest.fixture
def settings_of(world: SmallWorld, tmp_path: Path) -> SettingsOf:
    """Returns the settings of a run of all stages in a precision."""

    def of(precision: Precision) -> Settings:
        words = [f"--{stage}.precision={precision}" for stage in STAGES.split(",")]
        words += [
            "--scaling.chunks=2",
            "--visual.batch_size=14",
            "--language.batch_size=20",
            f"--run.storage={tmp_path}",
        ]
        return config.load("demo", world.settings(*words, stages=STAGES))

    return of


@EVERYWHERE
def test_steps_are_those_of_float64_on_the_cpu(machine: Machine, settings_of: SettingsOf) -> None:
    truth, found = first_steps(settings_of("float64")), first_steps(settings_of("float32"), machine.device)
    far = {stage: errors for stage in truth if (errors := beyond(found[stage], truth[stage], 1e-5, FLOAT32[stage]))}
    assert not far


def beyond(found: Outcome, truth: Outcome, of_loss: float, of_gradient: float) -> tuple[float, float] | None:
    """Return the relative errors of a loss and its gradient if one is above its bound."""
    errors = distance(found.loss, truth.loss), distance(found.gradient, truth.gradient)
    return None if errors[0] < of_loss and errors[1] < of_gradient else errors


@REAL
def test_the_check_sees_factors_rounded_to_fewer_bits(machine: Machine, settings_of: SettingsOf) -> None:
    """TF32 on a GPU, which float32 must not be; a CPU has no TF32."""
    truth = first_steps(settings_of("float64"))
    found = first_steps(settings_of("tf32" if machine.large else "bf16"), machine.device)
    assert all(beyond(found[stage], truth[stage], 1e-5, FLOAT32[stage]) for stage in truth)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@REAL
def test_training_has_the_same_bits_each_time(machine: Machine, settings_of: SettingsOf, precision: Precision) -> None:
    """Three steps of each stage, with dropout."""
    first, second = (weights_after(settings_of(precision), machine.device, steps=3) for _ in range(2))
    different = {
        stage: [name for name in first[stage] if not torch.equal(first[stage][name], second[stage][name])]
        for stage in first
    }
    assert different == {stage: [] for stage in STAGES.split(",")}


def weights_after(settings: Settings, device: str, steps: int) -> dict[str, dict[str, Tensor]]:
    """Return the weights after some steps on the first batch of each stage, by stage and name."""
    found = {}
    for stage, model, batch in stages_of(settings, device):
        optimizer, timer = make_optimizer(model, stage.settings.optimizer), StepTimer()
        with using(stage.settings.precision, device):
            for _ in range(steps):
                update(stage, model, optimizer, batch, settings.run.seed, accumulate=False, timer=timer)
        found[stage.name] = {name: x.detach().clone() for name, x in model.state_dict().items()}
    return found


@GPUS
def test_host_waits_of_a_step(machine: Machine, settings_of: SettingsOf) -> None:
    settings, found = settings_of("bf16"), {}
    for stage, model, batch in stages_of(settings, machine.device):
        optimizer, timer = make_optimizer(model, stage.settings.optimizer), StepTimer()

        def step() -> None:
            update(stage, model, optimizer, batch, settings.run.seed, accumulate=False, timer=timer).read()  # noqa: B023

        with using("bf16", machine.device):
            step()
            waits = machine.host_waits(step)
        if waits.total() > WAITS:
            found[stage.name] = waits
    assert not found


@pytest.mark.parametrize(
    "fault", [lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: x.nonzero(), lambda x: x[x > 0].sum()]
)
@GPUS
def test_the_check_sees_a_wait(machine: Machine, fault: Callable[[Tensor], object]) -> None:
    x = torch.ones(3, device=machine.device)
    assert machine.host_waits(lambda: fault(x)).total() > 0
    assert machine.host_waits(lambda: x.sum() + 1).total() == 0
