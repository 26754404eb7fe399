"""A step whose loss or gradient is not finite leaves no trace, whether the host or a GPU decides, and however late the
host knows of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SmallWorld
from pretend_gpu import PretendGpu
from torch import Tensor, nn, optim

from groundray import config
from groundray.stage.grounding import GroundingStage
from groundray.training import loop, preflight, progression
from groundray.training.checkpoint import CheckpointStore, Snapshot
from groundray.training.checkpointer import Checkpointer
from groundray.training.endings import Stopped
from groundray.training.events import Event, Notice, StepDone
from groundray.training.non_finite import NotFinite, is_finite, step_if_finite
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # whole runs, with every answer to losses that are not finite

STEPS = 6  # of an epoch
POISONED = (1, 3, 4, 6, 9, 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters, fused: optim.Adam(parameters, lr=0.1, weight_decay=0.1, fused=fused),
        lambda parameters, fused: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, fused=fused),
    ],
    ids=["adam", "sgd"],
)
@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("fault", ["loss", "gradient", "both"])
def test_a_step_that_is_not_finite_leaves_parameters_and_optimizer_as_they_were(
    make: Callable[..., optim.Optimizer], fused: bool | None, fault: str
) -> None:
    """Bit by bit, as if the step had not been, when it is the first, in the middle and twice in a row."""
    states = []
    for poisoned in ({0, 2, 3}, set()):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(5))]
        optimizer = make(parameters, fused)
        for step in range(6):
            if step in {0, 2, 3} - poisoned:
                continue
            gradients = [torch.full_like(p, 0.1 * (step + 1)) for p in parameters]
            loss = torch.tensor(0.5)
            if step in poisoned:
                loss *= math.nan if fault != "gradient" else 1
                gradients[1][3] = math.inf if fault != "loss" else 1
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            norm = nn.utils.get_total_norm(gradients)
            metrics = {"loss": loss.item(), "gradient_norm": norm.item()}
            nn.utils.clip_grads_with_norm_(parameters, 0.5, norm)
            step_if_finite(optimizer, loss, norm, lambda metrics=metrics: metrics)
        states.append(bits([*parameters, *(x for own in optimizer.state.values() for x in own.values())]))
    assert states[0] == states[1]


def bits(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(x.detach().numpy().tobytes() for x in tensors)).hexdigest()


@dataclass
class Run:
    """What a run has told, and the bits of each of its checkpoints by the number of steps."""

    events: list[Event] = field(default_factory=list)
    checkpoints: dict[int, tuple[int, str]] = field(default_factory=dict)
    error: str = ""

    @property
    def steps(self) -> list[tuple[int, int, dict[str, float]]]:
        kept = ("loss", "gradient_norm", "learning_rate", "skipped_steps")
        return [
            (event.epoch, event.step, {name: event.metrics[name] for name in kept if name in event.metrics})
            for event in self.events
            if isinstance(event, StepDone)
        ]

    @property
    def notices(self) -> list[str]:
        return [event.text.split(";")[0] for event in self.events if isinstance(event, Notice)]


def train(
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    poisoned: tuple[int, ...],
    naive: bool = False,
    stop_at: int | None = None,
) -> Run:
    """Train on a pretend GPU, with some losses NaN; `naive`: the host judges each step before the next begins."""
    run, real, save, seen = Run(), GroundingStage.loss, CheckpointStore.save, [0]

    def loss(stage: GroundingStage, encoded: list[Any]) -> Any:
        value, metrics = real(stage, encoded)
        if torch.is_grad_enabled():  # not in a validation
            seen[0] += 1
            value = value * math.nan if seen[0] in poisoned else value
        return value, metrics

    def record(store: CheckpointStore, snapshot: Snapshot) -> None:
        tensors = [tensor for part in snapshot.tensors.values() for _, tensor in sorted(part.items())]
        run.checkpoints[snapshot.checkpoint.done] = snapshot.checkpoint.skipped, bits(tensors)
        save(store, snapshot)

    def step_if_finite_naive(optimizer: optim.Optimizer, loss: Tensor, norm: Tensor, read: Any) -> None:
        if is_finite(read()):
            optimizer.step()

    class Immediate(Checkpointer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._defers = False

    with monkeypatch.context() as patches:
        patches.setattr(GroundingStage, "loss", loss)
        patches.setattr(CheckpointStore, "save", record)
        if naive:
            patches.setattr(loop, "step_if_finite", step_if_finite_naive)
            patches.setattr(loop, "Checkpointer", Immediate)
        torch.set_num_threads(1)
        worker = InProcess(
            run.events.append,
            device="cuda",
            get_stop_reason=lambda: "preempted" if stop_at and len(run.steps) >= stop_at else "",
        )
        with PretendGpu():
            try:
                progression.run_stages(preflight.check(config.load("demo", words)), worker)
            except (NotFinite, Stopped) as error:
                run.error = str(error)
    return run


@pytest.fixture(scope="module")
def words(world: SmallWorld) -> list[str]:
    return world.settings(
        "--grounding.trains.trunk=false", "--features.use=never", "--grounding.batch_size=12", "--run.log_samples=true"
    )


@pytest.fixture(scope="module")
def naive(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that waits after each step, and writes a checkpoint after each."""
    storage = tmp_path_factory.mktemp("naive")
    with pytest.MonkeyPatch.context() as patches:
        run = train(
            [*words, f"--run.storage={storage}", "--run.on_nan=skip", "--checkpoints.every_steps=1"],
            patches,
            POISONED,
            naive=True,
        )
    assert sorted(run.checkpoints) == list(range(1, 2 * STEPS + 1))
    assert run.checkpoints[2 * STEPS][0] == len(POISONED)
    return run


def test_late_judgement_gives_the_same_steps_checkpoints_and_notices(
    words: list[str], naive: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(
        [*words, f"--run.storage={tmp_path}", "--run.on_nan=skip", "--checkpoints.every_steps=2"], monkeypatch, POISONED
    )
    assert str(run.steps) == str(naive.steps)  # NaN is not equal to itself
    assert run.notices == naive.notices
    assert len(run.notices) == len(POISONED)
    # 6 and 12 end epochs; one is due after 4 and 10, which are not finite
    assert sorted(run.checkpoints) == [2, 5, 6, 8, 11, 12]
    assert all(naive.checkpoints[done] == found for done, found in run.checkpoints.items())


def test_a_run_stopped_on_a_gpu_resumes_where_it_was(
    words: list[str], naive: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [*words, f"--run.storage={tmp_path}", "--run.on_nan=skip", "--checkpoints.every_steps=100"]
    first = train(mine, monkeypatch, POISONED, stop_at=3)
    assert first.error == "preempted"
    done = max(first.checkpoints)
    assert first.steps[-1][1] == done  # no step is done that is not reported
    second = train(mine, monkeypatch, tuple(step - done for step in POISONED if step > done))
    assert str(first.steps + second.steps) == str(naive.steps)
    assert second.checkpoints[2 * STEPS] == naive.checkpoints[2 * STEPS]


def test_a_loss_that_is_not_finite_stops_a_run_on_a_gpu_at_its_step(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step after it was done already; neither is in a checkpoint."""
    run = train([*words, f"--run.storage={tmp_path}", "--checkpoints.every_steps=1"], monkeypatch, (5,))
    assert run.error.startswith("grounding, epoch 1, step 5 is not finite: loss nan")
    assert [number for _, number, _ in run.steps] == [1, 2, 3, 4]
    assert sorted(run.checkpoints) == [1, 2, 3, 4]
