"""A password in a URL is refused or hidden, in every way in: no file and no output has it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SmallWorld

from groundray import analyse, config, prepare, search, serve, sweep, train
from groundray.config import Settings, SettingsError, Tracking
from groundray.runtime import cluster
from groundray.storage.folder import Folder
from groundray.tracking import store
from groundray.training import identity

SECRET = "hush-hush-7"
URLS = {
    "password": f"https://me:{SECRET}@mlflow.example/x",
    "database": f"postgresql://me:{SECRET}@db.example/mlflow",
    "store": f"s3://key:{SECRET}@bucket/x",
    "parameter": f"https://store.example/x?sig={SECRET}&y=1",
}
SETTINGS = [
    *("tracking.uri", "run.storage", "run.start_from", "features.folder", "grounding.train", "grounding.val"),
    *(
        "model.language.tokenizer",
        "model.language.name",
        "model.trunk.weights",
        "analysis.norms",
        "tracking.experiment",
        "tracking.tensorboard.folder",
        "tracking.wandb.project",
        "tracking.wandb.entity",
    ),
]


@pytest.fixture(autouse=True)
def _nothing_starts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "ray" not in request.keywords:
        monkeypatch.setattr(cluster, "connect", lambda **_: pytest.fail("a cluster was asked for"))


def assert_nowhere(folder: Path, *outputs: str) -> None:
    """Assert that neither a file below a folder, nor its name, nor an output has the secret."""
    for output in outputs:
        assert SECRET not in output
    for path in folder.rglob("*"):
        assert SECRET not in path.name
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.thorough
@pytest.mark.parametrize("kind", URLS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_with_a_secret_is_refused(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    words = [*world.settings(f"--run.storage={tmp_path}/runs"), f"--{name}={URLS[kind]}"]
    for more in ([], ["--dry-run"], ["--print-config"]):
        assert train.main([*words, *more]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith(f"error: {name}: expected a URL without a password")
        assert said.err.count("\n") == 1
        assert "environment" in said.err
        assert SECRET not in said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("uri", URLS.values())
def test_a_file_with_a_secret_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], uri: str) -> None:
    file = tmp_path / "mine.yaml"
    for text in (
        yaml.safe_dump({"stages": ["grounding"], "tracking": {"uri": uri}}),
        yaml.safe_dump({"stages": ["grounding"], "tracking": {"enabled": uri}}),  # another error shows the value
        f"stages: [grounding]\nrun: {{1: [{uri}]}}\n",
        f"stages: '{uri}\n",  # no YAML
    ):
        file.write_text(text)
        assert train.main(["--config", str(file), "--dry-run"]) == 2
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        assert said.err.startswith("error: ")


@pytest.mark.parametrize("uri", URLS.values())
def test_settings_of_the_api_refuse_a_secret_and_do_not_show_it(uri: str) -> None:
    stage: dict[str, Any] = {"train": "t", "val": "v", "batch_size": 4}
    for given in ({"uri": uri}, Tracking(uri=uri), {"enabled": uri}):
        with pytest.raises(ValueError, match="tracking") as caught:
            Settings(stages=("grounding",), grounding=stage, tracking=given)  # type: ignore[arg-type]
        assert SECRET not in str(caught.value)
    with pytest.raises(SettingsError) as raised:
        config.load("demo", [f"--bogus={uri}", uri])
    assert SECRET not in str(raised.value)
    with pytest.raises(ValueError, match="expected") as failed:
        Folder.at(uri)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize("uri", [URLS["password"], URLS["store"]])
def test_options_of_commands_do_not_show_a_secret(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], uri: str
) -> None:
    where = f"--checkpoint={world.shards}", f"--images={world.shards}/captions/val"
    for command in (
        lambda: analyse.main(["retrieval", f"--checkpoint={uri}"]),
        lambda: analyse.main(["axes", f"--model=m={uri}", f"--norms={world.source}/norms"]),
        lambda: search.main([f"--checkpoint={uri}", where[1], "--text=red"]),
        lambda: serve.main([where[0], f"--images={uri}", "--port=0"]),
        lambda: prepare.main(["scenes", "--out", uri]),
        lambda: sweep.main([f"--space=tracking.uri=choice:{uri}", "--metric=grounding/loss", *world.settings()]),
        lambda: sweep.main([f"--space=grounding.train=choice:{uri}", "--metric=grounding/loss", *world.settings()]),
    ):
        assert command() == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ")
        assert SECRET not in said.out + said.err


def test_a_secret_that_an_earlier_version_wrote_is_removed(tmp_path: Path) -> None:
    clean = Settings(
        stages=("grounding",),
        grounding={"train": "t", "val": "v", "batch_size": 4},
        tracking={"uri": "https://mlflow.example/x"},
    )  # type: ignore[arg-type]
    tree = clean.model_dump(mode="json")
    tree["tracking"]["uri"] = URLS["password"]
    folder = Folder.at(tmp_path).make()
    folder.write_bytes("config.yaml", yaml.safe_dump(tree).encode())
    folder.write_json("data.json", {})
    assert identity.claim(folder, clean, {}).settings == clean
    assert_nowhere(tmp_path)
    assert config.load(tmp_path / "config.yaml") == clean


class Refusing(BaseHTTPRequestHandler):
    """A tracking server that answers every request with an error that repeats the credentials."""

    def do_GET(self) -> None:
        told = json.dumps({"error_code": "PERMISSION_DENIED", "message": f"no: http://me:{SECRET}@host, {SECRET}"})
        self.server.seen.append(self.headers.get("Authorization", ""))  # type: ignore[attr-defined]
        self.send_response(403)
        self.end_headers()
        self.wfile.write(told.encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A tracking server that refuses everything. The environment names it, with a password."""
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}@127.0.0.1:{server.server_port}")
        server.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.thorough
def test_a_run_never_writes_the_password_of_the_environment(
    world: SmallWorld,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    refusing: ThreadingHTTPServer,
) -> None:
    """The server gets the password; no file and no output does, although the server's error repeats it."""
    words = world.settings(
        *(f"--run.storage={tmp_path}/runs", "--run.name=x", "--tracking.enabled=true", "--grounding.epochs=1"),
        "--scaling.num_workers=0",
    )
    assert train.main(words) == 0
    said = capfd.readouterr()
    assert "tracking failed, training continues: " in said.err
    assert "***" in said.err
    assert any(header.startswith("Basic ") for header in refusing.seen)  # type: ignore[attr-defined]
    assert (tmp_path / "runs" / "x" / "model" / "README.md").exists()
    assert_nowhere(tmp_path, said.out, said.err)


def test_a_trial_gets_the_uri_without_the_password(world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes the password from the environment of its machine."""
    settings = config.load("demo", world.settings("--tracking.enabled=true"))
    with_password = f"http://me:{SECRET}@mlflow.example:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
    written = store.written_uri(settings)
    assert written == "http://mlflow.example:5000"
    trial = settings.model_copy(update={"tracking": Tracking(uri=written)})
    assert store.uri_of(trial) == with_password
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other.example")
    assert store.uri_of(trial) == written


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster", "refusing")
def test_a_sweep_never_writes_the_password_of_the_environment(
    world: SmallWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = world.settings(
        *(f"--run.storage={tmp_path}/runs", "--run.name=s", "--tracking.enabled=true", "--grounding.epochs=1")
    )
    space = ["--space=grounding.temperature=choice:0.05,0.1", "--metric=grounding/loss"]
    assert sweep.main([*space, *words]) == 0
    said = capfd.readouterr()
    assert "tracking failed, the sweep continues: " in said.err
    assert len(list((tmp_path / "runs" / "s" / "trials").iterdir())) == 2
    assert_nowhere(tmp_path, said.out, said.err)
