"""The public Python API: quick to import, and the same results as the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallWorld
from search_fixtures import SearchPaths

import groundray
from groundray import config
from groundray.storage.folder import Folder
from groundray.training.events import EpochDone, Event

HEAVY = ("torch", "ray", "mlflow", "transformers", "pydantic", "numpy")


def test_importing_groundray_is_fast_and_imports_no_library() -> None:
    code = f"import sys, time; t = time.process_time(); import groundray; print(time.process_time() - t); \
dir(groundray); print([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert float(shown[0]) < 0.3
    assert shown[1] == "[]"


def test_every_public_name_exists_and_none_is_a_module() -> None:
    for name in groundray.__all__:
        assert name in dir(groundray)
        assert not isinstance(getattr(groundray, name), type(groundray))
        assert not (Path(groundray.__file__).parent / f"{name}.py").exists()
    with pytest.raises(AttributeError, match="no_such_name"):
        groundray.no_such_name  # noqa: B018


def test_overrides_are_values_by_name_or_arguments() -> None:
    by_name = groundray.load_settings("demo", {"grounding.epochs": 3, "model.language.tokenizer": None})
    as_arguments = groundray.load_settings("demo", ["--grounding.epochs", "3", "--model.language.tokenizer=null"])
    assert by_name == as_arguments != groundray.load_settings()
    with pytest.raises(groundray.SettingsError, match=r"grounding\.epochs"):
        groundray.load_settings("demo", {"grounding.epoch": 3})


@pytest.fixture(scope="module")
def run(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that `fit` has trained for an epoch in this process."""
    folder = tmp_path_factory.mktemp("runs")
    settings = groundray.load_settings(
        "demo", world.settings(f"--run.storage={folder}", "--scaling.num_workers=0", "--grounding.epochs=1")
    )
    events: list[Event] = []
    result = groundray.fit(settings, events.append)
    assert result == Folder.at(folder / "demo").read_sealed("result.json")
    assert [event.stage for event in events if isinstance(event, EpochDone)] == ["grounding"]
    return folder / "demo"


def test_fit_raises_on_unusable_data(world: SmallWorld, tmp_path: Path) -> None:
    words = world.settings(f"--run.storage={tmp_path}", "--scaling.num_workers=0", "--grounding.train=/no/such/shards")
    with pytest.raises(FileNotFoundError, match="/no/such/shards"):
        groundray.fit(config.load("demo", words))
    assert not (tmp_path / "demo").exists()


def test_fit_of_another_configuration_under_the_same_name_is_rejected(run: Path, world: SmallWorld) -> None:
    words = world.settings(f"--run.storage={run.parent}", "--scaling.num_workers=0", "--grounding.temperature=0.5")
    with pytest.raises(groundray.SettingsError, match=r"grounding\.temperature"):
        groundray.fit(config.load("demo", words))


def test_embeddings_of_an_open_model_and_of_its_folder_are_equal(run: Path) -> None:
    model = groundray.open_model(run / "model")
    assert model.stage.name == "grounding"
    texts = ["red circle", "blue"]
    vectors = groundray.embed(model, texts)
    assert vectors.shape == (2, 128)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, groundray.embed(run / "model", texts))
    with pytest.raises(ValueError, match="☃"):
        groundray.embed(model, ["☃"])


def test_open_model_names_the_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        groundray.open_model(tmp_path)


def test_analyse_model_returns_the_numbers_of_named_analyses(run: Path, world: SmallWorld) -> None:
    report = groundray.analyse_model(run / "model", world.source / "norms", ["categories"])
    assert set(report["analyses"]) == {"categories"}
    with pytest.raises(ValueError, match="'categories'"):
        groundray.analyse_model(run / "model", analyses=["categores"])


def test_open_search_finds_an_image_of_the_pool(place: SearchPaths) -> None:
    search = groundray.open_search(place.checkpoint, place.images, place.index)
    (hit, *others) = search.find(image=search.index.ids[0], k=3)
    assert hit.id == search.index.ids[0]
    assert hit.score == pytest.approx(1, abs=2**-11)  # a vector of the index is rounded to float16
    assert len(others) == 2
