"""The pretend GPU finds planted faults, and every stage trains on it within its budget of host waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from conftest import STAGES, SmallWorld
from nccl_rules import BrokenRule
from pretend_gpu import MixedDevices, NotReady, PretendGpu
from torch import Tensor, nn, optim

from groundray import config
from groundray.training import preflight, progression
from groundray.training.events import Event, StageDone, StepDone
from groundray.training.worker import InProcess

pytestmark = pytest.mark.thorough  # training steps under a mode that looks at every operation

# Most waits of the host in a step of two chunks, with the reading of its metrics.
BUDGET = dict.fromkeys(STAGES.split(","), 1)
# Most operations that launch kernels in such a step: a tenth more than with torch 2.15.
LAUNCHES = {"visual": 330, "language": 520, "grounding": 830, "relational": 840, "retrieval": 520}


class Counted(NamedTuple):
    """What a step has counted on a pretend GPU."""

    waits: Counter[str]
    launches: Counter[str]


def test_results_stay_on_the_device() -> None:
    with PretendGpu() as gpu:
        layer = nn.Linear(3, 4).to("cuda")
        gpu.reset()
        x = torch.ones(2, 3, device="cuda", requires_grad=True)
        y = layer(x) + torch.tensor(1.0)  # a CPU tensor of no dimension counts as a number
        y.relu().sum().backward()
        assert x.device.type == y.device.type == torch.zeros_like(y).device.type == "cuda"
        assert x.grad is not None
        assert x.grad.is_cuda
        assert gpu.waits.total() == 0
        assert not y.cpu().is_cuda
        assert gpu.waits.total() == 1


def fused_adam_with_steps_on_the_host(x: Tensor) -> None:
    """Do a step as after a checkpoint whose count of steps was left on the CPU."""
    optimizer = optim.Adam([x], fused=True)
    x.grad = torch.ones_like(x)
    optimizer.step()
    optimizer.state[x]["step"] = optimizer.state[x]["step"].cpu()
    optimizer.step()


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.zeros(3)]),
        lambda x: torch.ones(3)[x.long()],
        lambda x: nn.Linear(3, 3)(x),
        lambda x: x.numpy(),
        fused_adam_with_steps_on_the_host,
    ],
    ids=["sum", "cat", "indices", "module", "numpy", "optimizer"],
)
def test_mixed_devices_are_found_with_their_line(fault: Callable[[Tensor], object]) -> None:
    with PretendGpu(), pytest.raises((MixedDevices, TypeError), match=r"test_pretend_gpu\.py:\d+  "):
        fault(torch.ones(3, device="cuda"))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda x: x.sum().item(), "item"),
        (lambda x: float(x[0]), "item"),
        (lambda x: bool((x > 0).any()), "item"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "mask as index"),
        (lambda x: x[torch.tensor([0, 1])], "indices copied to the device"),
        (lambda x: x.unique(), "unique"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.cpu(), "blocking copy to the host"),
        (lambda x: torch.empty(3).copy_(x), "blocking copy to the host"),
        (lambda x: torch.ones(3).to("cuda"), "blocking copy to the device"),
        (lambda x: x.new_tensor([1, 2]), "numbers copied to the device"),
        (lambda x: torch.tensor([1], device=x.device), "numbers copied to the device"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
    ],
)
def test_host_waits_are_found_with_their_line(fault: Callable[[Tensor], object], cause: str) -> None:
    with PretendGpu() as gpu:
        x = torch.ones(3, device="cuda")
        fault(x)
    ((line, count),) = gpu.waits.items()
    assert line.startswith(f"{cause} @ ")
    assert "test_pretend_gpu.py:" in line
    assert count == 1


def test_waits_in_a_backward_pass_are_found() -> None:
    with PretendGpu() as gpu:
        x = torch.ones(3, device="cuda", requires_grad=True)
        y = x[x > 0]
        gpu.reset()
        y.sum().backward()
    assert gpu.waits.total() == 1


def test_copies_without_a_wait() -> None:
    with PretendGpu() as gpu:
        pinned = torch.ones(3).pin_memory()
        x = pinned.to("cuda", non_blocking=True)
        copied = torch.cuda.Event()
        host = x.to("cpu", non_blocking=True)
        copied.record()
        assert host.is_pinned()
        assert (gpu.waits.total(), gpu.pageable.total()) == (0, 0)
        with pytest.raises(NotReady, match=r"test_pretend_gpu\.py:"):
            host.tolist()
        with pytest.raises(NotReady):
            copied.elapsed_time(copied)
        for _ in range(2):  # the second time there is nothing to wait for
            copied.synchronize()
        assert host.tolist() == [1, 1, 1]
        assert gpu.waits.total() == 1
        gpu.reset()
        torch.ones(3).to("cuda", non_blocking=True)
    assert (gpu.waits.total(), gpu.pageable.total()) == (0, 12)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of one rank."""
    meet = tmp_path_factory.mktemp("group") / "meet"
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda: dist.all_gather([torch.ones(2, device="cuda")], torch.ones(2)), "tensors on several devices"),
        (lambda: dist.all_reduce(torch.ones(2, 3, device="cuda").T), "a tensor that is not contiguous"),
        (lambda: dist.all_reduce(torch.ones(2, dtype=torch.int16, device="cuda")), "a type that NCCL does not send"),
        (
            lambda: dist.all_gather([torch.ones(3, device="cuda")], torch.ones(2, device="cuda")),
            "of the shape of this rank's",
        ),
    ],
)
def test_what_nccl_refuses_is_found(group: None, fault: Callable[[], object], told: str) -> None:
    with PretendGpu(), pytest.raises(BrokenRule, match=told):
        fault()
    with PretendGpu() as gpu:
        dist.all_reduce(torch.ones(2, device="cuda"))
    assert gpu.collectives == ["all_reduce(float32[2] on cuda)"]
    assert gpu.waits.total() == 0  # NCCL's collectives return to the host at once


@pytest.fixture(scope="module")
def step(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counted]:
    """Returns what a step of each stage counts, after a run of all stages with their validations."""
    words = world.settings(
        *(f"--{stage}.epochs=1" for stage in STAGES.split(",")),
        *("--visual.batch_size=14", "--language.batch_size=90"),
        *(f"--{stage}.batch_size=18" for stage in ("grounding", "relational", "retrieval")),
        *("--scaling.chunks=2", "--grounding.trains.trunk=false"),
        f"--run.storage={tmp_path_factory.mktemp('runs')}",
        stages=STAGES,
    )
    found: dict[str, Counted] = {}
    done: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, StepDone):
            if event.step == 2:
                found[event.stage] = Counted(Counter(gpu.waits), Counter(gpu.launches))
            gpu.reset()
        if isinstance(event, StageDone):
            done.append(event.stage)

    torch.set_num_threads(1)
    with PretendGpu() as gpu:
        progression.run_stages(preflight.check(config.load("demo", words)), InProcess(observe, device="cuda"))
    assert done == STAGES.split(",")
    return found


@pytest.mark.parametrize("stage", STAGES.split(","))
def test_host_waits_of_a_training_step(step: dict[str, Counted], stage: str) -> None:
    assert step[stage].waits.total() <= BUDGET[stage], listed(step[stage].waits)


@pytest.mark.parametrize("stage", STAGES.split(","))
def test_launches_of_a_training_step(step: dict[str, Counted], stage: str) -> None:
    assert step[stage].launches.total() <= LAUNCHES[stage], listed(step[stage].launches)


def listed(counts: Counter[str]) -> str:
    return "\n".join(f"{count:>4} {name}" for name, count in counts.most_common())
