"""A run whose data, features, checkpoints and model are in a store is killed, and ends as one that was not, on this
machine's disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SmallWorld
from servers import Server
from test_kills import Ended, Saboteur

from groundray import analyse, config, train
from groundray.runtime.train import launch
from groundray.storage.folder import Folder
from groundray.training import preflight

WORDS = ("--grounding.trains.trunk=false", "--checkpoints.every_steps=4", "--run.log_samples=true")
HERE = ("--scaling.num_workers=0", "--scaling.chunks=2")


@pytest.fixture(params=["s3", "gs"])
def stored(
    request: pytest.FixtureRequest, world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Saboteur:
    """Runs of which all is in a store."""
    server: Server = request.getfixturevalue(request.param)
    server.use(monkeypatch)
    data, storage = world.copied_to(server.folder()), server.folder()
    words = world.settings(*WORDS, "--scaling.cpus_per_worker=0.7", f"--run.storage={storage}", url=data)
    return Saboteur(words, tmp_path, Folder.at(storage))


def unharmed(world: SmallWorld, folder: Path, *words: str) -> Ended:
    """Returns what an undisturbed run leaves, trained in this process on a local folder."""
    mine = world.settings(*WORDS, f"--run.storage={folder}", *words)
    launch.fit(preflight.check(config.load("demo", [*mine, *HERE])), lambda _: None)
    return Saboteur(mine, folder, Folder.at(folder)).ended()


def test_resume_from_a_store_after_the_driver_is_killed(
    world: SmallWorld, stored: Saboteur, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored.plan(who="driver", when="write", count=2)
    ran = stored.run(*HERE)
    assert stored.happened, ran.stdout + ran.stderr
    assert ran.returncode != 0
    assert not (stored.storage / "demo").exists("result.json")
    assert train.main([*stored.words, *HERE]) == 0
    assert "attempt 2  previous attempt killed" in capsys.readouterr().out
    assert stored.ended() == unharmed(world, tmp_path / "unharmed")
    assert len(set((stored.storage / ".features").names()) - {"uses"}) == 2

    data = next(word.partition("=")[2] for word in stored.words if word.startswith("--grounding.val="))
    where = [(f"{stored.storage}/demo", data), (f"{tmp_path}/unharmed/demo", f"{world.shards}/captions/val")]
    for folder, val in where:
        words = ["retrieval", "--checkpoint", f"{folder}/model", "--data", val, "--json", f"{folder}/numbers/all.json"]
        assert analyse.main(words) == 0
    ours, theirs = (Folder.at(folder).read_json("numbers/all.json") for folder, _ in where)
    assert ours == theirs


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("stored", ["s3"], indirect=True)
def test_resume_from_a_store_after_a_worker_is_killed(world: SmallWorld, stored: Saboteur, tmp_path: Path) -> None:
    stored.plan(who="worker", when="step", count=7)
    ran = stored.run()
    assert stored.happened, ran.stdout + ran.stderr
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout)  # with the seconds to the first step
    assert "attempt 2  previous attempt killed" in ran.stdout
    features = f"--features.folder={stored.storage}/.features"  # which the cluster has made
    assert stored.ended() == unharmed(world, tmp_path / "unharmed", features)
