"""Damaged files, more than 2,000 of them: each is used for what it still says, or refused by a message that names it.

The damage is fixed by what is damaged and the number of the case: a file is cut off, or 1 to 8 of its bytes are others;
a text may also lack a slice, or have one twice. A case that fails tells its number.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import yaml
from damage import BINARY, TEXT, canonical, damaged, linear
from PIL import Image, ImageCms

from groundray import config
from groundray.data.image_decoder import UnusableImage
from groundray.data.plan import Cursor
from groundray.data.row_groups import read_group
from groundray.data.schema import arrow_schema
from groundray.data.shards import verify_shards, write_shards
from groundray.data.sources.coco import Captions
from groundray.data.sources.image_files import check_image
from groundray.data.sources.rejected import Rejected
from groundray.data.sources.visual_genome import Files, Filter, Graph, SceneGraphs
from groundray.data.transforms import centre_crop
from groundray.storage.folder import Folder
from groundray.training import attempts, recovery
from groundray.training.checkpoint import Checkpoint, CheckpointStore, take_snapshot
from groundray.training.events import Event, Notice
from groundray.training.worker import InProcess

T = TypeVar("T")
pytestmark = pytest.mark.timeout(120)

CASES = {
    "image": 800,
    "captions": 1100,
    "graphs": 400,
    "shard": 600,
    "checkpoint": 800,
    "attempt": 300,
    "settings": 500,
}


def test_there_are_enough_cases() -> None:
    """Every test below goes through all of the cases of its kind."""
    assert sum(CASES.values()) >= 2000


def each_case(kind: str, check: Callable[[int], None]) -> None:
    """Check all cases of a kind; where one fails, the error says which."""
    for case in range(CASES[kind]):
        try:
            check(case)
        except BaseException as error:
            error.add_note(f"{kind}, case {case}")
            raise


def unless_refused(read: Callable[[], T], refusal: type[Exception], *named: str) -> T | None:
    """Read, and return the result; None if it is refused with a message that contains these words."""
    try:
        return read()
    except refusal as error:
        said = str(error)
    assert all(word in said for word in named), f"expected {named} in {said!r}"
    return None


def picture(**how: Any) -> bytes:
    """A JPEG of 64 x 48 pixels, with EXIF that tells its resolution."""
    out = io.BytesIO()
    exif = Image.Exif()
    exif.update({0x0112: 1, 0x011A: 72.0, 0x0128: 2})
    Image.radial_gradient("L").resize((64, 48)).convert("RGB").save(out, "JPEG", exif=exif, **how)
    return out.getvalue()


def odd_pictures() -> list[bytes]:
    """Pictures that are settled while they are decoded: turned, deep, transparent, in inks, of another gamut."""
    grey = Image.radial_gradient("L").resize((64, 48))
    deep = Image.frombytes("I;16", grey.size, b"".join(bytes([level, level]) for level in grey.tobytes()))
    alpha = Image.merge("RGBA", (grey, grey.rotate(90), grey.rotate(180), grey))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pictures = []
    for image, format, options in (
        (grey.convert("RGB"), "JPEG", {"exif": exif, "icc_profile": profile}),
        (alpha, "PNG", {"exif": exif, "icc_profile": profile}),
        (alpha, "WEBP", {"exif": exif}),
        (deep, "PNG", {}),
        (deep, "TIFF", {}),
        (grey.convert("CMYK"), "JPEG", {}),
        (alpha.convert("P"), "GIF", {}),
    ):
        out = io.BytesIO()
        image.save(out, format, **options)
        pictures.append(out.getvalue())
    return pictures


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged EXIF, which does no harm
def test_a_damaged_image_is_unusable_or_decodes_at_training_too(tmp_path: Path) -> None:
    """An image is refused by its path, or kept byte by byte; what is kept can be cropped."""
    file = tmp_path / "a.jpg"
    pictures = (picture(), picture(progressive=True), *odd_pictures())

    def check(case: int) -> None:
        content = damaged("image", case, pictures[case % len(pictures)], BINARY)
        file.write_bytes(content)
        if found := unless_refused(lambda: check_image(Folder.at(tmp_path), [file.name]), UnusableImage, str(file)):
            assert found.encoded == content
            assert min(found.width, found.height) > 0
            assert centre_crop(content, 16, 14).shape == (3, 14, 14)

    each_case("image", check)


CAPTIONS = json.dumps(
    {
        "images": [
            {"id": 391895, "file_name": "a.jpg", "width": 640, "height": 480},
            {"id": 22, "file_name": "caf\u00e9 \U0001f600.jpg"},
            {"id": "n-3", "file_name": "folder/c.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 391895, "caption": "A man on a moped,\nin \u201cthe\u201d mud."},
            {"id": 2, "image_id": 22, "caption": "Coffee \U0001f600 and \U0001f370"},
            {"id": 3, "image_id": 22, "caption": "A cup."},
            {"id": 4, "image_id": "n-3", "caption": "Two dogs play."},
        ],
    }
).encode()


def are_texts(texts: tuple[str, ...]) -> bool:
    """Return True if there are texts, and none is blank."""
    return bool(texts) and all(text.strip() and text.encode() for text in texts)


def files_are_missing(folder: Path, names: tuple[str, ...]) -> bool:
    """Return True if a missing image is refused like any other."""
    return unless_refused(lambda: check_image(Folder.at(folder), names), UnusableImage, str(folder)) is None


def test_damaged_captions_are_refused_or_well_formed(tmp_path: Path) -> None:
    file = tmp_path / "captions.json"

    def check(case: int) -> None:
        file.write_bytes(damaged("captions", case, CAPTIONS, TEXT))
        rejected: list[Rejected] = []
        if found := unless_refused(lambda: Captions(file, tmp_path, rejected), ValueError, str(file)):
            images = list(found.images())
            assert all(image.captions and are_texts((image.id, *image.captions)) for image in images)
            assert all(files_are_missing(tmp_path, image.file_names) for image in images)
            assert all(item.what and item.reason and item.detail for item in rejected)

    each_case("captions", check)


def thing(id: int, name: str, **more: Any) -> dict[str, Any]:
    return {"object_id": id, "names": [name], "synsets": [f"{name}.n.01"], "x": 3, "y": 4, **more}


def relation(id: int, subject: dict[str, Any], predicate: str, object: dict[str, Any]) -> dict[str, Any]:
    return {"relationship_id": id, "predicate": predicate, "synsets": [], "subject": subject, "object": object}


MAN, HORSE, DOG = thing(1058498, "man"), thing(5046, "horse"), thing(1058508, "\U0001f415 dog")
GRAPHS: dict[str, list[dict[str, Any]]] = {
    "objects": [{"image_id": 2345678901, "objects": [MAN, HORSE]}, {"image_id": 2, "objects": [DOG]}],
    "attributes": [{"image_id": 2345678901, "attributes": [{**HORSE, "attributes": ["brown", "caf\u00e9"]}]}],
    "relationships": [
        {"image_id": 2345678901, "relationships": [relation(1, MAN, "on", HORSE), relation(2, HORSE, "below", MAN)]}
    ],
    "image_data": [{"image_id": 2345678901, "url": "https://x/VG_100K/1.jpg?a=b"}, {"image_id": 2, "url": None}],
}


def is_well_formed(graph: Graph, classes: int, predicates: int) -> bool:
    """Return True if all references of a graph are valid."""
    ends = [end for subject, _, object in graph.relations for end in (subject, object)]
    return (
        are_texts((graph.id, *graph.phrases))
        and len(graph.phrases) == len(graph.classes)
        and all(0 < number < classes for number in graph.classes)
        and all(0 < number < predicates for _, number, _ in graph.relations)
        and all(0 <= end < len(graph.classes) for end in ends)
    )


def test_damaged_graphs_are_refused_or_well_formed(tmp_path: Path) -> None:
    contents = {tmp_path / f"{name}.json": json.dumps(content).encode() for name, content in GRAPHS.items()}
    files = Files(**{file.stem: file for file in contents})

    def check(case: int) -> None:
        for file, content in contents.items():
            file.write_bytes(content)
        file = list(contents)[case % len(contents)]
        file.write_bytes(damaged("graphs", case, contents[file], TEXT))
        rejected: list[Rejected] = []
        if found := unless_refused(lambda: SceneGraphs(files, Filter(), rejected), ValueError, str(file)):
            graphs = list(found.graphs())
            assert are_texts(found.classes)
            assert are_texts(found.predicates)
            assert all(is_well_formed(graph, len(found.classes), len(found.predicates)) for graph in graphs)
            assert all(files_are_missing(tmp_path, graph.file_names) for graph in graphs)
            assert all(item.what and item.reason and item.detail for item in rejected)

    each_case("graphs", check)


def test_no_damaged_shard_is_read_as_something_else(tmp_path: Path) -> None:
    """A row group is what was written or refused with the repair, and the check of all bytes names the shard."""
    rows = [
        {"id": str(i), "image": bytes([i]) * 100, "width": i, "height": 1, "captions": [f"caption {i}", "b"]}
        for i in range(6)
    ]
    dataset = write_shards(Folder.at(tmp_path), "captions", rows, {}, {}, row_group_bytes=300)
    (shard,) = dataset.shards
    columns = arrow_schema("captions").names
    tables = [read_group(dataset, group, columns) for group in range(len(dataset.groups))]
    assert len(tables) == 3
    content = (tmp_path / shard.file).read_bytes()

    def check(case: int) -> None:
        (tmp_path / shard.file).write_bytes(damaged("shard", case, content, BINARY))
        for group, table in enumerate(tables):
            named = (shard.file, "groundray.prepare")
            found = unless_refused(lambda group=group: read_group(dataset, group, columns), ValueError, *named)
            assert found is None or found.equals(table)
        with pytest.raises(ValueError, match=shard.file):
            verify_shards(dataset)

    each_case("shard", check)


@dataclass(frozen=True)
class SmallRun:
    """A run of two attempts: the first has left two checkpoints, the second has just begun."""

    folder: Path
    older: Checkpoint
    newer: Checkpoint

    def copy(self, folder: Path) -> Folder:
        """The run in another place, which held the one of the case before."""
        shutil.rmtree(folder, ignore_errors=True)
        return Folder.at(shutil.copytree(self.folder, folder))


def begun(run: Folder) -> tuple[CheckpointStore, recovery.Start]:
    """The next attempt at a run."""
    return recovery.begin(run, ["grounding"], InProcess(lambda _: None))


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patches:
        # these are written, and the same bytes are to be damaged each time
        patches.setattr("time.time", lambda: 1.7e9)
        patches.setattr(attempts, "claim", functools.partial(attempts.claim, nonce=lambda: "0123abcd"))
        store, _ = begun(Folder.at(folder))
        for seed, cursor in enumerate((Cursor(1), Cursor(1, 4))):
            name, best = store.name("grounding", cursor), store.name("grounding", Cursor(1))
            checkpoint = Checkpoint(name, "grounding", cursor, 10 + cursor.step, best, {"loss": 0.5}, saved_at=7.0)
            store.save(take_snapshot(checkpoint, *linear(seed), ()))
        begun(Folder.at(folder))
    return SmallRun(folder, *store.committed("grounding"))


@pytest.mark.slow  # some such cases run in test_fuzz_own_files.py
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(small_run: SmallRun, tmp_path: Path) -> None:
    """No other weights, place or metrics are ever gone on with than those that were saved."""
    saved = {one.name: linear(seed)[0].state_dict() for seed, one in enumerate((small_run.older, small_run.newer))}
    names = ("model.safetensors", "optimizer.safetensors", "manifest.json")

    def check(case: int) -> None:
        store = CheckpointStore.at(small_run.copy(tmp_path / "run"))
        folder, name = store.folder / small_run.newer.name, names[case % len(names)]
        content = folder.read_bytes(name)
        changed = damaged("checkpoint", case, content, TEXT if name.endswith(".json") else BINARY)
        folder.write_bytes(name, changed)
        harmless = canonical(content) is not None and canonical(changed) == canonical(content)

        warnings: list[str] = []
        last = store.usable("grounding", warnings.append)[-1]
        assert last == (small_run.newer if harmless else small_run.older)
        assert [small_run.newer.name in warning for warning in warnings] == ([] if harmless else [True])
        model, optimizer = linear(seed=2)
        store.load(last, model, optimizer)
        assert all(torch.equal(tensor, saved[last.name][key]) for key, tensor in model.state_dict().items())

    each_case("checkpoint", check)


@pytest.mark.slow  # some such cases run in test_fuzz_own_files.py
def test_a_damaged_note_of_an_attempt_is_named_and_the_run_goes_on(small_run: SmallRun, tmp_path: Path) -> None:
    """The next attempt resumes at the last checkpoint, whichever note of those before it is damaged."""

    def check(case: int) -> None:
        run = small_run.copy(tmp_path / "run")
        folder = run / "attempts"
        name = [name for name in folder.names() if name.endswith("-from.json")][case % 2]
        content = folder.read_bytes(name)
        changed = damaged("attempt", case, content, TEXT)
        folder.write_bytes(name, changed)
        told: list[Event] = []
        _, start = recovery.begin(run, ["grounding"], InProcess(told.append))
        named = [f"{folder}/{name}" in event.text for event in told if isinstance(event, Notice)]
        assert named == ([] if canonical(changed) == canonical(content) else [True])
        assert start.checkpoint == small_run.newer.name

    each_case("attempt", check)


def test_damaged_settings_are_refused_or_whole(tmp_path: Path) -> None:
    """Settings are refused by the name of their file, or they are settings, which a file of them gives again."""
    content = config.load("demo", []).to_yaml().encode()
    file = tmp_path / "settings.yaml"

    def check(case: int) -> None:
        file.write_bytes(damaged("settings", case, content, TEXT))
        if found := unless_refused(lambda: config.load(file), config.SettingsError, str(file)):
            assert config.Settings(**yaml.safe_load(found.to_yaml())) == found

    each_case("settings", check)
