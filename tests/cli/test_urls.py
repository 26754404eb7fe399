"""A store that cannot be used gives one line before anything starts, wherever a URL can be given."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable

import pytest
from conftest import SmallWorld
from servers import NO_BUCKET, Server

from groundray import analyse, prepare, serve, sweep, train
from groundray import search as search
from groundray.runtime import cluster


def trains(world: SmallWorld, setting: str, *more: str) -> int:
    return train.main([*world.settings("--run.storage=/no/such/storage"), setting, *more])


def analyses(world: SmallWorld, **given: str) -> int:
    places = {"checkpoint": str(world.shards), "data": f"{world.shards}/captions/val", **given}
    return analyse.main(["retrieval", *(word for name, place in places.items() for word in (f"--{name}", place))])


def words(world: SmallWorld, given: dict[str, str]) -> list[str]:
    places = {"checkpoint": str(world.shards), "images": f"{world.shards}/captions/val", **given}
    return [f"--{name}={place}" for name, place in places.items()]


def serves(world: SmallWorld, **given: str) -> int:
    return serve.main([*words(world, given), "--port=0"])


def searches(world: SmallWorld, **given: str) -> int:
    return search.main(["--text=red", *words(world, given)])


def sweeps(world: SmallWorld, setting: str) -> int:
    what = ["--space=grounding.temperature=choice:0.1,0.2", "--metric=grounding/loss"]
    return sweep.main([*what, *world.settings(setting)])


COMMANDS: dict[str, Callable[[SmallWorld, str], int]] = {
    "prepare --out": lambda world, url: prepare.main(["scenes", "--out", url]),
    "run.storage": lambda world, url: trains(world, f"--run.storage={url}"),
    "run.start_from": lambda world, url: trains(world, f"--run.start_from={url}"),
    "features.folder": lambda world, url: trains(world, f"--features.folder={url}"),
    "grounding.train": lambda world, url: trains(world, f"--grounding.train={url}"),
    "model.language.tokenizer": lambda world, url: trains(world, f"--model.language.tokenizer={url}"),
    "model.trunk.weights": lambda world, url: trains(world, f"--model.trunk.weights={url}"),
    "analyse --checkpoint": lambda world, url: analyses(world, checkpoint=url),
    "analyse --data": lambda world, url: analyses(world, data=url),
    "analyse --json": lambda world, url: analyses(world, json=f"{url}/numbers.json"),
    "analyse --norms": lambda world, url: analyse.main(["axes", "--model=m=minilm", f"--norms={url}"]),
    "analyse --model": lambda world, url: analyse.main(["axes", f"--model=m={url}", f"--norms={world.source}/norms"]),
    "serve --checkpoint": lambda world, url: serves(world, checkpoint=url),
    "serve --images": lambda world, url: serves(world, images=url),
    "serve --norms": lambda world, url: serves(world, norms=url),
    "search --index": lambda world, url: searches(world, index=url),
    "search --json": lambda world, url: searches(world, json=f"{url}/found.json"),
    "search --grid": lambda world, url: searches(world, grid=f"{url}/found.png"),
    "sweep": lambda world, url: sweeps(world, f"--run.storage={url}"),
}


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    for name in ("groundray.cli.run_session", "groundray.runtime.tune.trials"):
        importlib.import_module(name)  # takes seconds, which the tests do not count


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "connect", lambda **_: pytest.fail("a cluster was asked for"))


def one_line(said: str) -> str:
    """Return the error line of a command."""
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.thorough
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("bucket", "change", "what"),
    [
        (NO_BUCKET, {}, f"has no bucket {NO_BUCKET}"),
        (
            "",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "SIGNATURE_DOES_NOT_MATCH",
        ),
        ("", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9"),
    ],
    ids=["no bucket", "wrong key", "no server"],
)
def test_an_unusable_store_gives_one_line(
    world: SmallWorld,
    s3: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    bucket: str,
    change: dict[str, str],
    what: str,
) -> None:
    s3.use(monkeypatch, **change)
    url = f"s3://{bucket}/x" if bucket else s3.folder()
    began = time.monotonic()
    assert COMMANDS[command](world, url) == 2
    assert time.monotonic() - began < 20
    line = one_line(capsys.readouterr().err)
    assert what in line
    assert url in line
    if "." in command:
        assert f"error: {command}: " in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_url_with_credentials_is_refused_and_not_printed(
    world: SmallWorld, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert COMMANDS[command](world, "s3://key:hush-hush@bucket/x") == 2
    line = one_line(capsys.readouterr().err)
    assert "s3://BUCKET/FOLDER" in line
    assert "hush" not in line


def test_a_dry_run_names_an_unusable_store(
    world: SmallWorld, s3: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.use(monkeypatch)
    assert trains(world, f"--run.storage=s3://{NO_BUCKET}/x", "--dry-run") == 2
    assert f"problem   run.storage: s3://{NO_BUCKET}/x: " in capsys.readouterr().out


def test_missing_data_in_a_store_is_named_as_on_a_disk(
    world: SmallWorld, s3: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    assert trains(world, f"--grounding.train={url}") == 2
    assert f"shards at {url}" in one_line(capsys.readouterr().err)
    assert trains(world, f"--model.language.tokenizer={url}") == 2
    assert f"model.language.tokenizer: there is no folder {url}" in one_line(capsys.readouterr().err)
    assert analyses(world, checkpoint=url) == 2
    assert f"expected an exported model at {url}" in one_line(capsys.readouterr().err)
