"""Stages in order: what each starts from, what it leaves, and which combinations are refused."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STAGES, SmallWorld

from groundray import config
from groundray.data.row_groups import read_rows
from groundray.data.scenes.vocabulary import KINDS, SHAPES
from groundray.data.schema import Dataset, arrow_schema
from groundray.data.shards import write_shards
from groundray.model import export
from groundray.model.heads import RetrievalHeads
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.training import loop, preflight, progression
from groundray.training.checkpoint import CheckpointStore
from groundray.training.events import EpochDone, Event, Notice, StageDone, StageStarted, StepDone
from groundray.training.non_finite import NotFinite
from groundray.training.worker import InProcess


def alone(words: list[str]) -> list[Event]:
    events: list[Event] = []
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(events.append))
    return events


def losses(events: list[Event], stage: str | None = None) -> list[float]:
    return [e.metrics["loss"] for e in events if isinstance(e, StepDone) and stage in (None, e.stage)]


@pytest.fixture(scope="module")
def whole(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """The folder and the events of a run of all stages."""
    storage = tmp_path_factory.mktemp("whole")
    return storage / "demo", alone(world.settings(f"--run.storage={storage}", stages=STAGES))


@pytest.mark.thorough
def test_a_run_starts_from_a_timm_trunk_without_the_hub_of_its_weights(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm", reason="extra `models` is not installed")
    trunk = ("--model.trunk.name=timm/convnext_atto", "--model.image_size=96", "--grounding.trains.trunk=false")
    alone(world.settings(f"--run.storage={tmp_path}", "--run.name=first", "--grounding.epochs=1", *trunk))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = world.settings(
        f"--run.start_from={tmp_path}/first/model", *trunk, "--model.trunk.weights=published", "--run.seed=5"
    )
    settings = preflight.check(config.load("demo", words)).settings
    began = progression.initial_model(settings)[0].visual.state_dict()
    before = export.load(tmp_path / "first" / "model").model.visual.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in began.items())


def test_every_stage_is_run_and_reported(world: SmallWorld, whole: tuple[Path, list[Event]]) -> None:
    folder, events = whole
    settings = config.load("demo", world.settings(stages=STAGES))
    done = {event.stage: event.metrics for event in events if isinstance(event, StageDone)}
    assert ",".join(done) == STAGES
    assert json.loads((folder / "result.json").read_text())["stages"] == done
    assert all(math.isfinite(value) for metrics in done.values() for value in metrics.values())
    reported = {event.stage: set(event.metrics) for event in events if isinstance(event, EpochDone)}
    assert reported == {stage.name: set(stage.metric_names) for stage in preflight.check(settings).stages}
    assert {"top1", "top5", "without_image/top1"} <= set(done["visual"])
    assert {"perplexity", "accuracy"} <= set(done["language"])
    assert not any(name.startswith("without_image") for name in done["language"])  # there is none to withhold
    assert {"predicate/top1", "object/top10", "without_image/predicate/top1"} <= set(done["relational"])
    assert {"text_to_image/recall@10", "without_image/text_to_image/recall@10"} <= set(done["retrieval"])
    assert about_stages(folder) == STAGES.split(",")


@pytest.mark.thorough
def test_programs_are_sealed_and_leave_all_else_as_it_is(
    world: SmallWorld, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole[0], tmp_path / "demo"))
    before = export.about(run / "model")
    shutil.rmtree(run / "model")
    events = alone(world.settings(f"--run.storage={tmp_path}", "--run.programs=true", stages=STAGES))
    assert not any(isinstance(event, StepDone | Notice) for event in events)
    after = export.about(run / "model")
    names = ("image.pt2", "text.pt2", "preprocessor_config.json")
    programs = {f"stages/{stage}/{name}" for stage in ("grounding", "retrieval") for name in names}
    assert after.files.keys() - before.files.keys() == programs
    assert {name: seal for name, seal in after.files.items() if name not in programs} == before.files
    export.verify(run / "model", after)
    program = run / "model/stages/retrieval/image.pt2"
    program.write_bytes(program.read_bytes()[:-1] + b"?")
    with pytest.raises(Damaged, match=f"{program} is damaged"):
        export.verify(run / "model", after)


def about_stages(folder: Path) -> list[str]:
    return [stage.name for stage in export.about(folder / "model").stages]


@pytest.mark.thorough
def test_stage_starts_from_the_best_weights_of_the_previous_one(world: SmallWorld, tmp_path: Path) -> None:
    """The loss of its first step equals that of a run that starts from the exported model."""
    more = (f"--run.storage={tmp_path}", "--visual.epochs=3")
    whole = alone(world.settings(*more, stages="visual,grounding,relational"))
    alone(world.settings(*more, "--run.name=first", stages="visual"))
    start = f"--run.start_from={tmp_path}/first/model"
    second = alone(world.settings(*more, "--run.name=second", start, stages="grounding,relational"))
    assert losses(second, "grounding") == losses(whole, "grounding")
    assert losses(second, "relational") == losses(whole, "relational")
    scratch = alone(world.settings(*more, "--run.name=scratch", stages="grounding"))
    assert losses(scratch)[0] != losses(second)[0]
    began = tmp_path / "second" / "model" / "stages" / "start" / "visual.safetensors"
    ended = tmp_path / "first" / "model" / "stages" / "visual" / "visual.safetensors"
    assert began.read_bytes() == ended.read_bytes()


@pytest.mark.thorough
def test_best_epoch_is_exported(world: SmallWorld, tmp_path: Path) -> None:
    """With a learning rate at which the last epoch is not the best."""
    words = ("--visual.optimizer.lr=0.02", "--visual.epochs=3", f"--run.storage={tmp_path}")
    alone(world.settings(*words, stages="visual"))
    store = CheckpointStore.at(Folder.at(tmp_path / "demo"))
    last, done = store.last("visual"), store.finished("visual")
    assert last is not None
    assert done is not None
    best = store.get(done.best)
    assert best.cursor < last.cursor
    exported = export.load(tmp_path / "demo" / "model").model.state_dict()
    weights = store.weights(best)
    assert all(torch.equal(exported[name], weights[name]) for name in weights)


@pytest.mark.thorough
def test_finished_stage_is_not_trained_again(world: SmallWorld, tmp_path: Path) -> None:
    words = [*world.settings(stages="visual,grounding"), f"--run.storage={tmp_path}"]

    class Killed(Exception):
        pass

    def kill_in_the_second_stage(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage == "grounding":
            raise Killed

    with pytest.raises(Killed):
        progression.run_stages(preflight.check(config.load("demo", words)), InProcess(kill_in_the_second_stage))
    rest = alone(words)
    assert [event.stage for event in rest if isinstance(event, StageStarted)] == ["grounding"]
    unbroken = alone([*words, "--run.name=unbroken"])
    assert losses(rest) == losses(unbroken, "grounding")
    results = [json.loads((tmp_path / name / "result.json").read_text())["stages"] for name in ("demo", "unbroken")]
    assert results[0] == results[1]


def test_retrieval_stage_trains_only_its_heads(whole: tuple[Path, list[Event]]) -> None:
    about = export.about(whole[0] / "model")
    relational, retrieval = about.stage("relational"), about.stage("retrieval")
    assert (retrieval.visual, retrieval.language) == (relational.visual, relational.language)
    assert retrieval.heads["relational"] == relational.heads["relational"]


def test_check_refuses_a_stage_whose_needed_head_is_missing(world: SmallWorld, whole: tuple[Path, list[Event]]) -> None:
    with pytest.raises(ValueError, match=r"stage retrieval .* stage relational"):
        preflight.check(config.load("demo", world.settings(stages="grounding,retrieval")))
    with pytest.raises(ValueError, match="put relational before it"):
        preflight.check(config.load("demo", world.settings(stages="retrieval,relational")))
    words = world.settings(f"--run.start_from={whole[0]}/model", stages="retrieval")
    assert preflight.check(config.load("demo", words))
    with pytest.raises(ValueError, match=r"run\.start_from"):
        preflight.check(config.load("demo", [*words, "--run.start_stage=grounding"]))


def test_start_model_of_another_shape_is_refused_by_weight_name(
    world: SmallWorld, whole: tuple[Path, list[Event]]
) -> None:
    words = world.settings(f"--run.start_from={whole[0]}/model", "--model.attention_ffn=64")
    with pytest.raises(ValueError, match=r"start_from.*attention\.ffn\.0\.weight .*64 x 128.* 512 x 128"):
        progression.initial_model(config.load("demo", words))


def fewer_words(source: Path, target: Path, kind: str) -> Path:
    """Copy shards and drop the last word of a kind from their index."""
    shutil.copytree(source, target)
    index = json.loads((target / "dataset.json").read_text())
    index["vocabulary"][kind] = index["vocabulary"][kind][:-1]
    Folder.at(target).write_sealed("dataset.json", index)
    return target


def test_fewer_classes_than_the_start_model_are_refused(
    world: SmallWorld, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    parts = {
        part: fewer_words(world.shards / "objects" / part, tmp_path / part, "classes") for part in ("train", "val")
    }
    words = [
        *world.settings(f"--run.start_from={whole[0]}/model", "--run.start_stage=visual", stages="visual"),
        *(f"--visual.{part}={folder}" for part, folder in parts.items()),
    ]
    with pytest.raises(ValueError, match=r"14 classes.* 15 .*verdil.*visual\.new_head"):
        preflight.check(config.load("demo", words))
    assert preflight.check(config.load("demo", [*words, "--visual.new_head=true"]))


def test_training_and_validation_need_equal_vocabularies(world: SmallWorld, tmp_path: Path) -> None:
    val = fewer_words(world.shards / "scene_graphs" / "val", tmp_path / "val", "predicates")
    words = world.settings(f"--relational.val={val}", stages="relational")
    with pytest.raises(ValueError, match=r"different predicates \(7 and 6; in only one of them: "):
        preflight.check(config.load("demo", words))


def test_expected_number_of_classes_is_checked(world: SmallWorld) -> None:
    with pytest.raises(ValueError, match="expected 1000 classes, as the settings say, got 15"):
        preflight.check(config.load("demo", world.settings("--visual.classes=1000", stages="visual")))


@pytest.mark.parametrize(
    ("stage", "kind", "wanted"),
    [
        ("visual", "captions", "'labelled_images' or 'scene_graphs'"),
        ("language", "scene_graphs", "'text' or 'captions'"),
        ("grounding", "text", "'captions'"),
        ("relational", "captions", "'scene_graphs'"),
    ],
)
def test_shards_of_another_kind_are_refused(world: SmallWorld, stage: str, kind: str, wanted: str) -> None:
    words = world.settings(f"--{stage}.train={world.shards / kind / 'train'}", stages=stage)
    with pytest.raises(ValueError, match=f"kind {wanted} .* kind '{kind}'"):
        preflight.check(config.load("demo", words))


@pytest.mark.thorough
def test_the_visual_stage_trains_on_the_objects_of_scene_graphs(world: SmallWorld, tmp_path: Path) -> None:
    graphs = [f"--visual.{part}={world.shards / 'scene_graphs' / part}" for part in ("train", "val")]
    events = alone(world.settings(*graphs, "--visual.epochs=4", f"--run.storage={tmp_path}", stages="visual"))
    done = [event for event in events if isinstance(event, EpochDone)]
    assert all(set(event.metrics) == {"loss", "mean_average_precision"} for event in done)
    assert losses(events)[-1] < 0.8 * losses(events)[0]
    (result,) = (event.metrics for event in events if isinstance(event, StageDone))
    assert result["mean_average_precision"] == max(event.metrics["mean_average_precision"] for event in done)
    vocabulary = export.about(tmp_path / "demo" / "model").vocabulary["visual"]
    assert set(vocabulary) == {"classes"}
    assert set(vocabulary["classes"]) == {f"{noun}.n.01" for noun in (*SHAPES, *(kind.noun for kind in KINDS))}


def test_the_visual_stage_is_validated_on_the_kind_that_it_trains_on(world: SmallWorld) -> None:
    words = world.settings(f"--visual.train={world.shards / 'scene_graphs' / 'train'}", stages="visual")
    with pytest.raises(ValueError, match=r"kind 'scene_graphs' .* kind 'labelled_images'"):
        preflight.check(config.load("demo", words))


@pytest.mark.thorough
def test_every_stage_runs_in_bf16(world: SmallWorld, tmp_path: Path) -> None:
    words = [f"--{stage}.{setting}" for stage in STAGES.split(",") for setting in ("precision=bf16", "epochs=1")]
    events = alone(world.settings(*words, f"--run.storage={tmp_path}", stages=STAGES))
    assert len(losses(events)) == 7 + 4 * 9
    assert all(math.isfinite(loss) for loss in losses(events))


def test_retrieval_heads_have_the_dropout_of_the_settings(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings("--retrieval.dropout=0.25", f"--run.storage={tmp_path}", stages=STAGES)
    settings = config.load("demo", words)
    *_, stage = preflight.check(settings).stages
    model, _ = progression.initial_model(settings)
    model.heads["retrieval"] = heads = RetrievalHeads(model.width)
    stage.prepare(model)
    assert {layer.p for layer in heads.modules() if isinstance(layer, torch.nn.Dropout)} == {0.25}


def test_language_stage_trains_on_captions(world: SmallWorld, tmp_path: Path) -> None:
    captions = [f"--language.{part}={world.shards / 'captions' / part}" for part in ("train", "val")]
    events = alone(world.settings(*captions, f"--run.storage={tmp_path}", stages="language"))
    assert losses(events)[-1] < losses(events)[0]


@pytest.mark.thorough
def test_scene_graphs_without_relations_give_finite_losses(world: SmallWorld, tmp_path: Path) -> None:
    """No batch has a triplet; object classes are still trained."""
    for part in ("train", "val"):
        dataset = Dataset.open(str(world.shards / "scene_graphs" / part))
        rows = read_rows(dataset, np.arange(dataset.rows), arrow_schema(dataset.kind).names).to_pylist()
        without = [row | {"relations": []} for row in rows]
        folder = Folder.at(tmp_path / part).make()
        write_shards(
            folder, dataset.kind, without, {}, dataset.source, dict(dataset.vocabulary), row_group_bytes=32_000
        )
    words = world.settings(f"--run.storage={tmp_path}", stages="relational")
    events = alone([*words, *(f"--relational.{part}={tmp_path / part}" for part in ("train", "val"))])
    assert all(math.isfinite(loss) for loss in losses(events))
    (done,) = (event for event in events if isinstance(event, StageDone))
    assert done.metrics["predicate/top1"] == 0.0
    model = export.load(tmp_path / "demo" / "model").model
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


REPAIRED = {
    "result.json emptied": ("result.json", lambda content: b""),
    "result.json cut": ("result.json", lambda content: content[:-20]),
    "a metric changed": ("result.json", lambda content: content.replace(b"0.", b"1.", 1)),
    "groundray.json emptied": ("model/groundray.json", lambda content: b""),
    "weights cut": ("model/language/model.safetensors", lambda content: content[:100]),
    "a bit flipped": ("model/stages/start/visual.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
}


@pytest.mark.thorough
def test_damaged_result_and_model_of_a_finished_run_are_written_again(
    world: SmallWorld, whole: tuple[Path, list[Event]], tmp_path: Path
) -> None:
    """Rerunning the command repairs them, and names each."""
    run = Path(shutil.copytree(whole[0], tmp_path / "demo"))
    words = world.settings(f"--run.storage={tmp_path}", stages=STAGES)
    before = {name: (run / name).read_bytes() for name, _ in REPAIRED.values()}
    about = export.about(run / "model")
    for name, damage in REPAIRED.values():
        (run / name).write_bytes(damage(before[name]))
        events = alone(words)
        assert not any(isinstance(event, StepDone) for event in events)
        assert [f"{run}/{name} is damaged" in e.text for e in events if isinstance(e, Notice)] == [True]
        assert name == "model/groundray.json" or (run / name).read_bytes() == before[name]
        written = export.about(run / "model")  # its settings name the copy's folder
        assert (written.stages, written.vocabulary, written.files) == (about.stages, about.vocabulary, about.files)
    assert not any(isinstance(event, Notice) for event in alone(words))


@pytest.mark.thorough
def test_stage_without_a_finite_validation_ends_with_an_error(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of its epochs is the best: no weights are exported."""
    monkeypatch.setattr(loop, "validate", lambda stage, *_, **__: dict.fromkeys(stage.metric_names, math.nan))
    events: list[Event] = []
    run = preflight.check(config.load("demo", world.settings(f"--run.storage={tmp_path}")))
    with pytest.raises(NotFinite, match="grounding ended without a finite validation of loss"):
        progression.run_stages(run, InProcess(events.append))
    assert [event.best for event in events if isinstance(event, EpochDone)] == [False, False]
    assert sum("never the best" in event.text for event in events if isinstance(event, Notice)) == 2
    assert not (tmp_path / "demo" / "model").exists()


def test_a_card_names_what_a_data_set_holds_and_what_was_left_out_of_it(tmp_path: Path) -> None:
    counts = {"images": 20, "rows": 20, "left out, relations of dropped objects": 0, "left out, captions said twice": 3}
    data = Dataset(Folder.at(tmp_path), "captions", (), counts, {}, "0123456789abcdef")
    assert progression.describe(data) == "20 images; left out: 3 captions said twice; fingerprint 0123456789ab"
    data = replace(data, counts={"images": 20, "captions": 100, "rows": 20})
    assert progression.describe(data) == "20 images, 100 captions; fingerprint 0123456789ab"
