"""Features on this machine: the same maps and steps as through Arrow, and every damage an error."""

from __future__ import annotations

import os
import pickle
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SmallWorld
from hypothesis import given
from hypothesis import strategies as st

from groundray import config
from groundray.data import feature_stream, row_checksums
from groundray.data.image_inputs import FeatureMaps
from groundray.data.local_features import LocalFeatures
from groundray.data.parquet_pages import pages
from groundray.data.plan import Cursor
from groundray.data.row_checksums import CHECKSUMS
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.shards import OPTIONS, encode_shard, index_shards
from groundray.data.stream import Source, Step, empty_arrays, stream
from groundray.model.pretrained import load_tokenizer
from groundray.stage.grounding import GroundingStage
from groundray.storage.folder import Folder

SHAPE, LARGE = (4, 3, 3), (32, 16, 16)  # without and with checksums of the rows
FIRST = "part-0.parquet"


def write_features(
    folder: Path,
    sizes: list[int],
    rows_per_group: int | None = None,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
) -> Dataset:
    """Write parts of random maps, one for each size."""
    out, draw = Folder.at(folder).make(), np.random.default_rng(seed)
    for number, rows in enumerate(sizes):
        maps = draw.integers(0, 2**16, (rows, *shape), np.uint16)
        content = pa.array([one.tobytes() for one in maps], pa.large_binary())
        out.write_bytes(
            f"part-{number}.parquet",
            encode_shard("trunk_features", {"image": content}, f"{seed}-{number}", rows_per_group).bytes,
        )
    return index_shards(out, "trunk_features", [f"part-{number}.parquet" for number in range(len(sizes))], {})


@pytest.mark.parametrize("rows_per_group", [None, 7])
def test_maps_are_those_that_arrow_reads(tmp_path: Path, rows_per_group: int | None) -> None:
    dataset = write_features(tmp_path, [40_000, 5, 300], rows_per_group and 7000)  # the first has several pages
    features = LocalFeatures(dataset)
    rows = np.random.default_rng(1).integers(0, dataset.rows, 500)
    features.check([rows[:250], rows[250:]])
    expected = read_rows(dataset, rows, ["image"])["image"].combine_chunks()
    assert features.maps(rows).equals(expected)
    assert pickle.loads(pickle.dumps(features)).maps(rows).equals(expected)  # noqa: S301  written above
    assert len(features.maps(rows[:0])) == 0
    found = FeatureMaps(SHAPE).arrays(pa.table({"image": features.maps(rows)}))
    assert found.shape == (500, *SHAPE)
    assert found.tobytes() == b"".join(expected.to_pylist())


@pytest.fixture(params=["pages of many rows", "pages of one row", "earlier version"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pages of large maps, as groundray writes them, as other writers may, and without checksums of the rows."""
    if request.param == "pages of one row":
        monkeypatch.setitem(OPTIONS, "write_batch_size", 1)
        monkeypatch.setitem(OPTIONS, "data_page_size", 1)
    if request.param == "earlier version":
        monkeypatch.setattr(row_checksums, "ROW_BYTES", 2**60)
    return request.param


@pytest.mark.parametrize("rows_per_group", [None, 7])
def test_large_maps_are_those_that_arrow_reads(tmp_path: Path, layout: str, rows_per_group: int | None) -> None:
    dataset = write_features(tmp_path, [40, 3], rows_per_group, shape=LARGE)
    metadata = pq.read_metadata(tmp_path / FIRST)
    assert (CHECKSUMS.encode() in metadata.metadata) == (layout != "earlier version")
    rows = np.random.default_rng(1).integers(0, dataset.rows, 100)
    expected = read_rows(dataset, rows, ["image"])["image"].combine_chunks()  # compares the checksums of pages
    features = LocalFeatures(dataset)
    assert features.maps(rows).equals(expected)
    assert features.maps(rows[::-1]).equals(expected[::-1])
    assert features.maps(rows[:1]).equals(expected[:1])


def test_large_maps_in_several_pages_are_those_that_arrow_reads(tmp_path: Path) -> None:
    dataset = write_features(tmp_path, [1100], shape=LARGE)  # a page has 1024 at most
    rows = np.array([1099, 0, 1023, 1024])
    assert LocalFeatures(dataset).maps(rows).equals(read_rows(dataset, rows, ["image"])["image"].combine_chunks())


def places_of_damage(file: Path) -> dict[str, int]:
    """Return a place in each thing that a file of large maps has."""
    content, column = file.read_bytes(), pq.read_metadata(file).row_group(0).column(0)
    start = column.data_page_offset
    page = next(pages(reader(content), start, start + column.total_compressed_size))
    assert page.checksum is not None
    zigzag, checksum = (page.checksum << 1) ^ (page.checksum >> 31), b""
    while zigzag >= 128:
        zigzag, checksum = zigzag >> 7, checksum + bytes([zigzag & 127 | 128])
    return {
        "kind of a page": start + 1,
        "checksum of a page": content.index(checksum, start, page.start),
        "length of a map": page.start,
        "first byte of a map": page.start + 4,
        "last byte of a page": page.start + page.size - 1,
    }


def test_each_flipped_bit_of_large_maps_is_an_error(tmp_path: Path, layout: str) -> None:
    dataset = write_features(tmp_path, [6], shape=LARGE)
    file = tmp_path / FIRST
    whole, places, rows = file.read_bytes(), places_of_damage(file), np.arange(6)
    if layout != "earlier version":
        places["checksum of a map"] = whole.rindex(CHECKSUMS.encode()) + len(CHECKSUMS) + 10
    features = LocalFeatures(dataset)
    before = features.maps(rows)
    for number, (what, place) in enumerate(places.items()):
        for bit in range(8):
            file.write_bytes(changed(whole, place, 1 << bit))
            os.utime(file, ns=(0, 8 * number + bit))  # the clock of a file system may stand still for 4 ms
            for one in (features, LocalFeatures(dataset)):
                with pytest.raises(ValueError, match=rf"{FIRST}, row group 0 cannot be read .*the run makes it again"):
                    pytest.fail(f"bit {bit} of the {what} gave {one.maps(rows)}")
    file.write_bytes(whole)
    assert features.maps(rows).equals(before)


def test_a_damaged_large_map_is_an_error_where_it_is_read(tmp_path: Path) -> None:
    dataset = write_features(tmp_path, [6], shape=LARGE)
    file = tmp_path / FIRST
    before = LocalFeatures(dataset).maps(np.arange(5))
    content = file.read_bytes()
    column = pq.read_metadata(file).row_group(0).column(0)
    file.write_bytes(changed(content, column.data_page_offset + column.total_compressed_size - 1))  # of the last map
    features = LocalFeatures(dataset)
    features.check([np.arange(6)])
    assert features.maps(np.arange(5)).equals(before)
    with pytest.raises(ValueError, match="map 5 has another checksum"):
        features.maps(np.arange(6))


def test_the_checksum_of_a_page_follows_from_those_of_its_rows(tmp_path: Path) -> None:
    write_features(tmp_path, [7], rows_per_group=4, shape=LARGE)
    metadata = pq.read_metadata(tmp_path / FIRST)
    table = pq.read_table(tmp_path / FIRST)
    rows = [len(one).to_bytes(4, "little") + one for one in table["image"].to_pylist()]
    first, second = row_checksums.read_checksums(metadata, 0), row_checksums.read_checksums(metadata, 1)
    assert first is not None
    assert second is not None
    assert [*first, *second] == [zlib.crc32(row) for row in rows]
    assert row_checksums.joined(second, len(rows[0])) == zlib.crc32(b"".join(rows[4:]))


def reader(content: bytes) -> Callable[[int, int], bytes]:
    return lambda start, size: content[start : start + size]


def test_pages_cover_a_column(tmp_path: Path) -> None:
    write_features(tmp_path, [40_000])
    content = (tmp_path / FIRST).read_bytes()
    column = pq.read_metadata(tmp_path / FIRST).row_group(0).column(0)
    end = column.data_page_offset + column.total_compressed_size
    found = list(pages(reader(content), column.data_page_offset, end))
    assert len(found) > 1
    assert sum(page.rows for page in found) == 40_000
    assert found[-1].start + found[-1].size == end
    with pytest.raises(ValueError, match="where the column ends"):
        list(pages(reader(content), column.data_page_offset, end - 1))


@given(st.binary(max_size=60))
def test_bytes_that_are_no_page_are_a_value_error(content: bytes) -> None:
    try:
        found = list(pages(reader(content), 0, len(content)))
    except ValueError:
        return
    assert all(page.start + page.size <= len(content) for page in found)


def changed(content: bytes, place: int, bits: int = 1) -> bytes:
    return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]


def test_damaged_and_replaced_parts_are_errors(tmp_path: Path) -> None:
    dataset = write_features(tmp_path / "own", [10, 10])
    other = write_features(tmp_path / "other", [10, 10], seed=1)
    file, whole = tmp_path / "own" / FIRST, (tmp_path / "own" / FIRST).read_bytes()
    features, row = LocalFeatures(dataset), np.array([3])
    before = features.maps(row)

    for content, message in (
        (changed(whole, 100), "another checksum"),
        (whole[:-1], r"expected .* bytes, got"),
        ((tmp_path / "other" / FIRST).read_bytes(), "expected id 0-0, got 1-0"),
        (whole[:4] + b"\x00" * 20 + whole[24:], "no header of a data page"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{FIRST}.*{message}"):
            features.maps(row)
        with pytest.raises(ValueError, match=message):
            features.check([row])
    file.unlink()
    with pytest.raises(ValueError, match=r"cannot be read .*No such file.*delete it, and the run makes it again"):
        features.maps(row)
    file.write_bytes(whole)
    assert features.maps(row).equals(before)
    assert not LocalFeatures(other).maps(row).equals(before)


def test_maps_of_different_sizes_are_an_error(tmp_path: Path) -> None:
    content = pa.array([b"ab", b"abcd"], pa.large_binary())
    out = Folder.at(tmp_path)
    out.write_bytes(FIRST, encode_shard("trunk_features", {"image": content}, "x").bytes)
    dataset = index_shards(out, "trunk_features", [FIRST], {})
    with pytest.raises(ValueError, match=r"row group 0 cannot be read .*one size"):
        LocalFeatures(dataset).maps(np.array([0]))


def test_parts_of_different_sizes_are_an_error(tmp_path: Path) -> None:
    out = Folder.at(tmp_path)
    for name, content in (("a.parquet", b"ab"), ("b.parquet", b"abcd")):
        column = pa.array([content], pa.large_binary())
        out.write_bytes(name, encode_shard("trunk_features", {"image": column}, name).bytes)
    features = LocalFeatures(index_shards(out, "trunk_features", ["a.parquet", "b.parquet"], {}))
    assert features.maps(np.array([1, 1])).to_pylist() == [b"abcd", b"abcd"]
    with pytest.raises(ValueError, match=r"b.parquet, row group 0 cannot be read .*expected maps of 2 bytes, got 4"):
        features.maps(np.array([1, 0]))


@pytest.mark.parametrize("checked", [True, False])
def test_a_part_that_is_truncated_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    dataset = write_features(tmp_path, [100_000])
    features, row = LocalFeatures(dataset), np.array([99_000])
    if checked:
        features.check([row])
    status = os.fstat

    def truncated_after(file: int) -> os.stat_result:
        found = status(file)
        os.truncate(tmp_path / FIRST, 2_000_000)
        return found

    monkeypatch.setattr(os, "fstat", truncated_after)
    with pytest.raises(ValueError, match=rf"{FIRST}, row group 0 cannot be read .*delete it, and the run"):
        features.maps(row)


@pytest.fixture(scope="module", params=[SHAPE, LARGE], ids=["small maps", "large maps"])
def source(request: pytest.FixtureRequest, world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """The grounding stage's training source with features of its images."""
    settings = config.load("demo", world.settings("--data.window=24"))
    source = GroundingStage.open(settings, load_tokenizer(settings.model.language)).train
    sizes = source.dataset.group_sizes.tolist()
    features = write_features(tmp_path_factory.mktemp("features"), sizes, shape=request.param)
    return source.with_image_inputs(FeatureMaps(request.param), features)


def through_arrow(source: Source) -> Source:
    """Return the source as if its features were in a store."""
    other = replace(source)
    vars(other)["local_features"] = None
    return other


def flat(steps: Iterator[Step]) -> list[Any]:
    return [
        (step.epoch, step.step, step.ends_epoch, chunk, batch.ids, {k: v.clone() for k, v in batch.tensors.items()})
        for step in steps
        for chunk, batch in step.chunks
    ]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert [one[:5] for one in found] == [one[:5] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one[5].keys() == other[5].keys()
        for name, tensor in one[5].items():
            same = tensor.dtype == other[5][name].dtype and tensor.shape == other[5][name].shape
            assert same, name
            assert torch.equal(tensor.view(torch.uint8), other[5][name].view(torch.uint8)), name


@pytest.mark.parametrize(("rank", "of"), [(0, 1), (1, 2)])
def test_steps_are_those_of_a_stream_through_arrow(source: Source, rank: int, of: int) -> None:
    cursor, epochs = Cursor(0, 2), 3
    expected = flat(stream(through_arrow(source), cursor, epochs, rank, of))
    assert expected
    assert_equal(flat(stream(source, cursor, epochs, rank, of)), expected)
    for threads in (1, 3):
        assert_equal(flat(feature_stream.stream(source, cursor, epochs, rank, of, threads, prefetch=2)), expected)


def test_a_rank_without_rows_has_no_maps(source: Source) -> None:
    assert empty_arrays(source)["image"].shape[0] == 0


def test_a_damaged_map_is_not_blamed_on_the_sample(source: Source, tmp_path: Path) -> None:
    features = write_features(tmp_path, source.dataset.group_sizes.tolist(), shape=LARGE)
    file = tmp_path / FIRST
    file.write_bytes(changed(file.read_bytes(), 1000))
    damaged = source.with_image_inputs(FeatureMaps(LARGE), features)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{FIRST}, row group 0 cannot be read .*map 0 has another"):
        list(feature_stream.stream(damaged, Cursor(), 1, 0, 1, 2, prefetch=2))


def test_a_stream_that_is_left_early_ends_its_threads(source: Source) -> None:
    steps = feature_stream.stream(source, Cursor(), 100, 0, 1, 2, prefetch=2)
    next(steps)
    steps.close()
    until = time.monotonic() + 20
    while any(thread.name.startswith("groundray-features") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.05)
