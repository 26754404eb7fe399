"""Commands that take a model by MLflow's name; and runs that start from one, while its alias moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  reads the user's cache of fonts, before a test names another
import pytest
import torch
from conftest import SmallWorld
from mlflow_registry import NAME, Registry, use
from search_fixtures import SearchPaths, write_model

import groundray
from groundray import analyse, baseline, bench, config, push, search, serve, sweep, train
from groundray.cli.start_model import with_start_model
from groundray.config import Settings, SettingsError
from groundray.model import export
from groundray.runtime import cluster
from groundray.runtime.tune.search_space import parse_spaces
from groundray.runtime.tune.spec import Metric, Sweep
from groundray.storage.folder import Folder
from groundray.training import preflight, progression

BEST = f"models:/{NAME}@best"


@pytest.fixture(scope="module")
def own_registry(local_registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A copy: runs register further versions."""
    copy = tmp_path_factory.mktemp("own registry") / "mlflow.db"
    shutil.copy(local_registry.uri.removeprefix("sqlite:///"), copy)
    return replace(local_registry, uri=f"sqlite:///{copy}")


@pytest.fixture
def registry(own_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    use(own_registry, monkeypatch, tmp_path)
    return own_registry


def quick(world: SmallWorld, folder: Path, start: str) -> list[str]:
    """Return settings of a run of one epoch in this process."""
    words = world.settings(f"--run.storage={folder}", "--scaling.num_workers=0", "--grounding.epochs=1")
    return [*words, f"--run.start_from={start}"]


COMMANDS: dict[str, Callable[[str, SmallWorld, Path], int]] = {
    "analyse": lambda model, world, _: analyse.main(["retrieval", f"--checkpoint={model}"]),
    "analyse --model": lambda model, world, _: analyse.main(
        ["axes", f"--model=other={model}", f"--norms={world.source}/norms"]
    ),
    "baseline": lambda model, world, tmp: baseline.main(
        ["picturebook", f"--checkpoint={model}", f"--data={world.shards}/captions/val", f"--out={tmp}/out"]
    ),
    "search": lambda model, world, _: search.main(
        ["--text=red", f"--checkpoint={model}", f"--images={world.shards}/captions/val"]
    ),
    "serve": lambda model, world, _: serve.main(
        [f"--checkpoint={model}", f"--images={world.shards}/captions/val", "--port=0"]
    ),
    "bench service": lambda model, world, _: bench.main(
        ["service", f"--checkpoint={model}", f"--images={world.shards}/captions/val"]
    ),
    "push": lambda model, world, _: push.main([f"--checkpoint={model}", "--to=me/name", "--dry-run"]),
    "train": lambda model, world, tmp: train.main(quick(world, tmp / "runs", model)),
    "train --dry-run": lambda model, world, tmp: train.main(["--dry-run", *quick(world, tmp / "runs", model)]),
    "sweep": lambda model, world, tmp: sweep.main(
        [
            *("--space=grounding.temperature=choice:0.1,0.2", "--metric=grounding/loss"),
            *quick(world, tmp / "runs", model),
        ]
    ),
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_each_command_names_a_model_that_does_not_exist(
    command: str,
    registry: Registry,
    world: SmallWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cluster, "connect", lambda **_: pytest.fail("a cluster was asked for"))
    assert COMMANDS[command]("models:/nothing@best", world, tmp_path) == 2
    said = capsys.readouterr().err
    assert "models:/nothing@best" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow  # draws a whole report
def test_an_analysis_goes_to_the_mlflow_run_of_the_model(
    registry: Registry, world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = [f"--{stage}.val={tmp_path}/absent" for stage in ("grounding", "relational", "retrieval")]
    words_alone = write_model(tmp_path / "words", world, ("grounding",), options=absent)
    registry.client.log_artifacts(registry.run, words_alone, "words")
    norms = tmp_path / "norms"
    norms.mkdir()
    (norms / "categories.csv").write_bytes((world.source / "norms" / "categories.csv").read_bytes())
    numbers = tmp_path / "numbers.json"
    words = ["all", f"--checkpoint=runs:/{registry.run}/words", f"--model=other={BEST}", f"--norms={norms}", "--track"]
    assert analyse.main([*words, f"--json={numbers}"]) == 0
    capsys.readouterr()
    assert {"ungrounded", "grounded", "other"} <= json.loads(numbers.read_text())["models"].keys()
    (folder,) = (tmp_path / "analysis").iterdir()  # not in MLflow's folders
    assert registry.run in folder.name
    assert (folder / "report.html").exists()
    logged = {file.path for file in registry.client.list_artifacts(registry.run, "analysis")}
    assert "analysis/report.html" in logged


def test_a_search_keeps_the_index_in_the_user_s_cache(
    registry: Registry, place: SearchPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = groundray.open_search(BEST, place.images)
    found = tmp_path / "found.json"
    words = [f"--checkpoint=runs:/{registry.run}/model", f"--images={place.images}", f"--json={found}", "--k=3"]
    assert search.main([*words, "--text=red circle"]) == 0
    capsys.readouterr()
    (answer,) = json.loads(found.read_text())
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in opened.find(text="red circle", k=3)]
    assert [file.name for file in (tmp_path / "cache" / "groundray").iterdir()] == ["index"]


def test_the_python_functions_take_a_name(registry: Registry, place: SearchPaths) -> None:
    texts = ["red circle"]
    by_name, by_folder = groundray.embed(BEST, texts), groundray.embed(place.checkpoint, texts)
    assert (by_name == by_folder).all()
    assert groundray.open_model(BEST).about == export.about(place.checkpoint)


@pytest.mark.thorough
def test_a_push_sends_the_files_of_the_model_alone(
    served_registry: Registry,
    place: SearchPaths,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use(served_registry, monkeypatch, tmp_path)
    assert push.main([f"--checkpoint={BEST}", "--to=me/name", "--dry-run"]) == 0
    sent = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("file ")]
    assert sorted(sent) == Folder.at(place.checkpoint).files()


def move_alias(registry: Registry, world: SmallWorld, tmp_path: Path, alias: str) -> str:
    """Register another model, and let an alias refer to it; return its name."""
    other = write_model(tmp_path / "other", world, seed=1)
    registry.client.log_artifacts(registry.run, other, "other")
    source = f"{registry.artifacts}/other"
    version = registry.client.create_model_version(NAME, source, registry.run).version
    registry.client.set_registered_model_alias(NAME, alias, version)
    return f"models:/{NAME}/{version}"


@pytest.mark.thorough
def test_a_run_keeps_the_version_that_its_alias_stood_for(
    registry: Registry,
    world: SmallWorld,
    place: SearchPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registry.client.set_registered_model_alias(NAME, "start", "2")
    words = quick(world, tmp_path / "runs", f"models:/{NAME}@start")
    assert train.main(["--dry-run", *words]) == 0
    assert not (tmp_path / "runs").exists()
    assert train.main(words) == 0
    run = Folder.at(tmp_path / "runs" / "demo")
    written = config.load(tmp_path / "runs" / "demo" / "config.yaml")
    assert (written.run.start_from, written.run.start_alias) == (f"models:/{NAME}/2", f"models:/{NAME}@start")
    assert written.run.start_files is not None
    assert export.about(written.run.start_files) == export.about(place.checkpoint)
    before = {name: run.seal(f"model/{name}") for name in (run / "model").files() if name.endswith(".safetensors")}

    third = move_alias(registry, world, tmp_path, "start")
    run.delete("model")
    run.delete("result.json")
    assert train.main(words) == 0  # exports the model again, with the weights that it began with
    assert {name: run.seal(f"model/{name}") for name in before} == before
    began = with_start_model(config.load("demo", words), lambda _: None)
    streams = [
        progression.initial_model(each)[0].state_dict() for each in (began, from_folder(words, place.checkpoint))
    ]
    assert all(torch.equal(tensor, streams[1][name]) for name, tensor in streams[0].items())

    capsys.readouterr()
    assert train.main([*words, f"--run.start_from={third}"]) == 2
    said = capsys.readouterr().err
    assert f"models:/{NAME}/2" in said
    assert third in said
    assert train.main(quick(world, tmp_path / "runs", f"models:/{NAME}/2")) == 0  # the same model by its other name

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert train.main(words) == 0  # its files are known
    again = config.load(tmp_path / "runs" / "demo" / "config.yaml", [f"--run.start_from={place.checkpoint}"])
    assert again.run.start_folder == place.checkpoint


def from_folder(words: list[str], folder: str) -> Settings:
    return config.load("demo", [*words, f"--run.start_from={folder}"])


def test_a_downloaded_model_is_kept_in_the_storage_of_the_run(
    served_registry: Registry, world: SmallWorld, place: SearchPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(served_registry, monkeypatch, tmp_path)
    asked = config.load("demo", quick(world, tmp_path / "runs", BEST))
    settings = with_start_model(asked, lambda _: None)
    assert settings.run.start_files is not None
    assert Path(settings.run.start_files).parent == tmp_path / "runs" / ".models"
    assert export.about(settings.run.start_files) == export.about(place.checkpoint)
    assert settings.absolute().run == settings.run
    assert not (tmp_path / "cache").exists()
    plain = from_folder(quick(world, tmp_path / "runs", BEST), place.checkpoint)
    assert "run.start_files" not in {**settings.identity(), **plain.identity()}
    assert settings.identity()["run.start_from"] == f"models:/{NAME}/2"


def test_a_sweep_keeps_the_version_that_its_alias_stood_for(
    registry: Registry, world: SmallWorld, tmp_path: Path
) -> None:
    registry.client.set_registered_model_alias(NAME, "swept", "1")
    words = quick(world, tmp_path / "runs", f"models:/{NAME}@swept")

    def begun() -> Sweep:
        """Return the sweep as each start of its command has it."""
        settings = config.load("demo", words)
        spaces = parse_spaces(["grounding.temperature=choice:0.1,0.2"], settings)
        one = Sweep(settings, spaces, Metric("grounding", "loss", "min"), "grid", 1, 1, False)
        started = with_start_model(settings, lambda _: None, get_began=one.stored_start)
        return Sweep(started, spaces, one.metric, "grid", 1, 1, False)

    first = begun()
    first.claim(resume=False)
    third = move_alias(registry, world, tmp_path, "swept")
    second = begun()
    second.claim(resume=True)
    assert second.settings.run == first.settings.run
    assert second.settings.run.start_from == f"models:/{NAME}/1"
    assert second.settings_of({}, "trial").run.start_folder == first.settings.run.start_files
    words = quick(world, tmp_path / "runs", third)
    with pytest.raises(SettingsError, match=rf"models:/{NAME}/1.* {third}|{third}"):
        begun().claim(resume=True)


def test_a_name_of_which_no_files_were_found_does_not_start_from_scratch(world: SmallWorld) -> None:
    settings = config.load("demo", world.settings("--run.start_from=models:/a/1"))
    with pytest.raises(SettingsError, match=r"run\.start_files.*models:/a/1"):
        preflight.check(settings)
