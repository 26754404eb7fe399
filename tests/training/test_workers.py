"""Equal seeds give equal runs: repeated, and on one worker or two."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import STAGES, SmallWorld
from nccl_rules import nccl_rules
from torch.multiprocessing.spawn import spawn

from groundray import config
from groundray.data.device_copies import on_device
from groundray.data.plan import Cursor
from groundray.data.stream import Source, Step, stream
from groundray.distributed import barrier
from groundray.training import preflight, progression
from groundray.training.events import Attempted, EpochDone, Event, FeaturesDone, StageDone, StageStarted, StepDone
from groundray.training.gradient_sums import GradientSums
from groundray.training.loop import compute_gradients
from groundray.training.timing import PARTS, StepTimer
from groundray.training.worker import InProcess

EPOCH = 9  # steps of one


@dataclass
class GlooWorker:
    """A worker on torch.distributed, without Ray."""

    rank: int
    world_size: int
    device: str = "cpu"
    events: list[Event] = field(default_factory=list)

    def batches(self, source: Source, cursor: Cursor, epochs: int) -> Iterator[Step]:
        return on_device(stream(source, cursor, epochs, self.rank, self.world_size), self.device)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def heartbeat(self) -> None:
        pass

    def step_timed(self, stage: str, seconds: Mapping[str, float]) -> dict[str, float]:
        return {}

    def stop_reason(self) -> str:
        return ""


def losses(events: list[Event]) -> list[float]:
    return [event.metrics["loss"] for event in events if isinstance(event, StepDone)]


def on_a_rank(rank: int, runs: dict[str, list[str]], folder: str) -> None:
    """Train runs one after the other in a process of its own; rank 0 saves their losses."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with nccl_rules():
        for name, words in runs.items():
            worker = GlooWorker(rank, 2)
            progression.run_stages(preflight.check(config.load("demo", words)), worker)
            if rank == 0:
                Path(folder, f"{name}.json").write_text(json.dumps(losses(worker.events)))
        barrier()
    dist.destroy_process_group()


def passes_on_a_rank(rank: int, words: list[str], folder: str) -> None:
    """Run the stages on one of two ranks; rank 0 writes the names of the passes that were made, and all losses."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    worker = GlooWorker(rank, 2)
    progression.run_stages(preflight.check(config.load("demo", words)), worker)
    if rank == 0:
        told = [event.what for event in worker.events if isinstance(event, FeaturesDone)]
        Path(folder, "found.json").write_text(json.dumps([told, losses(worker.events)]))
    barrier()
    dist.destroy_process_group()


def first_losses(words: list[str], rank: int = 0, world_size: int = 1) -> dict[str, float]:
    """Return the loss of each stage's first step, on the weights that the run begins with."""
    torch.set_num_threads(1)
    run = preflight.check(config.load("demo", words))
    model, heads = progression.initial_model(run.settings)
    found = {}
    for stage in run.stages:
        progression.attach_heads(stage, model, heads, run.settings)
        stage.prepare(model)
        batch = next(stream(stage.train, Cursor(), 1, rank, world_size))
        sums = GradientSums([parameter for parameter in model.parameters() if parameter.requires_grad])
        loss, _ = compute_gradients(stage, model, batch, run.settings.run.seed, False, StepTimer(), sums)
        found[stage.name] = loss.item()
    return found


def first_losses_on_a_rank(rank: int, world_size: int, words: list[str], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    with nccl_rules():
        found = first_losses(words, rank, world_size)
        barrier()
    dist.destroy_process_group()
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def alone(words: list[str]) -> list[Event]:
    events: list[Event] = []
    torch.set_num_threads(1)  # as on a rank: sums over more threads are other sums
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(events.append))
    return events


@pytest.mark.thorough
def test_one_worker_and_two_give_the_same_losses(world: SmallWorld, tmp_path: Path) -> None:
    """Dropout on: to 1e-4 at each of more than 50 steps in float32, to 1e-9 in float64; bit by bit when run twice."""
    epochs = {"float32": 6, "float64": 2}
    runs = {
        precision: world.settings(
            *(f"--grounding.epochs={number}", f"--grounding.precision={precision}", "--grounding.dropout=0.3"),
            "--data.window=24",
        )
        for precision, number in epochs.items()
    }
    one = {
        precision: losses(alone([*words, f"--run.storage={tmp_path}/one", f"--run.name={precision}"]))
        for precision, words in runs.items()
    }
    again = losses(alone([*runs["float32"], f"--run.storage={tmp_path}/again"]))
    two = {
        precision: [*words, f"--run.storage={tmp_path}/two", f"--run.name={precision}", "--scaling.num_workers=2"]
        for precision, words in runs.items()
    }
    spawn(on_a_rank, (two, str(tmp_path)), nprocs=2)

    assert again == one["float32"]
    assert json.loads((tmp_path / "float32.json").read_text())[0] == one["float32"][0]  # before the first update
    for precision, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        found = json.loads((tmp_path / f"{precision}.json").read_text())
        assert len(found) == len(one[precision]) == EPOCH * epochs[precision]
        differences = [abs(a - b) / b for a, b in zip(found, one[precision], strict=True)]
        assert max(differences) <= tolerance, f"{precision}: {differences}"
    assert len(set(one["float32"])) == EPOCH * epochs["float32"]  # the loss changes at each step


@pytest.mark.thorough
def test_every_stage_has_equal_losses_on_one_worker_and_two(world: SmallWorld, tmp_path: Path) -> None:
    """Each step of every stage, with dropout, in both precisions, and a sample more on the first worker."""
    others = ("visual", "language", "relational", "retrieval")
    words = {
        precision: world.settings(
            *(f"--{stage}.epochs=1" for stage in others),
            *(f"--{stage}.precision={precision}" for stage in others),
            *(f"--{stage}.batch_size={43 if stage == 'language' else 9}" for stage in others),
            stages=",".join(others),
        )
        for precision in ("float32", "float64")
    }
    two = {
        precision: [*some, f"--run.storage={tmp_path}/two", f"--run.name={precision}", "--scaling.num_workers=2"]
        for precision, some in words.items()
    }
    spawn(on_a_rank, (two, str(tmp_path)), nprocs=2)
    for precision, tolerance in (("float64", 1e-9), ("float32", 1e-4)):
        one = losses(alone([*words[precision], f"--run.storage={tmp_path}/one", f"--run.name={precision}"]))
        found = json.loads((tmp_path / f"{precision}.json").read_text())
        assert found == pytest.approx(one, rel=tolerance)
        assert len(one) == 6 + 8 + 8 + 8


@pytest.mark.thorough
def test_first_loss_has_the_same_bits_on_one_two_and_four_workers(world: SmallWorld, tmp_path: Path) -> None:
    """In float32, with dropout, in chunks of three and two samples: one, two or four a worker."""
    words = [
        *world.settings("--scaling.chunks=4", stages=STAGES),
        *(f"--{stage}.batch_size={42 if stage == 'language' else 10}" for stage in STAGES.split(",")),
    ]
    expected = first_losses(words)
    assert set(expected) == set(STAGES.split(","))
    for world_size in (2, 4):
        folder = tmp_path / str(world_size)
        folder.mkdir()
        spawn(first_losses_on_a_rank, (world_size, words, str(folder)), nprocs=world_size)
        found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world_size)]
        assert found == [expected] * world_size


@pytest.mark.thorough
def test_resumed_run_ends_with_equal_weights(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings("--grounding.epochs=3")
    whole = alone([*words, f"--run.storage={tmp_path}/whole"])

    class Killed(Exception):
        pass

    def kill_after_first_epoch(event: Event) -> None:
        if isinstance(event, StepDone) and event.epoch == 1:
            raise Killed

    settings = config.load("demo", [*words, f"--run.storage={tmp_path}/resumed"])
    with pytest.raises(Killed):
        progression.run_stages(preflight.check(settings), InProcess(kill_after_first_epoch))
    rest: list[Event] = []
    progression.run_stages(preflight.check(settings), InProcess(rest.append))

    (started,) = (event for event in rest if isinstance(event, StageStarted))
    assert (started.step, started.steps) == (9, 27)
    assert losses(rest) == losses(whole)[9:]
    place = Path("demo", "model", "stages", "grounding", "visual.safetensors")
    weights = [Path(tmp_path, name, place).read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_finished_run_is_not_trained_again(world: SmallWorld, tmp_path: Path) -> None:
    words = [*world.settings(), f"--run.storage={tmp_path}"]
    first = alone(words)
    second = alone(words)
    assert isinstance(first[-1], StageDone)
    (attempt,) = second
    assert isinstance(attempt, Attempted)
    assert (attempt.number, attempt.stage, attempt.ended) == (2, None, "finished")


def test_result_and_events_of_a_run(world: SmallWorld, tmp_path: Path) -> None:
    events = alone([*world.settings(), f"--run.storage={tmp_path}"])
    epochs = [event for event in events if isinstance(event, EpochDone)]
    best = min(epochs, key=lambda event: event.metrics["loss"])
    result = json.loads((tmp_path / "demo" / "result.json").read_text())
    told = result["stages"]["grounding"]
    assert {name: value for name, value in told.items() if not name.startswith("without_image/")} == best.metrics
    assert told["without_image/text_to_image/recall@1"] == 0.0  # all blank images are equal, and ties count as misses
    assert set(best.metrics) >= {"loss", "text_to_image/recall@1", "image_to_text/recall@10"}
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in steps] == list(range(1, 19))
    for event in steps:
        fractions = {name: fraction for name, fraction in event.metrics.items() if name.startswith("time/")}
        assert set(fractions) == {f"time/{part}" for part in (*PARTS, "other")}
        assert sum(fractions.values()) == pytest.approx(1)
        assert fractions["time/forward"] > 0
        assert fractions["time/backward"] > 0
        assert event.metrics["samples_per_second"] == event.metrics["samples_per_second_per_worker"] > 0
        assert 0.05 < event.metrics["peak_memory_gb"] < 20


@pytest.mark.thorough
def test_accumulation_gives_equal_losses_and_weights(world: SmallWorld, tmp_path: Path) -> None:
    """One chunk's graph at a time, in four chunks with dropout: bit-equal in every stage."""
    words = [
        *world.settings("--scaling.chunks=4", "--grounding.dropout=0.3", stages=STAGES),
        *(f"--{stage}.epochs=1" for stage in STAGES.split(",")),
    ]
    once, chunked = (
        alone([*words, f"--run.storage={tmp_path}/{name}", f"--scaling.accumulate={name}"])
        for name in ("false", "true")
    )
    assert losses(chunked) == losses(once)
    files = [path.relative_to(tmp_path / "false") for path in (tmp_path / "false").rglob("stages/**/*.safetensors")]
    assert len(files) >= 5
    for file in files:
        assert (tmp_path / "true" / file).read_bytes() == (tmp_path / "false" / file).read_bytes(), file


@pytest.mark.thorough
def test_learning_rate_halves(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(
        "--grounding.epochs=3", "--grounding.optimizer.halve_every=2", "--grounding.optimizer.lr=0.01"
    )
    events = alone([*words, f"--run.storage={tmp_path}"])
    rates = {event.epoch: event.metrics["learning_rate"] for event in events if isinstance(event, StepDone)}
    assert rates == {0: 0.01, 1: 0.01, 2: 0.005}


@pytest.mark.thorough
@pytest.mark.parametrize("words", [["--grounding.precision=bf16"], ["--grounding.clip_norm=0.01"]])
def test_precision_and_clipping(world: SmallWorld, tmp_path: Path, words: list[str]) -> None:
    events = alone([*world.settings("--grounding.epochs=1"), f"--run.storage={tmp_path}", *words])
    assert all(math.isfinite(loss) for loss in losses(events))
    if "clip" in words[0]:
        assert all("gradient_norm" in event.metrics for event in events if isinstance(event, StepDone))


def test_a_name_with_another_configuration_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    words = [*world.settings(), f"--run.storage={tmp_path}"]

    def claim(*more: str) -> None:
        settings = config.load("demo", [*words, *more])
        preflight.claim(preflight.check(settings))

    claim("--grounding.temperature=0.1")
    # who works on it may change, and what is not run
    claim("--grounding.temperature=0.1", "--scaling.num_workers=1", "--relational.temperature=3")
    with pytest.raises(config.SettingsError) as caught:
        claim("--grounding.temperature=0.5")
    message = str(caught.value)
    assert re.search(r"grounding\.temperature: 0\.1 .*0\.5 ", message)
    assert "another --run.name" in message


def test_a_name_with_other_data_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(world.shards / "captions" / "val", shards)
    settings = config.load("demo", [*world.settings(), f"--run.storage={tmp_path}/runs", f"--grounding.val={shards}"])
    preflight.claim(preflight.check(settings))
    shutil.rmtree(shards)
    shutil.copytree(world.shards / "captions" / "train", shards)
    with pytest.raises(config.SettingsError, match=r"grounding\.val \(the shards' fingerprint\)"):
        preflight.claim(preflight.check(settings))
