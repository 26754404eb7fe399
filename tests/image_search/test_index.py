"""The index: made in parts, by anybody, once; and never taken for another's."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallWorld
from PIL import Image, ImageOps
from search_fixtures import SearchPaths, write_model
from servers import Server

from groundray.data import derived
from groundray.data.derived import DerivedDataset, count_missing_rows, finalize, make_missing, open_derived
from groundray.data.image_inputs import CentreCrop
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.shards import write_index, write_shard_files, write_shards
from groundray.data.transforms import centre_crop
from groundray.image_search.errors import UnknownImage
from groundray.image_search.explain import GroundingMatcher
from groundray.image_search.index import Index, IndexEncoder, default_folder, index_spec, open_pool
from groundray.image_search.query import Search
from groundray.image_search.service import Service
from groundray.image_search.towers import RetrievalTowers
from groundray.model import export
from groundray.model.heads import RetrievalHeads
from groundray.model.relation_module import RelationalModule
from groundray.storage.folder import Folder


def opened(place: SearchPaths, folder: Path) -> tuple[DerivedDataset, RetrievalTowers]:
    towers = RetrievalTowers.load(place.checkpoint)
    return index_spec(towers, open_pool(place.images), str(folder)), towers


def make_all(spec: DerivedDataset, towers: RetrievalTowers) -> None:
    for _ in make_missing(spec, IndexEncoder(towers, str(spec.source.folder))):
        pass
    finalize(spec)


def files(spec: DerivedDataset) -> dict[str, bytes]:
    return {name: spec.folder.read_bytes(name) for name in spec.folder.sizes()}


def test_index_holds_the_models_vector_of_each_image(place: SearchPaths, service: Service) -> None:
    """One by one, through the model's modules, against the index that is made in batches."""
    index, model = service.search.index, export.load(place.checkpoint, "retrieval").model
    table = read_rows(open_pool(place.images), np.arange(len(index)), ["id", "image", "width", "height"])
    assert list(index.ids) == table["id"].to_pylist()
    assert index.sizes.tolist() == [[112, 112]] * 20
    for row, encoded in enumerate(table["image"].to_pylist()):
        pixels = torch.from_numpy(centre_crop(encoded, 112, 112))[None]
        with torch.no_grad():
            keys = model.head(RelationalModule).attention.key(model.visual(pixels))
            expected = model.head(RetrievalHeads).image(keys).mean(dim=1)[0]
        expected = (expected / expected.norm()).numpy()
        # float16 rounds a component by 2^-11 of itself; below 2^-14 by 2^-25
        np.testing.assert_allclose(index.vector(row), expected, rtol=2**-11, atol=1e-5)
        np.testing.assert_array_equal(index.vector(row), index.vectors[row])
        assert index.pictures[row] == encoded


def test_thumbnails_are_small_pictures_of_the_images(service: Service) -> None:
    index = service.search.index
    for row in (0, 7, 19):
        whole, small = (Image.open(io.BytesIO(column[row])) for column in (index.pictures, index.thumbnails))
        assert small.format == "JPEG"
        assert small.size == whole.size  # they are small already
        difference = np.abs(np.asarray(whole.convert("RGB"), float) - np.asarray(small, float))
        assert difference.mean() < 6


def test_a_large_image_has_a_thumbnail_of_192_pixels(place: SearchPaths, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((600, 300), 40).save(file, "PNG")
    rows = [{"id": "wide", "image": file.getvalue(), "width": 600, "height": 300, "captions": ["noise"]}]
    write_shards(Folder.at(tmp_path / "pool").make(), "captions", rows, {}, {})
    found = Search.open(place.checkpoint, str(tmp_path / "pool"), str(tmp_path / "index"))
    assert Image.open(io.BytesIO(found.index.thumbnails[0])).size == (192, 96)
    assert found.index.sizes.tolist() == [[600, 300]]


def test_phone_pictures_find_themselves_and_stand_upright(place: SearchPaths, tmp_path: Path) -> None:
    """The pool is made of the very files that are brought along; its width and height are those before the turn, as old
    shards have them."""
    rows = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        noise = np.random.default_rng(orientation).integers(0, 256, (4, 6, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((240, 160)).save(file, "JPEG", exif=exif, quality=95)
        rows.append({"id": str(orientation), "image": file.getvalue(), "width": 240, "height": 160, "captions": ["a"]})
    write_shards(Folder.at(tmp_path / "pool").make(), "captions", rows, {}, {})
    search = Search.open(place.checkpoint, str(tmp_path / "pool"), str(tmp_path / "index"))
    for row, picture in enumerate(rows):
        hit = search.find(image=picture["image"], k=1)[0]
        assert (hit.id, hit.score) == (picture["id"], pytest.approx(1, abs=1e-4))
        with Image.open(io.BytesIO(picture["image"])) as image:
            shown = ImageOps.exif_transpose(image)
        assert (hit.width, hit.height) == shown.size
        small = Image.open(io.BytesIO(search.index.thumbnails[row]))
        expected = np.asarray(shown.resize(small.size), float)
        assert small.size == ((192, 128) if row < 4 else (128, 192))
        assert np.abs(np.asarray(small, float) - expected).mean() < 4


def test_an_interrupted_index_resumes_and_is_the_same(
    place: SearchPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "PART_BYTES", 30_000)  # three rows
    spec, towers = opened(place, tmp_path)
    make_all(spec, towers)
    whole = files(spec)
    assert len(whole) > 6
    again, _ = opened(place, tmp_path / "again")
    done = make_missing(again, IndexEncoder(towers, str(again.source.folder)))
    assert [next(done) for _ in range(2)] == [3, 3] or sum(1 for _ in again.folder.names()) > 1
    done.close()
    assert open_derived(again) is None
    assert 0 < count_missing_rows(again) < 20
    left = count_missing_rows(again)
    assert sum(make_missing(again, IndexEncoder(towers, str(again.source.folder)))) == left
    finalize(again)
    assert files(again) == {
        name: content if name != "dataset.json" else again.folder.read_bytes(name) for name, content in whole.items()
    }
    assert open_derived(again).fingerprint == open_derived(spec).fingerprint  # type: ignore[union-attr]


def test_two_processes_build_the_same_index(
    place: SearchPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derived, "PART_BYTES", 30_000)
    spec, towers = opened(place, tmp_path / "alone")
    make_all(spec, towers)
    shared, _ = opened(place, tmp_path / "shared")
    threads = [threading.Thread(target=make_all, args=(shared, towers)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_derived(shared).fingerprint == open_derived(spec).fingerprint  # type: ignore[union-attr]


def test_an_index_that_is_added_to_is_the_same_as_a_whole_one(
    place: SearchPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of an earlier shard is decoded, and all bytes are those of a rebuild. One shard joins and one leaves."""
    rows = read_rows(open_pool(place.images), np.arange(20), ["id", "image", "width", "height", "captions"]).to_pylist()

    def pool(name: str, *parts: tuple[int, int]) -> Dataset:
        folder = Folder.at(tmp_path / name).make()
        shards = [
            shard
            for start, stop in parts
            for shard in write_shard_files(
                folder, "captions", rows[start:stop], {}, 20_000, f"from-{start}-{{}}.parquet"
            )
        ]
        return write_index(folder, "captions", shards, {}, {}, {})

    towers = RetrievalTowers.load(place.checkpoint)
    make_all(index_spec(towers, pool("before", (0, 7), (7, 15)), str(tmp_path / "index")), towers)
    after = pool("after", (15, 20), (7, 15))
    alone = index_spec(towers, after, str(tmp_path / "alone"))
    make_all(alone, towers)
    decoded: list[str] = []
    plain = IndexEncoder.decode
    monkeypatch.setattr(
        IndexEncoder, "decode", lambda self, table: [decoded.extend(table["id"].to_pylist()), plain(self, table)][1]
    )
    spec = index_spec(towers, after, str(tmp_path / "index"))
    make_all(spec, towers)
    assert sorted(decoded) == sorted(row["id"] for row in rows[15:])
    assert files(spec) == files(alone)
    (updated, whole) = (Index.open(one, pytest.fail) for one in (spec, alone))
    np.testing.assert_array_equal(updated.vectors, whole.vectors)
    assert list(updated.ids) == [row["id"] for row in (*rows[15:], *rows[7:15])]


def test_another_model_or_other_images_have_another_index(
    place: SearchPaths, world: SmallWorld, tmp_path: Path
) -> None:
    spec, towers = opened(place, tmp_path)
    keys = {spec.folder.name}
    other = RetrievalTowers.load(write_model(tmp_path / "model", world, seed=1))
    keys.add(index_spec(other, spec.source, str(tmp_path)).folder.name)
    keys.add(index_spec(towers, open_pool(str(world.shards / "captions" / "train")), str(tmp_path)).folder.name)
    with torch.no_grad():
        towers.model.head(RetrievalHeads).image[0].weight[0, 0] += 1e-3
    keys.add(index_spec(towers, spec.source, str(tmp_path)).folder.name)
    assert len(keys) == 4
    with torch.no_grad():
        towers.model.head(RetrievalHeads).text[0].weight[0, 0] += 1  # no picture passes through it
    assert index_spec(towers, spec.source, str(tmp_path)).folder.name in keys
    with pytest.raises(FileNotFoundError, match=r"have no index for this model.*new or have changed"):
        Index.open(spec)


def test_any_shards_with_images_are_a_pool_and_no_others(place: SearchPaths, world: SmallWorld, tmp_path: Path) -> None:
    for kind in ("scene_graphs", "objects"):
        assert open_pool(str(world.shards / kind / "val")).rows
    with pytest.raises(
        ValueError, match=r"expected shards of kind .*'captions' or 'scene_graphs' or 'labelled_images'"
    ):
        open_pool(str(world.shards / "text" / "val"))
    with pytest.raises(FileNotFoundError, match=r"no dataset\.json"):
        open_pool(str(tmp_path))
    assert default_folder("runs/demo/model/") == f"{Path.cwd()}/runs/demo/index"
    assert default_folder("s3://bucket/runs/demo/model") == "s3://bucket/runs/demo/index"
    assert default_folder("~/demo/model") == f"{Path.home()}/demo/index"
    assert default_folder("runs/demo/model/language/..") == f"{Path.cwd()}/runs/demo/index"


def test_a_damaged_index_is_named_with_its_repair(place: SearchPaths, tmp_path: Path) -> None:
    spec, towers = opened(place, tmp_path)
    make_all(spec, towers)
    file = Path(spec.folder.path, "part-00000-000.parquet")
    content = bytearray(file.read_bytes())
    for at in range(1000, len(content) - 5000, 1000):
        content[at] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"part-00000-000\.parquet.*delete it, and the next search"):
        Index.open(spec)


def test_an_undecodable_image_is_named(place: SearchPaths, tmp_path: Path) -> None:
    rows = [{"id": "bad one", "image": b"\xff\xd8\xff", "width": 1, "height": 1, "captions": ["a"]}]
    write_shards(Folder.at(tmp_path / "pool").make(), "captions", rows, {}, {})
    with pytest.raises(ValueError, match="image 'bad one' cannot be decoded"):
        Search.open(place.checkpoint, str(tmp_path / "pool"), str(tmp_path / "index"))


def test_a_duplicate_id_is_an_error(place: SearchPaths, tmp_path: Path) -> None:
    pool: Dataset = open_pool(place.images)
    table = read_rows(pool, np.array([3, 3]), ["id", "image", "width", "height", "captions"])
    write_shards(Folder.at(tmp_path / "pool").make(), "captions", table.to_pylist(), {}, {})
    with pytest.raises(ValueError, match=r"1 images have a duplicate id, the first is '75'"):
        Search.open(place.checkpoint, str(tmp_path / "pool"), str(tmp_path / "index"))


def test_an_unknown_id_is_refused_with_an_example(service: Service) -> None:
    with pytest.raises(UnknownImage, match=r"one of the 20 images of the pool \(such as '72'\), got 'nobody'"):
        service.search.index.row("nobody")


def test_search_and_match_maps_crop_pictures_as_validation_does(world: SmallWorld, tmp_path: Path) -> None:
    options = ["--retrieval.resize=120", "--retrieval.val_resize=128", "--grounding.val_resize=136"]
    checkpoint = write_model(tmp_path / "model", world, options=options)
    assert RetrievalTowers.load(checkpoint).crop == CentreCrop(128, 112)
    matcher = GroundingMatcher.load(checkpoint)
    assert matcher
    assert matcher.crop == CentreCrop(136, 112)


def test_a_model_without_the_stage_cannot_search(world: SmallWorld, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", world, stages=("grounding",))
    with pytest.raises(ValueError, match=r"has grounding: .*--stages relational,retrieval"):
        RetrievalTowers.load(checkpoint)
    with pytest.raises(FileNotFoundError, match=r"found no groundray\.json"):
        RetrievalTowers.load(str(tmp_path))


def mapped_by(array: Any) -> Any:
    """The array whose memory an array shows."""
    while not isinstance(array, np.memmap) and isinstance(array.base, np.ndarray):
        array = array.base
    return array


@pytest.mark.thorough
def test_model_pool_and_index_may_be_in_a_store(
    place: SearchPaths, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch)
    store = s3.folder()
    for name, local in (("model", place.checkpoint), ("pool", place.images)):
        Folder.at(f"{store}/{name}").upload(Path(local))
    found = Search.open(f"{store}/model", f"{store}/pool", rerank=0).find("a red heart", k=20)
    assert found == place.search().find("a red heart", k=20)
    (key,) = Folder.at(f"{store}/index").names()
    assert Folder.at(f"{store}/index/{key}").exists("dataset.json")
    search = Search.open(f"{store}/model", f"{store}/pool")
    assert search.reranker is not None
    for content in (search.reranker.positions._rows, search.index.vectors):
        assert isinstance(mapped_by(content), np.memmap)  # and not in memory
    expected = Search.open(place.checkpoint, place.images, place.index).find("a red heart", k=20)
    assert search.find("a red heart", k=20) == expected


def test_two_services_that_make_one_index_at_once_answer_alike(place: SearchPaths, tmp_path: Path) -> None:
    """Each makes some of the parts, and one the files that are made of all parts."""
    both = str(tmp_path / "both")
    with ThreadPoolExecutor(2) as services:
        opening = [services.submit(Service.open, place.checkpoint, place.images, both) for _ in range(2)]
        found = [service.result().search.find("a red star", "80", k=20) for service in opening]
    alone = str(tmp_path / "alone")
    assert found == [Service.open(place.checkpoint, place.images, alone).search.find("a red star", "80", k=20)] * 2
    assert all_files(both) == all_files(alone)


def all_files(folder: str) -> set[str]:
    return {str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()}
