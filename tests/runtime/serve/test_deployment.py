"""Search on Ray Serve, as `serve run`, a manifest and the command line start it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import mlflow_registry
import numpy as np
import psutil
import pytest
from conftest import SmallWorld
from mlflow_registry import NAME, Registry, use
from pydantic import ValidationError
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from search_fixtures import TOKEN, SearchPaths, write_model

from groundray import serve as command
from groundray.cli.command import EXIT_USAGE
from groundray.data.row_groups import read_rows
from groundray.data.schema import INDEX, KINDS, Dataset
from groundray.data.shards import write_index, write_shard_files
from groundray.image_search.http.auth_token import VARIABLE
from groundray.image_search.http.renewal import RenewedApp
from groundray.image_search.query import Query
from groundray.image_search.service import Service
from groundray.image_search.uses import USED
from groundray.runtime.serve import deployment
from groundray.runtime.serve.deployment import Arguments
from groundray.storage.folder import Folder
from groundray.tracking import model_uris
from groundray.tracking.model_uris import locate


def fetched(address: str, path: str, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    connection.request("GET", f"{path}?{urlencode(fields, doseq=True)}")
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    found = response.status, headers, response.read()
    connection.close()
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_serve_run_takes_the_same_arguments() -> None:
    """Serve itself makes the class of its words, which are all text."""
    words = {"checkpoint": "model", "images": "shards", "replicas": "3", "queued": "7"}
    application = call_user_app_builder_with_args_if_necessary(deployment.app, words)  # type: ignore[arg-type]
    bound = application._bound_deployment
    assert (bound.num_replicas, bound.max_queued_requests) == (3, 7)
    assert bound.backpressure_config.retry_after_s == deployment.RETRY_SECONDS
    assert Arguments(**words, hosts="a.org, *.b.org").hosts == ("a.org", "*.b.org")  # type: ignore[arg-type]
    for wrong, message in (
        ({"checkpoint": "model"}, "images"),
        ({**words, "replica": "3"}, "Extra inputs"),
        ({**words, "replicas": "0"}, "greater than or equal to 1"),
        ({**words, "queued": "0"}, "greater than or equal to 1"),
        ({**words, "hosts": "a.org,http://b.org"}, "expected the name of a host"),
        ({**words, "rate_limit": "0"}, "greater than 0"),
        ({**words, "rate_limit": "inf"}, "finite"),
    ):
        with pytest.raises(ValidationError, match=message):
            call_user_app_builder_with_args_if_necessary(deployment.app, wrong)  # type: ignore[arg-type]


def test_no_message_shows_the_token(tmp_path: Path) -> None:
    places = {"checkpoint": "model", "images": "shards"}
    arguments = Arguments(**places, auth_token=TOKEN)  # type: ignore[arg-type]
    assert TOKEN not in f"{arguments} {arguments!r} {arguments.model_dump()} {arguments.model_dump_json()}"
    for wrong in ({"auth_token": [TOKEN]}, {"auth_tokn": TOKEN}, {"rate_limit": TOKEN}):
        with pytest.raises(ValidationError) as caught:
            Arguments(**places, **wrong)  # type: ignore[arg-type]
        assert TOKEN not in str(caught.value)
    with pytest.raises(ValueError, match="--auth-token: expected at least 16"):
        deployment.app(Arguments(**places, auth_token="hunter2"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="--auth-token-file: expected a file with a token"):
        deployment.app(Arguments(**places, auth_token_file=str(tmp_path / "nowhere")))


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_proxies_pass_large_answers_and_replicas_limit_who_knows_the_token(
    place: SearchPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {"checkpoint": place.checkpoint, "images": place.images, "index": place.index}
    monkeypatch.setenv(VARIABLE, TOKEN)
    with deployment.serving(Arguments(**places, rate_limit=1), "127.0.0.1", free_port()) as address:

        def status(path: str, **headers: str) -> int:
            request = urllib.request.Request(f"{address}{path}", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return response.status
            except urllib.error.HTTPError as error:
                return error.code

        bearer = {"Authorization": f"Bearer {TOKEN}"}
        assert status("/healthz") == 200
        assert [status("/pool"), status("/pool", **bearer)] == [401, 200]
        # the proxy and the replica believe no address that a client on this machine claims
        forged = [status("/pool", **bearer, **{"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(40)]
        assert forged.count(429) >= 10

        @serve.deployment
        def large(_: Any) -> bytes:
            return bytes(6_000_000)  # gRPC's own limit is 4 MB

        serve.run(large.bind(), name="large", route_prefix="/large")
        try:
            assert len(fetched(address, "/large")[2]) == 6_000_000
        finally:
            serve.delete("large")


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_service_answers_503_when_its_queue_is_full(place: SearchPaths, service: Service) -> None:
    places = {"checkpoint": place.checkpoint, "images": place.images, "index": place.index, "norms": place.norms}
    with deployment.serving(Arguments(**places, waiting=1, queued=1), "127.0.0.1", free_port()) as address:
        health = json.loads(fetched(address, "/healthz")[2])
        assert health["images"] == 20
        assert Path(place.index, health["index"], USED).exists()  # `groundray clean` keeps it
        status, headers, body = fetched(address, "/search", text="a star", image="80", alpha=[0, 0.5], k=20, rerank=0)
        assert (status, headers["content-type"]) == (200, "application/json")
        (expected,) = service.search.answer([service.search.prepare(Query("a star", "80", (0.0, 0.5), 20))])
        for found, answer in zip(json.loads(body)["answers"], expected, strict=True):
            assert [result["id"] for result in found["results"]] == [hit.id for hit in answer.hits]
        assert fetched(address, "/search", text="")[0] == 422

        much = {"text": "a star", "image": "80", "alpha": [0.5] * 101, "k": 200}
        with ThreadPoolExecutor(24) as clients:
            answers = list(clients.map(lambda _: fetched(address, "/search", **much), range(24)))
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        refused = next(headers for status, headers, _ in answers if status == 503)
        assert refused["retry-after"] == str(deployment.RETRY_SECONDS)
        assert fetched(address, "/search", **much)[0] == 200


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_new_model_and_new_images_are_taken_up_without_a_failed_request(
    place: SearchPaths, world: SmallWorld, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", world, seed=1)
    model, pool = tmp_path / "model", tmp_path / "pool"
    shutil.copytree(place.checkpoint, model)
    shutil.copytree(place.images, pool)
    places = {"checkpoint": str(model), "images": str(pool), "index": str(tmp_path / "index")}
    with deployment.serving(Arguments(**places, watch=0.2, rerank=0), "127.0.0.1", free_port()) as address:
        ended, met = threading.Event(), list[tuple[int, Any]]()

        def ask() -> None:
            while not ended.is_set():
                status, _, body = fetched(address, "/search", text="a red star", k=20)
                results = json.loads(body)["answers"][0]["results"] if status == 200 else []
                # scores differ in their last digits with the number of queries in a batch
                best = round(results[0]["score"], 3) if results else None
                met.append((status, (best, frozenset(hit["id"] for hit in results))))

        def answered_since() -> None:
            """Wait until a request that is sent after the call is answered: the second of one of the clients."""
            enough = len(met) + len(clients) + 1
            for _ in range(600):
                if len(met) >= enough:
                    return
                time.sleep(0.1)
            pytest.fail("the clients got no answers")

        def served_after(change: Callable[[], None]) -> dict[str, Any]:
            before = json.loads(fetched(address, "/healthz")[2])["index"]
            change()
            for _ in range(600):
                now = json.loads(fetched(address, "/healthz")[2])
                if now["index"] != before:
                    return now
                time.sleep(0.1)
            pytest.fail(f"not taken up: {now}")

        def replace_model() -> None:  # at once: a model of which half is copied would give further answers
            shutil.copytree(other, tmp_path / "new")
            model.rename(tmp_path / "old")
            (tmp_path / "new").rename(model)

        def add_images() -> None:
            rows = read_rows(Dataset.open(str(pool)), np.arange(3), [field.name for field in KINDS["captions"]])
            more = [row | {"id": f"new {row['id']}"} for row in rows.to_pylist()]
            shards = write_shard_files(Folder.at(pool), "captions", more, {}, name="more-{:05d}.parquet")
            write_index(Folder.at(pool), "captions", [*Dataset.open(str(pool)).shards, *shards], {}, {}, {})

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            answered_since()
            assert served_after(replace_model)["images"] == 20
            answered_since()
            assert served_after(add_images)["images"] == 23
            answered_since()
        finally:
            ended.set()
            for client in clients:
                client.join()
        assert {status for status, _ in met} == {200}
        assert len({found for _, found in met}) == 3  # the old model, the new one, and with new images


@pytest.mark.thorough
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_alias_is_followed_without_a_failed_request_and_by_a_replica_that_was_killed(
    uri: str, place: SearchPaths, world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = mlflow_registry.write(uri, place.checkpoint, (tmp_path / "files").as_uri())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)  # of this process: replicas have another environment
    other, broken = Path(write_model(tmp_path / "other", world, seed=1)), tmp_path / "broken"
    shutil.copytree(other, broken)
    next((broken / "stages" / "retrieval").glob("*.safetensors")).write_bytes(b"half of it")
    for folder in (other, broken):  # versions 3 and 4
        registry.client.create_model_version(NAME, folder.as_uri())

    def move_to(version: str) -> None:
        registry.client.set_registered_model_alias(NAME, "best", version)

    arguments = Arguments(
        checkpoint=f"models:/{NAME}@best", images=place.images, index=str(tmp_path / "index"), watch=0.2, rerank=0
    )
    with deployment.serving(arguments, "127.0.0.1", free_port()) as address:
        ended, statuses = threading.Event(), list[int]()

        def ask() -> None:
            while not ended.is_set():
                statuses.append(fetched(address, "/search", text="a red star", k=20)[0])

        def health_when(condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            now = None
            for _ in range(600):
                status, _, body = fetched(address, "/healthz")
                if status == 200 and condition(now := json.loads(body)):
                    return now
                time.sleep(0.1)
            pytest.fail(f"not so: {now}")

        client = threading.Thread(target=ask)
        client.start()
        try:
            deployed = json.loads(fetched(address, "/healthz")[2])["index"]
            move_to("3")
            newest = health_when(lambda health: health["index"] != deployed)["index"]
            move_to("4")
            assert health_when(lambda health: "cannot be opened" in health["update"])["index"] == newest
        finally:
            ended.set()
            client.join()
        assert set(statuses) == {200}
        move_to("3")
        health_when(lambda health: not health["update"])
        move_to("4")
        kill_replica()
        assert health_when(lambda health: "cannot be opened" in health["update"])["index"] == deployed
        kill_replica()
        move_to("3")
        health_when(lambda health: health["index"] == newest)


def kill_replica() -> None:
    """Kill the replica of this process's cluster with SIGKILL, and wait until it is gone."""
    children = psutil.Process().children(recursive=True)
    (replica,) = [child for child in children if child.cmdline()[:1] == ["ray::ServeReplica:search:search"]]
    replica.kill()
    replica.wait(60)


@pytest.mark.thorough
def test_a_download_that_fails_is_not_repeated_at_every_look(
    served_registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model of gigabytes would be fetched every minute, to a disk that is full."""
    use(served_registry, monkeypatch, tmp_path)
    images, told, opened = tmp_path / "images", list[str](), list[str]()
    images.mkdir()
    (images / INDEX).write_text("{}")
    name = f"models:/{NAME}@moved"
    served_registry.client.set_registered_model_alias(NAME, "moved", "1")
    downloads = Folder.at(tmp_path / "downloads")
    model = deployment.FollowedModel(locate(name, told.append, downloads), str(images), downloads, told.append)

    def open() -> Any:
        opened.append(model.locate().place)
        return lambda: None

    app = RenewedApp(model.look, open, 1e6)
    assert not app.renew()
    served_registry.client.set_registered_model_alias(NAME, "moved", "2")
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(model_uris, "_download", no_space)
        assert not app.renew()
        attempts = sum("downloading" in line for line in told)
        assert not app.renew()
        assert sum("downloading" in line for line in told) == attempts == 2  # one of them of the first version
    served_registry.client.set_registered_model_alias(NAME, "moved", "1")
    assert not app.renew()
    served_registry.client.delete_registered_model_alias(NAME, "moved")
    assert not app.renew()
    assert "has no alias moved" in app._update
    served_registry.client.set_registered_model_alias(NAME, "moved", "2")
    assert app.renew()
    assert not app.renew()
    assert len(set(opened)) == 2


def no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


# the command line


def test_help_loads_no_torch() -> None:
    for module in ("groundray.serve", "groundray.search"):
        code = f"""
import sys
from {module} import main
try:
    main(["--help"])
finally:
    assert not {{"torch", "ray"}} & set(sys.modules)
"""
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "--checkpoint DIR" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "nowhere"], r"expected an exported model at .*nowhere"),
        (["--images", "nowhere"], r"expected shards at .*nowhere"),
        (
            ["--norms", "nowhere"],
            r"expected norms in nowhere, one of concreteness\.csv, categories\.csv.*found nothing",
        ),
        (["--port", "99999"], r"^error: --port: expected 0 to 65535, got 99999\n$"),
        (["--port", "-1"], r"^error: --port: expected 0 to 65535, got -1\n$"),
        (["--host", "nosuchhost.invalid"], r"^error: --host: "),
        (["--host", "203.0.113.9"], r"^error: --host: "),
        (["--timeout", "0"], r"^error: --timeout: "),
        (["--timeout", "nan"], r"^error: --timeout: "),
        (["--replicas", "0"], r"^error: --replicas: "),
        (["--watch", "-1"], r"^error: --watch: "),
        (["--allow-host", "http://search.example.org"], r"^error: --allow-host: "),
        (["--rate-limit", "0"], r"^error: --rate-limit: "),
        (["--auth-token", "hunter2"], r"^error: --auth-token: expected at least 16 (?!.*hunter2)"),
        (["--auth-token-file", "nowhere"], r"^error: --auth-token-file: expected a file with a token, got nowhere"),
    ],
)
def test_invalid_serve_arguments_fail_before_ray_starts(
    place: SearchPaths,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from groundray.runtime import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # with one, the cluster's machines listen
    monkeypatch.setattr(cluster, "connect", lambda **_: pytest.fail("Ray was started"))
    assert command.main([*place.options, "--port", "0", *words]) == EXIT_USAGE
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        ([], False),
        (["--host", "0.0.0.0"], True),
        (["--host", "::"], True),
        (["--host", "0.0.0.0", "--auth-token", TOKEN], False),
    ],
)
def test_a_service_that_is_open_to_others_without_a_token_is_warned_of(
    place: SearchPaths,
    words: list[str],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from groundray.runtime import cluster

    def stop(**_: Any) -> None:
        raise RuntimeError("as far as this")

    monkeypatch.setattr(cluster, "connect", stop)
    assert command.main([*place.options, "--port", "0", *words]) == 1
    shown = capsys.readouterr()
    assert "as far as this" in shown.err
    assert ("--auth-token-file" in shown.out) == warned
    assert TOKEN not in shown.out + shown.err


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(place: SearchPaths) -> None:
    words = [*place.options, "--norms", place.norms, "--port", str(free_port())]
    plain = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    started = [sys.executable, "-m", "groundray.serve", *words]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=plain) as process:
        try:
            assert process.stdout is not None
            told = map(bytes.decode, iter(process.stdout.readline, b""))  # of the index first, where there is none yet
            line = next((line for line in told if line.startswith("search  http://127.0.0.1:")), "")
            assert line, process.communicate()
            assert fetched(line.split()[1], "/search", text="red")[0] == 200
            process.send_signal(signal.SIGTERM)
            left, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, left, complaints) == (0, b"", b"")
