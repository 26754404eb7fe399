"""Models by MLflow's names: what they stand for, where their files are, and downloads that were killed or damaged."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import mlflow.artifacts
import pytest
from mlflow_registry import NAME, Registry, use
from search_fixtures import SearchPaths
from servers import Server

from groundray.config import Settings
from groundray.model import export
from groundray.storage.folder import Folder
from groundray.storage.seals import Damaged
from groundray.tracking import model_uris
from groundray.tracking.analysis_log import log_analysis
from groundray.tracking.model_uris import FoundModel, find_model, locate, place_of

pytestmark = pytest.mark.thorough  # a server of MLflow, with every kind of answer


@pytest.fixture(params=["local", "served"])
def registry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Registry:
    """A local store and a server, at MLFLOW_TRACKING_URI; and an empty cache."""
    found: Registry = request.getfixturevalue(f"{request.param}_registry")
    use(found, monkeypatch, tmp_path)
    return found


def files(registry: Registry, uri: str, tmp_path: Path) -> dict[str, int]:
    """Return the names and sizes of a model's files, without the record of a download."""
    place = locate(uri, lambda _: None).place
    return {name: size for name, size, _ in Folder.at(place).states() if name != model_uris.DOWNLOAD}


def test_every_name_of_a_model_leads_to_its_files(registry: Registry, place: SearchPaths, tmp_path: Path) -> None:
    whole = {name: size for name, size, _ in Folder.at(place.checkpoint).states()}
    version = {"@best": "2", "/latest": "2", "/1": "1"}
    for ending, number in version.items():
        found = find_model(f"models:/{NAME}{ending}")
        assert (found.uri, found.run_id) == (f"models:/{NAME}/{number}", registry.run)
        assert files(registry, found.asked, tmp_path) == whole
    logged = FoundModel(f"models:/{registry.logged}", f"models:/{registry.logged}", "", registry.run, registry.uri)
    for asked in (f"models:/{registry.logged}", f"runs:/{registry.run}/model", f"runs:/{registry.run}/model/"):
        found = find_model(asked)
        assert (found.uri, found.run_id) == (logged.uri, registry.run)
        assert files(registry, asked, tmp_path) == whole
    old = find_model(f"runs:/{registry.run}/export")
    assert (old.uri, old.run_id) == (f"runs:/{registry.run}/export", registry.run)
    assert files(registry, old.asked, tmp_path) == whole
    inner = locate(f"runs:/{registry.run}/model/language-grounded", lambda _: None, exported=False)
    assert Folder.at(inner.place).exists("tokenizer.json")


def test_a_name_may_have_all_characters_that_mlflow_takes(
    local_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(local_registry, monkeypatch, tmp_path)
    name = "me@lab's ü%41#?"
    local_registry.client.create_registered_model(name)
    local_registry.client.create_model_version(name, f"{local_registry.artifacts}/export", local_registry.run)
    local_registry.client.set_registered_model_alias(name, "best", "1")
    assert {find_model(f"models:/{name}{end}").uri for end in ("@best", "/1", "/latest")} == {f"models:/{name}/1"}


def test_a_path_or_url_stays_as_it_is(tmp_path: Path) -> None:
    for place in ("runs/demo/model", "s3://bucket/model", str(tmp_path)):
        assert locate(place, pytest.fail) == model_uris.Located(place)


def test_local_files_are_read_in_place(
    local_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(local_registry, monkeypatch, tmp_path)
    place = locate(f"models:/{NAME}@best", lambda _: None).place
    assert place == str(
        Path(local_registry.artifacts.removeprefix("file://").replace("%20", " ")).parents[1]
        / "models"
        / local_registry.logged
        / "artifacts"
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("ending", "named"),
    [
        ("nothing@best", "nothing"),
        (f"{NAME}/7", "7"),
        (f"{NAME}@worst", "best"),
        ("m-0123456789abcdef", "m-0123456789abcdef"),
    ],
)
def test_what_does_not_exist_is_named(registry: Registry, ending: str, named: str) -> None:
    with pytest.raises(FileNotFoundError, match=named):
        locate(f"models:/{ending}", pytest.fail)


def test_a_run_or_path_that_does_not_exist_is_named(registry: Registry) -> None:
    with pytest.raises(FileNotFoundError, match="0123456789abcdef"):
        locate("runs:/0123456789abcdef0123456789abcdef/model", pytest.fail)
    with pytest.raises(FileNotFoundError, match="nothing"):
        locate(f"runs:/{registry.run}/nothing", lambda _: None)
    assert not list(Path("cache").rglob(export.ABOUT))


@pytest.mark.parametrize(
    "uri",
    ["models:/", "models:/name", "models:/name/Production", "models:/a/b/c", "models://host/a/1", "runs:/", "runs:/id"],
)
def test_another_form_is_refused_without_asking(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_uris, "client_at", lambda _: pytest.fail("a server was asked"))
    with pytest.raises(ValueError, match="models:/NAME/VERSION"):
        locate(uri, pytest.fail)


def test_a_missing_store_is_not_created(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="MLFLOW_TRACKING_URI"):
        locate(f"models:/{NAME}@best", pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_the_setting_goes_before_the_environment(
    local_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert find_model(f"models:/{NAME}@best", local_registry.uri).server == local_registry.uri


def test_an_unreachable_server_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:top-secret@127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9") as raised:
        locate(f"models:/{NAME}@best", pytest.fail)
    assert "top-secret" not in str(raised.value)
    assert "MLFLOW_TRACKING_URI" in str(raised.value)
    assert time.monotonic() - started < 15


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_uris, "ANSWER_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(OSError, match="no answer"):
            locate(f"models:/{NAME}@best", pytest.fail)
        assert time.monotonic() - started < 5


def test_an_upload_that_was_stopped_is_no_model(local_registry: Registry) -> None:
    experiment = local_registry.client.get_run(local_registry.run).info.experiment_id
    stopped = local_registry.client.create_logged_model(experiment, "stopped", local_registry.run)
    with pytest.raises(FileNotFoundError, match="PENDING"):
        find_model(f"models:/{stopped.model_id}", local_registry.uri)


def test_another_program_s_model_is_no_checkpoint_but_a_language_model(
    local_registry: Registry, place: SearchPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As MLflow's flavours lay them out: sentence_transformers, and transformers with the tokenizer elsewhere."""
    use(local_registry, monkeypatch, tmp_path)
    experiment = local_registry.client.get_run(local_registry.run).info.experiment_id
    stream = Path(place.checkpoint) / "language"
    sentence = local_registry.client.create_logged_model(experiment, "sentence")
    shutil.copytree(stream, tmp_path / "sentence" / "model.sentence_transformer")
    (tmp_path / "sentence" / "MLmodel").write_text("flavors: {}\n")
    local_registry.client.log_model_artifacts(sentence.model_id, str(tmp_path / "sentence"))
    parted = local_registry.client.create_logged_model(experiment, "parted")
    (tmp_path / "parted" / "model").mkdir(parents=True)
    shutil.copy(stream / "config.json", tmp_path / "parted" / "model")
    local_registry.client.log_model_artifacts(parted.model_id, str(tmp_path / "parted"))
    for model in (sentence, parted):
        local_registry.client.finalize_logged_model(model.model_id, "READY")

    with pytest.raises(FileNotFoundError, match=r"groundray\.json.*MLmodel"):
        locate(f"models:/{sentence.model_id}", lambda _: None)
    found = locate(f"models:/{sentence.model_id}", lambda _: None, exported=False)
    assert Folder.at(found.place).name == "model.sentence_transformer"
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        locate(f"models:/{parted.model_id}", lambda _: None, exported=False)


def test_files_in_a_store_are_read_in_place(
    s3: Server, place: SearchPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.use(monkeypatch)
    folder = s3.folder()
    Folder.at(folder).upload(Path(place.checkpoint))
    found = FoundModel("models:/a/1", "models:/a/1", folder, None, "")
    assert place_of(found, Folder.at(tmp_path / "cache"), pytest.fail) == folder
    with pytest.raises(FileNotFoundError, match="found none"):
        place_of(FoundModel("models:/a/1", "models:/a/1", s3.folder(), None, ""), Folder.at(tmp_path), pytest.fail)


def test_files_of_another_machine_are_named_with_the_repair(tmp_path: Path) -> None:
    found = FoundModel("models:/a/1", "models:/a/1", "/no/such/mlruns/1", None, "http://server")
    with pytest.raises(FileNotFoundError, match="--serve-artifacts"):
        place_of(found, Folder.at(tmp_path), pytest.fail)


def test_an_analysis_is_added_to_the_run_that_logged_a_model(local_registry: Registry) -> None:
    model = find_model(f"models:/{NAME}@best", local_registry.uri)
    settings = Settings(
        stages=("grounding",),
        grounding={"train": "t", "val": "v", "batch_size": 4},  # type: ignore[arg-type]
    )
    assert log_analysis(settings, model, {"cohesion": 0.5}, {"numbers.json": b"{}"}, pytest.fail)
    assert local_registry.client.get_run(local_registry.run).data.metrics["cohesion"] == 0.5
    logged = {file.path for file in local_registry.client.list_artifacts(local_registry.run, "analysis")}
    assert "analysis/numbers.json" in logged
    warnings: list[str] = []
    assert not log_analysis(settings, replace(model, run_id=None), {}, {}, warnings.append)
    assert "no MLflow run" in warnings[0]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each download is added."""
    calls: list[str] = []
    download = mlflow.artifacts.download_artifacts

    def count(artifact_uri: str, **arguments: Any) -> str:
        calls.append(artifact_uri)
        return download(artifact_uri=artifact_uri, **arguments)

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", count)
    return calls


def test_a_model_is_downloaded_once_and_again_if_a_byte_changes(
    served_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(served_registry, monkeypatch, tmp_path)
    calls = counted(monkeypatch)
    first = locate(f"models:/{NAME}@best", lambda _: None).place
    assert locate(f"models:/{served_registry.logged}", lambda _: None).place == first  # the same files
    assert len(calls) == 1
    assert first.startswith(str(tmp_path / "cache" / "groundray" / "models"))

    weights = next(Path(first).rglob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    lines: list[str] = []
    assert locate(f"models:/{NAME}@best", lines.append).place == first
    assert len(calls) == 2
    assert str(weights) in lines[0]
    export.verify(first, export.about(first))
    assert [file.name for file in Path(first).parent.iterdir()] == [Path(first).name]


def test_what_was_damaged_on_the_server_is_not_kept(
    served_registry: Registry, place: SearchPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(served_registry, monkeypatch, tmp_path)
    shutil.copytree(place.checkpoint, tmp_path / "damaged")
    next((tmp_path / "damaged").rglob("*.safetensors")).write_bytes(b"half")
    served_registry.client.log_artifacts(served_registry.run, str(tmp_path / "damaged"), "damaged")
    with pytest.raises(Damaged, match=r"damaged/.*safetensors"):
        locate(f"runs:/{served_registry.run}/damaged", lambda _: None)
    assert list((tmp_path / "cache" / "groundray" / "models").iterdir()) == []


def _locate(uri: str, then: str) -> None:
    """Locate a model in a process of its own: and be killed in the middle of a download, or write where it is."""
    if then == "killed":

        def stop(**arguments: Any) -> str:
            Path(arguments["dst_path"], "groundray.json").write_text("half of a file")
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

        mlflow.artifacts.download_artifacts = stop
    Path(then).write_text(locate(uri, lambda _: None).place)


@pytest.fixture
def start() -> Iterator[Callable[[str, str], Any]]:
    """Start a process that locates a model."""
    started = []
    context = multiprocessing.get_context("spawn")

    def begin(uri: str, then: str) -> Any:
        process = context.Process(target=_locate, args=(uri, then))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ValueError):
            process.kill()


@pytest.mark.slow  # each process imports torch and mlflow
def test_a_killed_download_is_made_whole_and_two_processes_get_one_copy(
    served_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Callable[[str, str], Any]
) -> None:
    use(served_registry, monkeypatch, tmp_path)
    uri = f"models:/{NAME}@best"
    killed = start(uri, "killed")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    both = [start(uri, f"{tmp_path}/{name}") for name in ("a", "b")]
    for process in both:
        process.join()
        assert process.exitcode == 0
    places = {(tmp_path / name).read_text() for name in ("a", "b")}
    (place,) = places
    export.verify(place, export.about(place))
    assert [file.name for file in Path(place).parent.iterdir()] == [Path(place).name]
