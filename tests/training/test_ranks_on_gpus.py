"""Two ranks on pretend GPUs train every stage as two ranks on CPUs do: they wait for their device once a step, and send
what NCCL accepts."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import STAGES, SmallWorld
from nccl_rules import nccl_rules
from pretend_gpu import PretendGpu
from safetensors.torch import load_file
from test_pretend_gpu import BUDGET
from test_workers import GlooWorker
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.utils import _pytree as trees

from groundray import config
from groundray.data.stream import Step
from groundray.distributed import barrier
from groundray.training import gradient_sums, loop, preflight, progression
from groundray.training.events import Event, Notice, StepDone

pytestmark = pytest.mark.thorough  # several ranks on pretend GPUs

POISONED = 2  # step of each epoch, counted from 0, in which rank 1's gradient is not finite
STEPS = 4  # of an epoch


def on_a_rank(rank: int, words: list[str], folder: str) -> None:
    """Train on a CPU, then on a pretend GPU, and save what both have told."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    gradient_sums.BUCKET_BYTES = 2**17  # several buckets for each stage
    encode_chunk = loop.encode_chunk

    def poisoned(stage: Any, model: Any, batch: Step, index: int, seed: int) -> Any:
        embeddings = encode_chunk(stage, model, batch, index, seed)
        for x in trees.tree_leaves(embeddings):
            if rank == 1 and batch.step == POISONED and isinstance(x, Tensor) and x.requires_grad:
                x.register_hook(lambda gradient: gradient * math.nan)
        return embeddings

    loop.encode_chunk = poisoned
    for device in ("cpu", "cuda"):
        told = train(rank, device, [*words, f"--run.storage={folder}/{device}"])
        Path(folder, f"{device}-{rank}.json").write_text(json.dumps(told))
    barrier()
    dist.destroy_process_group()


def train(rank: int, device: str, words: list[str]) -> dict[str, Any]:
    """Return the losses of a run by stage, its notices, the host waits of each step, and the number of collectives."""
    losses: dict[str, list[float]] = {stage: [] for stage in STAGES.split(",")}
    waits: dict[str, list[Counter[str]]] = {stage: [] for stage in losses}
    notices: list[str] = []

    class Observed(GlooWorker):
        def emit(self, event: Event) -> None:
            if isinstance(event, StepDone):
                losses[event.stage].append(event.metrics["loss"])
                if gpu:
                    waits[event.stage].append(Counter(gpu.waits))
                    gpu.waits.clear()
            if isinstance(event, Notice):
                notices.append(event.text.split(";")[0])

    gpu = PretendGpu() if device == "cuda" else None
    with gpu or contextlib.nullcontext(), nccl_rules() if not gpu else contextlib.nullcontext([]) as collectives:
        progression.run_stages(preflight.check(config.load("demo", words)), Observed(rank, 2, device))
        count = len(gpu.collectives if gpu else collectives)
    return {"losses": losses, "notices": notices, "waits": waits, "collectives": count}


@pytest.fixture(scope="module")
def folder(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ranks' runs."""
    folder = tmp_path_factory.mktemp("ranks")
    words = world.settings(
        *(
            f"--{stage}.{key}={value}"
            for stage in STAGES.split(",")
            for key, value in (("epochs", 1), ("precision", "float64"))
        ),
        *("--visual.batch_size=14", "--language.batch_size=90"),
        *(f"--{stage}.batch_size=18" for stage in ("grounding", "relational", "retrieval")),
        *("--scaling.chunks=4", "--grounding.trains.trunk=false", "--scaling.num_workers=2", "--run.on_nan=skip"),
        stages=STAGES,
    )
    spawn(on_a_rank, (words, str(folder)), nprocs=2)
    return folder


def told(folder: Path, device: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{device}-{rank}.json").read_text()) for rank in range(2)]


def test_losses_notices_and_weights_are_those_of_ranks_on_cpus(folder: Path) -> None:
    """In float64, where another order of sums changes 16th digits alone."""
    on_cpus, on_gpus = told(folder, "cpu"), told(folder, "cuda")
    assert len(on_cpus[0]["notices"]) == len(STAGES.split(","))  # one step of each stage is left out
    assert [one["notices"] for one in on_gpus] == [one["notices"] for one in on_cpus]
    for found, expected in zip(on_gpus, on_cpus, strict=True):
        for stage, losses in expected["losses"].items():
            assert found["losses"][stage] == pytest.approx(losses, rel=1e-9)
            assert len(losses) >= POISONED + 2
    files = sorted(path.relative_to(folder / "cpu") for path in (folder / "cpu").rglob("stages/**/*.safetensors"))
    assert len(files) >= len(STAGES.split(","))
    for file in files:
        expected, found = load_file(folder / "cpu" / file), load_file(folder / "cuda" / file)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("stage", STAGES.split(","))
def test_host_waits_of_a_step_on_several_ranks(folder: Path, stage: str) -> None:
    """Also where it is judged late that a step is not finite. A stage's first step makes the optimizer's state."""
    for rank in told(folder, "cuda"):
        for waits in rank["waits"][stage][1:]:
            assert sum(waits.values()) <= BUDGET[stage], waits


def test_gradients_are_summed_in_several_buckets(folder: Path) -> None:
    (first, second), (on_cpu, _) = told(folder, "cuda"), told(folder, "cpu")
    assert first["collectives"] == second["collectives"]
    assert first["collectives"] > 100, on_cpu["collectives"]
