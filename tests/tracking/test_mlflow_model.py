"""The model of a run in MLflow: its flavours load it, and groundray does."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import yaml
from conftest import SmallWorld
from search_fixtures import SearchPaths, write_model

import groundray
from groundray.config import Settings
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.tracking import mlflow_model, models
from groundray.tracking.mlflow_log import MlflowLog
from groundray.training import identity
from groundray.training.events import StageDone

TEXTS = ["a red heart", "a blue circle above a star", "heart"]


@dataclass(frozen=True)
class Tracked:
    """A run in MLflow."""

    settings: Settings
    folder: Folder

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.settings.tracking.uri)

    @property
    def export(self) -> str:
        """Path of the run's own model."""
        return str(self.folder / "model")

    def end(self, progress: Callable[[float], None] = lambda _: None) -> None:
        """Let the run end in MLflow."""
        run = identity.claim(self.folder, self.settings, {})
        log = MlflowLog.open(self.settings, self.folder, run, None, progress)
        log.metrics([StageDone("grounding", 7, {"loss": 0.25})])
        log.end({"stages": {}}, "FINISHED", self.folder)

    def register(self) -> str:
        """Register the model as `groundray@best` and return its version."""
        return models.register(self.settings, self.folder, "groundray", "best")

    @property
    def experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.settings.tracking.experiment)
        assert found is not None
        return found.experiment_id

    @property
    def run_id(self) -> str:
        (found,) = self.client.search_runs([self.experiment_id])
        return found.info.run_id

    @property
    def logged(self) -> list[Any]:
        """The logged models of the experiment."""
        return list(self.client.search_logged_models([self.experiment_id]))


def started(root: Path, checkpoint: str, experiment: str = "tests") -> Tracked:
    """Return a run with this model that has not ended in MLflow yet."""
    settings = Settings(
        run={"name": "tracked", "storage": str(root / experiment)},
        stages=("grounding",),
        grounding={"train": "t", "val": "v", "batch_size": 4},
        tracking={"uri": f"sqlite:///{root}/mlflow.db", "experiment": experiment},
    )  # type: ignore[arg-type]
    folder = Folder.at(root / experiment / "tracked").make()
    shutil.copytree(checkpoint, str(folder / "model"))
    mlflow.MlflowClient(settings.tracking.uri).create_experiment(experiment, (root / "artifacts").as_uri())
    return Tracked(settings, folder)


@pytest.fixture(scope="module")
def run(place: SearchPaths, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    """A finished run whose model is registered, at the process's tracking URI, as users load it."""
    root = tmp_path_factory.mktemp("tracked")
    shutil.copy(empty_store, root)
    made = started(root, place.checkpoint)
    made.end()
    made.register()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(made.settings.tracking.uri)  # type: ignore[arg-type]
    yield made
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def queries(run: Tracked) -> Any:
    return mlflow.pyfunc.load_model("models:/groundray@best")


def test_the_sentence_transformer_gives_the_language_streams_vectors(run: Tracked) -> None:
    loaded = mlflow.sentence_transformers.load_model("models:/groundray@best")
    vectors = loaded.encode(TEXTS)

    exported = groundray.open_model(run.export)
    for text, vector in zip(TEXTS, vectors, strict=True):
        tokens = exported.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = exported.model.language.encoder(**tokens).last_hidden_state
        np.testing.assert_allclose(vector, hidden[0].mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("uri", ["models:/groundray@best", "runs:/{run_id}/model"])
def test_transformers_gives_the_language_streams_hidden_states(run: Tracked, uri: str) -> None:
    uri = uri.format(run_id=run.run_id)
    parts = mlflow.transformers.load_model(uri, return_type="components")
    pipeline = mlflow.transformers.load_model(uri)

    exported = groundray.open_model(run.export)
    assert pipeline.task == "feature-extraction"
    for text in TEXTS:
        tokens = exported.tokenizer(text, return_tensors="pt")
        assert parts["tokenizer"](text)["input_ids"] == tokens["input_ids"][0].tolist()
        with torch.no_grad():
            hidden = exported.model.language.encoder(**tokens).last_hidden_state
            assert torch.equal(parts["model"].eval()(**tokens).last_hidden_state, hidden)
        np.testing.assert_allclose(pipeline(text), hidden, atol=1e-6)


def test_queries_of_text_image_and_both_get_the_vectors_of_search(
    run: Tracked, queries: Any, place: SearchPaths, tmp_path: Path
) -> None:
    search = place.search()
    image = search.index.ids[3]
    encoded = first_images(place.images)[image]
    (tmp_path / "picture.png").write_bytes(encoded)
    spelled = [encoded, base64.b64encode(encoded).decode(), str(tmp_path / "picture.png")]
    mixed = pd.DataFrame({"text": ["a red heart"] * 3, "image": spelled, "alpha": [0.3] * 3})
    vectors = queries.predict(mixed)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, vectors[[0, 0, 0]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    for row, asked in (
        ({"text": ["a red heart"], "image": [encoded], "alpha": [0.3]}, {"text": "a red heart", "image": encoded}),
        ({"text": ["a red heart"]}, {"text": "a red heart"}),
        ({"image": [encoded]}, {"image": encoded}),
        ({"text": [None], "image": [encoded], "alpha": [None]}, {"image": encoded}),
    ):
        (vector,) = queries.predict(pd.DataFrame(row))
        hits = search.find(**asked, alpha=0.3, k=len(search.index))
        rows = [search.index.row(hit.id) for hit in hits]
        scores = np.stack([search.index.vector(each) for each in rows]) @ vector
        np.testing.assert_allclose(scores, [hit.score for hit in hits], atol=1e-5)

        found = queries.predict(pd.DataFrame(row), params={"images": place.images, "index": place.index, "k": 5})
        assert found["ids"][0] == [hit.id for hit in hits[:5]]
        np.testing.assert_allclose(found["scores"][0], [hit.score for hit in hits[:5]], atol=1e-6)
    by_id = queries.predict(
        pd.DataFrame({"image": [image]}), params={"images": place.images, "index": place.index, "k": 1}
    )
    assert by_id["ids"][0] == [image]


def first_images(shards: str) -> dict[str, bytes]:
    """Return the encoded images of shards by id."""
    import pyarrow.dataset as ds

    table = ds.dataset(shards, format="parquet", exclude_invalid_files=True).to_table(["id", "image"])
    return dict(zip(table["id"].to_pylist(), table["image"].to_pylist(), strict=True))


def test_many_queries_are_answered_in_order(queries: Any, place: SearchPaths) -> None:
    texts = [f"a {color} {shape}" for color in ("red", "blue", "green") for shape in ("heart", "star", "circle")] * 15
    vectors = queries.predict(pd.DataFrame({"text": texts}))
    one_by_one = {text: queries.predict(pd.DataFrame({"text": [text]}))[0] for text in set(texts)}
    np.testing.assert_allclose(vectors, [one_by_one[text] for text in texts], atol=1e-5)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": [" "]}, "row 0: expected a text, an image, or both, got neither"),
        ({"text": ["heart"], "image": ["no/such.png"]}, "got 'no/such.png'"),
        ({"image": [b"GIF89a"]}, "row 0: "),
        ({"text": ["heart", "star"], "image": [None, b"x"], "alpha": [0.5, 0.5]}, "row 1: "),
        ({"image": [np.zeros((2, 2, 3), np.uint8)]}, "row 0: image: expected bytes, .*, got ndarray"),
        ({"image": [PIL.Image.new("RGB", (2, 2))]}, "row 0: image: expected bytes, .*, got Image"),
        ({"text": ["heart", ["star"]]}, "row 1: text: expected a text, got list"),
    ],
)
def test_a_query_that_cannot_be_answered_is_named(queries: Any, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        queries.predict(pd.DataFrame(row))


def test_a_secret_in_an_image_s_url_is_not_in_the_error(queries: Any) -> None:
    url = "http://user:hush-hush-7@127.0.0.1:9/heart.png?token=hush-hush-8"
    with pytest.raises(ValueError, match="row 0: image: ") as raised:
        queries.predict(pd.DataFrame({"image": [url]}))
    assert "hush" not in str(raised.value)


@pytest.mark.filterwarnings("ignore:Operation with range is deprecated")  # mlflow 3.17's reading of JSON on pandas 3
def test_the_input_example_is_answered_as_a_server_would(queries: Any, tmp_path: Path) -> None:
    uri = "models:/groundray@best"
    example = mlflow.models.Model.load(uri).load_input_example()
    assert queries.predict(example).shape[0] == 1
    mlflow.models.predict(
        uri, example, env_manager="local", output_path=str(tmp_path / "answer.json"), content_type="json"
    )
    answer = json.loads((tmp_path / "answer.json").read_text())
    np.testing.assert_allclose(answer["predictions"], queries.predict(example), atol=1e-5)


def test_the_folder_is_an_export_with_its_seals_and_its_weights_once(run: Tracked) -> None:
    folder = Path(mlflow.artifacts.download_artifacts("models:/groundray@best"))
    export.verify(folder, export.about(folder))
    own, logged = export.load(run.export).model.state_dict(), export.load(folder).model.state_dict()
    assert own.keys() == logged.keys()
    assert all(torch.equal(own[name], logged[name]) for name in own)
    np.testing.assert_array_equal(groundray.embed(folder, TEXTS), groundray.embed(run.export, TEXTS))
    weights = [
        sorted(file.stat().st_size for file in each.rglob("*.safetensors")) for each in (folder, Path(run.export))
    ]
    assert weights[0] == weights[1]
    assert not (folder / export.LANGUAGE).exists()


def test_the_model_says_what_it_needs_and_where_it_is_from(run: Tracked) -> None:
    model = mlflow.models.Model.load("models:/groundray@best")
    assert set(model.flavors) == {"python_function", "sentence_transformers", "transformers"}
    assert model.run_id == run.run_id
    assert model.metadata["stages"] == ["grounding", "relational", "retrieval"]  # type: ignore[index]
    assert [column.name for column in model.signature.inputs] == ["text", "image", "alpha"]  # type: ignore[union-attr]
    folder = Path(mlflow.artifacts.download_artifacts("models:/groundray@best"))
    names = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}
    assert names == set(mlflow_model.PACKAGES)
    assert "+" not in (folder / "requirements.txt").read_text()
    conda = yaml.safe_load((folder / "conda.yaml").read_text())
    assert {line.partition("==")[0] for line in conda["dependencies"][-1]["pip"]} == names


def test_run_logged_model_and_version_refer_to_each_other(run: Tracked) -> None:
    (logged,) = run.logged
    assert (logged.name, logged.status, logged.source_run_id) == ("model", "READY", run.run_id)
    assert {metric.key: (metric.value, metric.step) for metric in logged.metrics} == {"grounding/best/loss": (0.25, 7)}
    outputs = run.client.get_run(run.run_id).outputs
    assert outputs
    assert [output.model_id for output in outputs.model_outputs] == [logged.model_id]
    version = run.client.get_model_version_by_alias("groundray", "best")
    assert version.run_id == run.run_id
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "groundray", "version": version.version}]


def test_a_run_that_ends_again_keeps_its_logged_model(run: Tracked) -> None:
    (before,) = run.logged
    run.end()
    run.register()
    assert len(run.client.search_model_versions("name = 'groundray'")) == 1
    (after,) = run.logged
    assert after.model_id == before.model_id
    assert len(run.client.get_metric_history(run.run_id, "grounding/best/loss")) == 1


def test_an_interrupted_upload_is_repeated(run: Tracked, place: SearchPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(OSError):
        pass

    def refuse(*_: Any) -> None:
        raise Full

    interrupted = started(Path(run.export).parents[2], place.checkpoint, "interrupted")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_model_artifacts", refuse)
        with pytest.raises(Full):
            interrupted.end()
    (before,) = interrupted.logged
    assert before.status == "PENDING"
    seconds: list[float] = []
    interrupted.end(seconds.append)
    size = sum(file.stat().st_size for file in Path(interrupted.export).rglob("*") if file.is_file())
    assert max(seconds) == size / models.UPLOAD_BYTES_PER_SECOND  # that the upload may take
    (after,) = interrupted.logged
    assert (after.model_id, after.status) == (before.model_id, "READY")


def test_a_model_without_retrieval_embeds_texts_alone(world: SmallWorld, tmp_path: Path) -> None:
    checkpoint = Path(write_model(tmp_path / "model", world, stages=("grounding",)))
    mlflow_model.write(checkpoint, "0" * 32, "m-0", str(checkpoint))
    loaded = mlflow.pyfunc.load_model(str(checkpoint))
    vectors = loaded.predict(pd.DataFrame({"text": TEXTS}))
    expected = groundray.embed(checkpoint, TEXTS)
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="the model was trained in grounding"):
        loaded.predict(pd.DataFrame({"text": ["heart"], "image": [b"x"]}))


def test_a_model_with_a_trunk_of_timm_needs_timm(world: SmallWorld, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="extra `models` is not installed")
    trunk = ("--model.trunk.name=timm/test_resnet", "--model.trunk.weights=none")
    checkpoint = Path(write_model(tmp_path / "model", world, stages=("grounding",), options=trunk))
    mlflow_model.write(checkpoint, "0" * 32, "m-0", str(checkpoint))
    names = {line.partition("==")[0] for line in (checkpoint / "requirements.txt").read_text().split()}
    assert names == {*mlflow_model.PACKAGES, "timm"}
