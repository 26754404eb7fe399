"""Search on Ray Serve, as `serve run`, a manifest and the command line start it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from search_fixtures import SearchPaths

from groundray import serve as command
from groundray.cli.command import EXIT_USAGE
from groundray.image_search.query import Query
from groundray.image_search.service import Service
from groundray.runtime.serve import deployment
from groundray.runtime.serve.deployment import Arguments


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
        ({**words, "hosts": "a.org,http://b.org"}, "expected the name of a host"),
    ):
        with pytest.raises(ValidationError, match=message):
            call_user_app_builder_with_args_if_necessary(deployment.app, wrong)  # type: ignore[arg-type]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_service_answers_503_when_its_queue_is_full(place: SearchPaths, service: Service) -> None:
    places = {"checkpoint": place.checkpoint, "images": place.images, "index": place.index, "norms": place.norms}
    with deployment.serving(Arguments(**places, waiting=1, queued=1), "127.0.0.1", free_port()) as address:
        assert json.loads(fetched(address, "/healthz")[2])["images"] == 20
        status, headers, body = fetched(address, "/search", text="a star", image="80", alpha=[0, 0.5], k=20)
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
        (["--allow-host", "http://search.example.org"], r"^error: --allow-host: "),
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

    monkeypatch.setattr(cluster, "connect", lambda **_: pytest.fail("Ray was started"))
    assert command.main([*place.options, *words]) == EXIT_USAGE
    assert re.search(message, capsys.readouterr().err)


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
