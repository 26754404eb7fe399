"""Damage to every file that groundray writes and reads again: no case is silent, a bare traceback, or takes all memory.

Some hundred cases run with the other tests, all of them (more than 5,000) with `-m slow`. `pytest -s` shows the number
of cases by outcome.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import SmallWorld
from damage import OwnFiles, linear
from search_fixtures import write_model
from vector_index import vector_index

from groundray import config
from groundray.analysis.inputs.embedding import Embedder
from groundray.analysis.inputs.vector_cache import Cache
from groundray.analysis.report.document import JSON, Report, files
from groundray.cli import reports
from groundray.data.derived import DerivedDataset, finalize, make_missing, open_derived
from groundray.data.plan import Cursor
from groundray.data.row_groups import read_group
from groundray.data.schema import Dataset, arrow_schema
from groundray.data.shards import verify_shards, write_shards
from groundray.image_search import compact, inverted_file
from groundray.image_search.index import Index
from groundray.image_search.neighbours import nearest_neighbours
from groundray.model import export
from groundray.model.pretrained import load_tokenizer
from groundray.model.weights import digest
from groundray.runtime.tune.search_space import parse_spaces
from groundray.runtime.tune.spec import DEFINITION, Metric, Sweep
from groundray.storage.folder import Folder
from groundray.training import attempts, history, identity, layout, recovery
from groundray.training.checkpoint import Checkpoint, CheckpointStore, take_snapshot
from groundray.training.events import EpochDone, Event, Notice, StepDone
from groundray.training.worker import InProcess

Note = Callable[[str], None]
CASES = {
    "export": 1000,
    "export without seals": 300,
    "language stream": 500,
    "tokenizer": 300,
    "run": 900,
    "checkpoint": 700,
    "history": 500,
    "result": 300,
    "report": 200,
    "shards": 700,
    "features": 400,
    "identity": 300,
    "compact file": 300,
    "inverted file": 300,
    "vector cache": 300,
    "sweep": 200,
}
QUICK = 25  # one of so many cases runs with the other tests


def test_there_are_enough_cases() -> None:
    assert sum(CASES.values()) >= 5000


def an_export(root: Path, world: SmallWorld) -> OwnFiles:
    folder = Path(write_model(root / "export", world, stages=("grounding", "relational")))
    names = [name for name in Folder.at(folder).files() if not name.endswith(export.CARD)]

    def read(copy: Path, note: Note) -> Any:
        export.verify(copy, export.about(copy))
        loaded = export.load(copy)
        return digest(loaded.model), loaded.tokenizer.backend_tokenizer.to_str(), loaded.about

    return OwnFiles("export", folder, names, read)


def an_export_without_seals(root: Path, world: SmallWorld) -> OwnFiles:
    """As earlier versions wrote it: what is read may differ, but no error is a bare one."""
    folder = Path(write_model(root / "unsealed", world, stages=("grounding",)))
    content = Folder.at(folder).read_sealed(export.ABOUT)
    del content["files"]
    Folder.at(folder).write_json(export.ABOUT, content)
    for seals in folder.glob("*/seals.json"):
        seals.unlink()
    stage = export.about(folder).stage()
    names = [
        stage.visual,
        *stage.heads.values(),
        *(f"{stage.language}/{name}" for name in Folder.at(folder / stage.language).files()),
    ]
    names = [export.ABOUT, *(name for name in names if not name.endswith(export.CARD))]
    return OwnFiles(
        "export without seals", folder, names, lambda copy, note: digest(export.load(copy).model), silent=True
    )


def a_language_stream(root: Path, world: SmallWorld) -> OwnFiles:
    folder = Path(write_model(root / "streams", world, stages=("grounding",))) / export.LANGUAGE
    names = [name for name in Folder.at(folder).files() if name != export.CARD]
    return OwnFiles("language stream", folder, names, lambda copy, note: Embedder.load(copy).digest)


def a_tokenizer(root: Path, world: SmallWorld) -> OwnFiles:
    folder = world.source / "tokenizer"

    def read(copy: Path, note: Note) -> Any:
        settings = config.Language(name="tiny", tokenizer=str(copy))
        return load_tokenizer(settings).backend_tokenizer.to_str()

    return OwnFiles("tokenizer", folder, Folder.at(folder).files(), read)


def begun(run: Folder, emit: Callable[[Event], None]) -> tuple[CheckpointStore, recovery.Start]:
    return recovery.begin(run, ["grounding"], InProcess(emit))


def write_run(folder: Path) -> Path:
    """Write a run of two attempts, with two checkpoints, history and a heartbeat."""
    run = Folder.at(folder).make()
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("time.time", lambda: 1.7e9)
        patches.setattr(attempts, "claim", functools.partial(attempts.claim, nonce=lambda: "0123abcd"))
        for number in range(2):
            store, _ = begun(run, lambda event: None)
            for seed, cursor in enumerate((Cursor(1), Cursor(1, 4)) if number == 0 else ()):
                name, best = store.name("grounding", cursor), store.name("grounding", Cursor(1))
                checkpoint = Checkpoint(name, "grounding", cursor, 10 + cursor.step, best, {"loss": 0.5}, saved_at=7.0)
                first = 10 * seed
                steps = [
                    StepDone("grounding", seed, step, 20, {"loss": 1 / step}) for step in range(first + 1, first + 11)
                ]
                lines = [history.to_line(step) for step in steps]
                lines += [history.to_line(EpochDone("grounding", seed, 2, first + 10, True, {"loss": 0.5}))]
                store.save(take_snapshot(checkpoint, *linear(seed), tuple(lines)))
            store.attempt.heartbeat("grounding", 14)
    return folder


def a_run(root: Path, world: SmallWorld) -> OwnFiles:
    """The notes of attempts, read when the next one begins."""
    folder = write_run(root / "run")
    names = [f"attempts/{name}" for name in Folder.at(folder / "attempts").names()]

    def read(copy: Path, note: Note) -> Any:
        _, start = begun(Folder.at(copy), lambda event: note(event.text) if isinstance(event, Notice) else None)
        assert start.checkpoint
        return start.number, start.checkpoint, start.accepted, start.ended, start.last_heartbeat, start.repeated_steps

    return OwnFiles("run", folder, names, read)


def a_checkpoint(root: Path, world: SmallWorld) -> OwnFiles:
    folder = write_run(root / "checkpoints")
    names = [name for name in Folder.at(folder).files() if name.startswith("checkpoints/")]

    def read(copy: Path, note: Note) -> Any:
        store = CheckpointStore.at(Folder.at(copy))
        store.check_formats()
        model, optimizer = linear(seed=2)
        usable = store.usable("grounding", note)
        if not usable:
            return None
        store.load(usable[-1], model, optimizer)
        return usable[-1], digest(model), str(optimizer.state_dict())

    return OwnFiles("checkpoint", folder, names, read)


def a_history(root: Path, world: SmallWorld) -> OwnFiles:
    folder = write_run(root / "history")
    names = [name for name in Folder.at(folder).files() if name.startswith("history/")]
    return OwnFiles("history", folder, names, lambda copy, note: list(history.read(Folder.at(copy), note)))


def a_result(root: Path, world: SmallWorld) -> OwnFiles:
    folder = root / "result"
    result = {"run": "demo", "stages": {"grounding": {"loss": 0.25, "top1": 0.5}, "relational": {"loss": 1.5}}}
    Folder.at(folder).make().write_sealed(layout.RESULT, result)
    return OwnFiles("result", folder, [layout.RESULT], lambda copy, note: layout.read_result(Folder.at(copy)))


def a_report(root: Path, world: SmallWorld) -> OwnFiles:
    folder = root / "report"
    report = Report("demo", {"ungrounded": "a"}, (), (), {}, {"checkpoint": "0123", "norms": ["a", "b"]})
    Folder.at(folder).make().write_bytes(JSON, dict(files(report))[JSON])
    return OwnFiles("report", folder, [JSON], lambda copy, note: reports.read_made_of(Folder.at(copy), note))


def some_shards(root: Path, world: SmallWorld) -> OwnFiles:
    folder = root / "shards"
    rows = [
        {"id": str(i), "image": bytes([i]) * 100, "width": i, "height": 1, "captions": [f"caption {i}", "b"]}
        for i in range(6)
    ]
    write_shards(Folder.at(folder).make(), "captions", rows, {"captions": 12}, {"from": ["x"]}, row_group_bytes=300)

    def read(copy: Path, note: Note) -> Any:
        dataset = Dataset.open(str(copy), "captions")
        tables = [read_group(dataset, group, arrow_schema("captions").names) for group in range(len(dataset.groups))]
        verify_shards(dataset)
        return [table.to_pylist() for table in tables], dataset.counts, dataset.source, dataset.fingerprint

    return OwnFiles("shards", folder, Folder.at(folder).files(), read)


class Doubled:
    """Encodes lines of text as the line twice."""

    columns = ("id", "text")

    def decode(self, table: pa.Table) -> pa.Table:
        return table

    def encode(self, item: pa.Table) -> dict[str, pa.Array]:
        texts = [2 * text for text in item["text"].to_pylist()]
        return {"id": item["id"].combine_chunks(), "text": pa.array(texts, pa.string())}


def some_features(root: Path, world: SmallWorld) -> OwnFiles:
    """A derived data set, as trunk features and an index are: parts and their manifest, made again where damaged."""
    lines = [{"id": str(number), "text": f"line {number}"} for number in range(12)]
    source = write_shards(Folder.at(root / "source").make(), "text", lines, {}, {}, row_group_bytes=40)
    folder = root / "features"

    def read(copy: Path, note: Note) -> Any:
        spec = DerivedDataset(source, Folder.at(copy), "key", "text", 40, "lines", "use another disk")
        dataset = open_derived(spec)
        if dataset is None:
            for _ in make_missing(spec, Doubled()):
                pass
            dataset = finalize(spec)
        return [read_group(dataset, group, ["id", "text"]).to_pylist() for group in range(len(dataset.groups))]

    read(folder, pytest.fail)
    return OwnFiles("features", folder, Folder.at(folder).files(), read)


def an_identity(root: Path, world: SmallWorld) -> OwnFiles:
    """The id, settings and fingerprints of a run, read at each start. Its config.yaml is written again."""
    folder, settings = root / "identity", config.load("demo", world.settings())
    fingerprints = {"grounding.train": "01" * 32}
    identity.claim(Folder.at(folder), settings, fingerprints)
    content = Folder.at(folder).read_sealed(layout.RUN)
    moved = {**content, "folder": str(root.parent / "work" / folder.name)}  # else the copy is a run of its own
    Folder.at(folder).write_sealed(layout.RUN, moved)

    def read(copy: Path, note: Note) -> Any:
        found = identity.claim(Folder.at(copy), settings, fingerprints)
        assert config.load(copy / layout.CONFIG) == settings
        return found.id, found.settings, found.fingerprints

    return OwnFiles("identity", folder, [layout.RUN, layout.CONFIG], read)


def a_compact_file(root: Path, world: SmallWorld) -> OwnFiles:
    """It is made again of the parts, with a note."""
    spec = vector_index(root / "compacted", 200, 4)
    folder = Path(spec.folder.path)

    def read(copy: Path, note: Note) -> Any:
        found = Index.open(replace(spec, folder=Folder.at(copy)), note)
        return np.asarray(found.vectors).tobytes(), found.sizes.tolist(), list(found.ids), found.row("image 7")

    read(folder, pytest.fail)
    return OwnFiles("compact file", folder, list(compact.FILES), read)


def an_inverted_file(root: Path, world: SmallWorld) -> OwnFiles:
    """It is made again of the compact file, with a note."""
    pytest.importorskip("faiss")
    spec = vector_index(root / "inverted", 200, 4)
    folder = Path(spec.folder.path)

    def read(copy: Path, note: Note) -> Any:
        opened = Index.open(replace(spec, folder=Folder.at(copy)), note)
        search = nearest_neighbours(opened, note, max_exact=100)
        return [found.tolist() for found in search(np.asarray(opened.vectors)[:20].astype(np.float32), 5)]

    read(folder, lambda line: None)
    return OwnFiles("inverted file", folder, list(inverted_file.FILES), read)


def a_vector_cache(root: Path, world: SmallWorld) -> OwnFiles:
    folder = root / "cache"
    embedder = Embedder.load(Path(write_model(root / "embedded", world, stages=("grounding",))))
    texts = ["red circle", "star"]

    def read(copy: Path, note: Note) -> Any:
        return Cache.at(copy, note).embed(embedder, texts).tolist()

    read(folder, pytest.fail)
    return OwnFiles("vector cache", folder, Folder.at(folder).files(), read)


def a_sweep(root: Path, world: SmallWorld) -> OwnFiles:
    def read(copy: Path, note: Note) -> Any:
        settings = config.load("demo", world.settings(f"--run.storage={copy.parent}", f"--run.name={copy.name}"))
        space = parse_spaces(["grounding.temperature=choice:0.1,0.2"], settings)
        sweep = Sweep(settings, space, Metric.parse("grounding/loss", None, settings), "grid", 10, 1, True)
        sweep.claim(resume=copy.exists())
        return "claimed"

    folder = root / "sweep"
    read(folder, pytest.fail)
    return OwnFiles("sweep", folder, [DEFINITION], read)


MAKERS = (
    an_export,
    an_export_without_seals,
    a_language_stream,
    a_tokenizer,
    a_run,
    a_checkpoint,
    a_history,
    a_result,
    a_report,
    some_shards,
    some_features,
    an_identity,
    a_compact_file,
    an_inverted_file,
    a_vector_cache,
    a_sweep,
)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_some_cases(make: Callable[[Path, SmallWorld], OwnFiles], world: SmallWorld, tmp_path: Path) -> None:
    own = make(tmp_path / "whole", world)
    own.check(range(CASES[own.kind] // QUICK), tmp_path / "work")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_all_cases(make: Callable[[Path, SmallWorld], OwnFiles], world: SmallWorld, tmp_path: Path) -> None:
    own = make(tmp_path / "whole", world)
    outcomes = own.check(range(CASES[own.kind]), tmp_path / "work")
    print(f"\n{own.kind}: {json.dumps(outcomes)}")
    assert sum(outcomes.values()) == CASES[own.kind]
