"""Streams: every rank's steps are those of the plan, in one process and on Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from conftest import SmallWorld
from hypothesis import given
from hypothesis import strategies as st
from ray.data import DataContext
from ray.exceptions import RayTaskError
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util import placement_group, remove_placement_group

from groundray import config
from groundray.data.captions import CaptionSamples, drawn_captions
from groundray.data.plan import Cursor
from groundray.data.row_groups import read_rows
from groundray.data.schema import KINDS, Dataset
from groundray.data.shards import write_shards
from groundray.data.stream import CachedBatches, Source, Step, assemble, decode, empty_arrays, read, stream, windows
from groundray.model.pretrained import load_tokenizer
from groundray.rng import hash_name, pick
from groundray.runtime.data import ray_stream as runtime
from groundray.runtime.train import failure_policy
from groundray.runtime.train.resources import DataCpuBudget
from groundray.stage.grounding import GroundingStage
from groundray.storage.folder import Folder


@pytest.fixture(scope="module")
def stage(world: SmallWorld) -> GroundingStage:
    settings = config.load("demo", world.settings("--data.window=24"))
    return GroundingStage.open(settings, load_tokenizer(settings.model.language))


def ids(source: Source, cursor: Cursor = Cursor(), epochs: int = 1, rank: int = 0, of: int = 1) -> list[list[str]]:  # noqa: B008
    return [
        [sample for _, batch in step.chunks for sample in batch.ids]
        for step in stream(source, cursor, epochs, rank, of)
    ]


def test_epoch_has_every_sample_once(stage: GroundingStage) -> None:
    seen = [sample for step in ids(stage.train) for sample in step]
    assert sorted(seen, key=int) == [str(number) for number in range(72)]


def test_validation_keeps_the_order_and_drops_nothing(stage: GroundingStage) -> None:
    source = replace(stage.val, plan=replace(stage.val.plan, chunks=1))
    assert [sample for step in ids(source) for sample in step] == [str(number) for number in range(72, 92)]


def test_stream_resumes_at_the_cursor(stage: GroundingStage) -> None:
    whole = ids(stage.train, epochs=2)
    steps = stage.train.plan.steps
    assert ids(stage.train, Cursor(0, 4), 2) == whole[4:]
    assert ids(stage.train, Cursor(1, 0), 2) == whole[steps:]
    assert ids(stage.train, Cursor(2, 0), 2) == []


def test_two_ranks_read_what_one_rank_reads(stage: GroundingStage) -> None:
    alone = ids(stage.train)
    shares = [ids(stage.train, rank=rank, of=2) for rank in (0, 1)]
    assert [left + right for left, right in zip(*shares, strict=True)] == alone


def test_rank_without_samples_in_the_last_batch_gets_an_empty_chunk(stage: GroundingStage) -> None:
    # 20 samples over 2 chunks in batches of 6 and a 19-sample plan leave the second chunk one step short
    plan = replace(stage.val.plan, group_sizes=(19,), batch_size=18)
    source = replace(stage.val, plan=plan)
    last = list(stream(source, Cursor(), 1, rank=1, world_size=2))[-1]
    ((number, batch),) = last.chunks
    assert (number, len(batch), last.ends_epoch) == (1, 0, True)
    assert batch.images.shape == (0, 3, 112, 112)
    assert batch.tokens.shape == (0, 0)


def with_a_broken_image(stage: GroundingStage, folder: Path) -> Source:
    """The training source, with shards in which sample 7 is not an image."""
    shards = folder / "broken"
    rows = read_rows(stage.train.dataset, np.arange(72), [field.name for field in KINDS["captions"]]).to_pylist()
    rows[7]["image"] = b"no image"
    dataset = write_shards(Folder.at(shards).make(), "captions", rows, {}, {})
    plan = replace(stage.train.plan, group_sizes=tuple(dataset.group_sizes.tolist()))
    return replace(stage.train, dataset=dataset, plan=plan)


def test_undecodable_sample_is_named(stage: GroundingStage, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/broken: sample '7' \(row 7\) cannot be decoded: expected a picture"
    ):
        ids(with_a_broken_image(stage, tmp_path))


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_undecodable_sample_is_named_on_ray_and_ends_the_run(stage: GroundingStage, tmp_path: Path) -> None:
    """Ray Data alone would raise "UDF failed to process a data block", and the run would be retried."""
    steps = runtime.stream(
        with_a_broken_image(stage, tmp_path), Cursor(), 1, 0, 1, cpu_budget=DataCpuBudget(1.0, 1.0), prefetch=1
    )
    with pytest.raises(RayTaskError) as caught:
        list(steps)
    assert failure_policy.is_final(caught.value)
    failed = WorkerGroupError("failed", {0: caught.value})
    assert failure_policy.describe(failed).startswith(
        f"worker 0: ValueError: {tmp_path}/broken: sample '7' (row 7) cannot be decod"
    )


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_validation_is_read_while_paused_training_holds_its_cpus(
    stage: GroundingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "BLOCK_BYTES", 100_000)  # one task decodes many blocks
    context = DataContext.get_current().copy()
    context.override_object_store_memory_limit_fraction = 1e-4  # a few blocks fill it
    cpu_budget = DataCpuBudget(1.0, 1.0)
    workers = placement_group([{"CPU": ray.cluster_resources()["CPU"] - 1}])  # have the others
    ray.get(workers.ready())
    with DataContext.current(context):
        training = runtime.stream(stage.train, Cursor(), 100, 0, 1, cpu_budget, prefetch=1)
        next(training)
        # the full store blocks a decoding task, and keeps the next from starting
        until, blocked, decoding = time.monotonic() + 60, 0, runtime.task_sizes(cpu_budget).decoding
        while blocked < 20:
            free = ray.available_resources().get("CPU", 0)
            blocked = blocked + 1 if free <= 1 - decoding + 1e-3 else 0
            assert time.monotonic() < until, f"{free} CPUs are still free"
            time.sleep(0.1)
        validation = runtime.stream(stage.val, Cursor(), 1, 0, 1, cpu_budget, prefetch=1)
        assert sum(len(batch.ids) for step in validation for _, batch in step.chunks) == 20
        next(training)
    remove_placement_group(workers)


def test_caption_is_fixed_by_epoch_and_sample(stage: GroundingStage) -> None:
    def captions(epoch: int, rows: list[int]) -> dict[str, str]:
        table = read_rows(stage.train.dataset, np.array(rows), ["id", "image", "captions"])
        drawn = stage.train.samples.draw(table, epoch)
        return dict(zip(drawn["id"].to_pylist(), drawn["caption"].to_pylist(), strict=True))

    rows = list(range(72))
    first = captions(0, rows)
    assert first == captions(0, rows[::-1])  # independent of the other rows
    second = captions(1, rows)
    assert 20 < sum(first[sample] != second[sample] for sample in first) < 72


@given(st.lists(st.lists(st.text(max_size=3), min_size=1, max_size=7), max_size=12), st.integers(0, 2**40))
def test_captions_drawn_together_equal_those_drawn_one_by_one(options: list[list[str]], epoch: int) -> None:
    names = [f"photo-{number}" for number in range(len(options))]
    table = pa.table({"id": pa.array(names, pa.string()), "captions": pa.array(options, pa.list_(pa.string()))})
    # a run goes on with the captions of the version that began it: 3 must never change
    drawn = [int(pick(len(texts), 7, 3, epoch, hash_name(name))) for name, texts in zip(names, options, strict=True)]
    expected = [texts[number] for texts, number in zip(options, drawn, strict=True)]
    assert drawn_captions(table, 7, epoch).to_pylist() == expected


def test_validation_takes_the_first_caption(stage: GroundingStage) -> None:
    table = read_rows(stage.val.dataset, np.arange(20), ["id", "image", "captions"])
    drawn = stage.val.samples.draw(table, epoch=5)
    assert drawn["caption"].to_pylist() == [options[0] for options in table["captions"].to_pylist()]


def test_batch_is_padded_to_its_longest_caption(stage: GroundingStage) -> None:
    for step in stream(stage.train, Cursor(), 1):
        for _, batch in step.chunks:
            lengths = batch.attention_mask.sum(dim=1)
            assert batch.tokens.shape[1] == lengths.max()
            assert torch.equal(batch.tokens != 0, batch.attention_mask)  # padding has id 0, no word piece has
            assert batch.images.dtype == torch.uint8


def test_truncated_caption_keeps_its_separator(stage: GroundingStage, world: SmallWorld) -> None:
    tokenizer = load_tokenizer(config.Language(name="tiny", tokenizer=str(world.source / "tokenizer")))
    samples = stage.train.samples
    assert isinstance(samples, CaptionSamples)
    short = replace(
        samples, tokenizer=replace(samples.tokenizer, max_tokens=5), seed=None
    )  # first captions: each has more
    table = read_rows(stage.train.dataset, np.arange(4), ["id", "image", "captions"])
    tokens = short.decode(short.draw(table, 0))["tokens"]
    assert tokens.shape == (4, 5)
    assert set(tokens[:, 0]) == {tokenizer.cls_token_id}
    assert set(tokens[:, 4]) == {tokenizer.sep_token_id}


def test_unplanned_rows_raise(stage: GroundingStage) -> None:
    window = next(windows(stage.train.plan, Cursor(), 1))
    chunks = range(2)
    _, (_, table), *_ = read(stage.train, window, chunks)
    arrays = decode(stage.train, table)
    with pytest.raises(RuntimeError, match="epoch 0 step 0: expected rows"):
        assemble(stage.train, 0, 0, chunks, arrays)
    with pytest.raises(RuntimeError, match=r"got .* \(0\)"):
        assemble(stage.train, 0, 0, chunks, empty_arrays(stage.train))


def test_shards_of_another_kind_or_missing_shards_raise(world: SmallWorld) -> None:
    with pytest.raises(ValueError, match=r"expected shards of kind 'text'.*kind 'captions'"):
        Dataset.open(str(world.shards / "captions" / "train"), "text")
    with pytest.raises(FileNotFoundError, match=r"no dataset\.json.*groundray\.prepare"):
        Dataset.open(str(world.shards))


def test_small_validation_set_is_read_once(stage: GroundingStage) -> None:
    reads = 0

    def read_steps() -> Iterator[Step]:
        nonlocal reads
        reads += 1
        return stream(stage.val, Cursor(), 1)

    def seen(steps: CachedBatches) -> list[str]:
        return [sample for step in steps for _, batch in step.chunks for sample in batch.ids]

    small, large = (
        CachedBatches(read_steps),
        CachedBatches(read_steps, max_bytes=20 * 3 * 112 * 112),
    )  # the images alone fill it
    assert seen(small) == seen(small) == seen(small)
    assert reads == 1
    next(iter(large))
    assert seen(large) == seen(large) == seen(small)
    assert reads == 4
