"""The identity of a run: minted once, kept, and never taken from a path."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from groundray import versions
from groundray.config import Settings, SettingsError
from groundray.storage import folder as folder_module
from groundray.storage.folder import Folder
from groundray.training import identity
from groundray.training.events import Event, Notice
from groundray.training.identity import Identity
from groundray.training.recovery import begin
from groundray.training.worker import InProcess

DATA = {"grounding.train": "abc"}


def settings(temperature: float = 0.1, name: str = "run") -> Settings:
    return Settings(
        run={"name": name},
        stages=("grounding",),
        grounding={"train": "t", "val": "v", "batch_size": 4, "temperature": temperature},
    )  # type: ignore[arg-type]


def test_a_run_keeps_its_id(anywhere: str) -> None:
    folder = Folder.at(anywhere)
    first = identity.claim(folder, settings(), DATA)
    assert len(first.id) == 32
    assert int(first.id, 16)
    assert identity.claim(folder, settings(), DATA).id == first.id
    assert identity.read(folder) == first
    assert folder.names() == ["config.yaml", "run.json"]  # and no claim


def test_a_deleted_run_that_starts_again_is_another(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    first = identity.claim(folder, settings(), DATA)
    folder.delete(".")
    assert identity.claim(folder, settings(0.5), DATA).id != first.id


def test_other_settings_or_data_are_refused_and_named(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    identity.claim(folder, settings(), DATA)
    with pytest.raises(SettingsError, match=r"grounding\.temperature: 0\.1 stored, 0\.5 now"):
        identity.claim(folder, settings(0.5), DATA)
    with pytest.raises(SettingsError, match=r"grounding\.train .*: 'abc' stored, 'abd' now"):
        identity.claim(folder, settings(), {"grounding.train": "abd"})


def test_windows_of_stages_are_part_of_a_run(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    began = settings()
    assert began.window("grounding") is None
    identity.claim(folder, began.with_windows({"grounding": 8192}), DATA)
    recorded = identity.recorded(folder)
    assert recorded
    assert recorded.window("grounding") == 8192
    everywhere = began.model_copy(update={"data": began.data.model_copy(update={"window": 8192})})
    identity.check(folder, everywhere, DATA)  # the same window for all stages
    with pytest.raises(SettingsError, match=r"grounding\.window: 8192 stored, 4096 now"):
        identity.check(folder, began.with_windows({"grounding": 4096}), DATA)


def test_a_check_writes_nothing(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    identity.check(folder, settings(), DATA)
    assert not folder.exists()
    identity.claim(folder, settings(), DATA)
    identity.check(folder, settings(), DATA)
    with pytest.raises(SettingsError, match=r"grounding\.temperature: 0\.1 stored, 0\.5 now"):
        identity.check(folder, settings(0.5), DATA)
    with pytest.raises(SettingsError, match=r"grounding\.train .*: 'abc' stored, 'abd' now"):
        identity.check(folder, settings(), {"grounding.train": "abd"})


def test_a_moved_run_keeps_its_id_and_a_copy_gets_another(tmp_path: Path) -> None:
    first = identity.claim(Folder.at(tmp_path / "a"), settings(name="a"), DATA)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = identity.claim(Folder.at(tmp_path / "b"), settings(name="b"), DATA)
    assert copy.id != first.id
    assert identity.claim(Folder.at(tmp_path / "b"), settings(name="b"), DATA).id == copy.id
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert identity.claim(Folder.at(tmp_path / "linked"), settings(name="linked"), DATA).id == first.id
    (tmp_path / "a").rename(tmp_path / "moved")
    assert identity.claim(Folder.at(tmp_path / "moved"), settings(name="moved"), DATA).id == first.id
    shutil.copytree(tmp_path / "moved", tmp_path / "c")
    assert identity.claim(Folder.at(tmp_path / "c"), settings(name="c"), DATA).id not in (first.id, copy.id)
    assert identity.claim(Folder.at(tmp_path / "moved"), settings(name="moved"), DATA) == replace(
        first, folder=str(tmp_path / "moved")
    )


def test_a_run_of_an_earlier_version_is_adopted(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run").make()
    folder.write_bytes("config.yaml", settings(0.5).to_yaml().encode())
    folder.write_json("data.json", DATA)
    with pytest.raises(SettingsError, match=r"grounding\.temperature: 0\.5 stored, 0\.1 now"):
        identity.claim(folder, settings(), DATA)
    adopted = identity.claim(folder, settings(0.5), DATA)
    assert adopted.adopted
    assert identity.read(folder) == adopted
    assert adopted.settings == settings(0.5)


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"{", b"stages: [grounding]\nrun: 3\n"])
def test_a_damaged_configuration_of_an_earlier_version_is_named(tmp_path: Path, content: bytes) -> None:
    folder = Folder.at(tmp_path / "run").make()
    folder.write_bytes("config.yaml", content)
    with pytest.raises(ValueError, match=r"config\.yaml "):
        identity.claim(folder, settings(), DATA)


def test_a_damaged_identity_is_named_with_its_repair(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    first = identity.claim(folder, settings(), DATA)
    whole = folder.read_bytes("run.json")
    for damaged in (b"", whole[:100], whole.replace(b"0.1", b"0.2"), b"[]", b"{}"):
        folder.write_bytes("run.json", damaged)
        with pytest.raises(ValueError, match=r"run\.json is damaged.* delete it"):
            identity.claim(folder, settings(), DATA)
    folder.delete("run.json")  # the repair
    again = identity.claim(folder, settings(), DATA)
    assert again.id != first.id
    assert again.settings == settings()


def test_a_lost_configuration_is_written_again(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path / "run")
    identity.claim(folder, settings(), DATA)
    written = folder.read_bytes("config.yaml")
    for lose in (lambda: folder.write_bytes("config.yaml", b""), lambda: folder.delete("config.yaml")):
        lose()
        identity.claim(folder, settings(), DATA)
        assert folder.read_bytes("config.yaml") == written


def test_of_starts_at_once_one_wins_and_the_others_are_refused(anywhere: str) -> None:
    """Eight starts of one name, with two different settings."""
    ready = threading.Barrier(8)

    def start(number: int) -> Identity | None:
        ready.wait()
        with contextlib.suppress(SettingsError):
            return identity.claim(Folder.at(anywhere), settings(0.1 if number % 2 else 0.5), DATA)
        return None

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(start, range(8)))
    winners = {number % 2 for number, won in enumerate(ended) if won}
    assert len(winners) == 1
    assert len({won.id for won in ended if won}) == 1
    assert sum(won is not None for won in ended) == 4
    assert Folder.at(anywhere).names() == ["config.yaml", "run.json"]


CREATE = """
import os, sys
from groundray.storage.folder import Folder

def no_links(*_):
    raise PermissionError(1, "Operation not permitted")

folder, number, links = sys.argv[1:]
if links == "False":
    os.link = no_links
print("ready", flush=True)
sys.stdin.readline()
print(Folder.at(folder).create_sealed("file.json", {"writer": int(number)}))
"""


@pytest.mark.parametrize("links", [True, False])
def test_one_of_several_processes_creates_a_file(tmp_path: Path, links: bool) -> None:
    """With hard links, and by claims where a file system has none."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(tmp_path), str(number), str(links)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    wrote = [process.communicate()[0] == "True\n" for process in processes]
    assert sorted(wrote) == [False, False, False, True]
    assert Folder.at(tmp_path).read_sealed("file.json") == {"writer": wrote.index(True)}
    assert Folder.at(tmp_path).names() == ["file.json"]


def test_the_claim_of_a_killed_process_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module.os, "link", _no_links)
    monkeypatch.setattr(folder_module, "CLAIM_SECONDS", 1.0)
    folder = Folder.at(tmp_path)
    folder.write_json("file.json.0123abcd.claim", {})
    assert folder.create_sealed("file.json", {"writer": 1})
    assert folder.names() == ["file.json"]


def _no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def attempted(folder: Folder, made_with: dict[str, object]) -> list[str]:
    """Begin an attempt and return its notices."""
    events: list[Event] = []
    begin(folder, ["grounding"], InProcess(events.append), made_with)
    return [event.text for event in events if isinstance(event, Notice)]


def test_an_attempt_records_settings_code_and_libraries(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    made_with = {
        "settings": identity.settings_hash(settings(), DATA),
        "code": versions.code_version(),
        "versions": versions.library_versions(),
    }
    identity.claim(folder, settings(), DATA)
    assert attempted(folder, made_with) == []
    assert attempted(folder, made_with) == []
    (record,) = (json.loads(file.read_bytes()) for file in (tmp_path / "attempts").glob("0001-????????.json"))
    assert record["settings"] == made_with["settings"]
    assert set(record["versions"]) >= {"python", "torch", "torchvision", "transformers", "ray"}
    assert record["code"]


def test_another_version_at_a_resume_is_said_in_one_line(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    attempted(folder, {"code": "1.0", "versions": {"torch": "2.8", "ray": "2.60"}})
    (line,) = attempted(folder, {"code": "1.1", "versions": {"torch": "2.9", "ray": "2.60", "numpy": "2"}})
    assert "groundray 1.1 (1.0 before), torch 2.9 (2.8 before)" in line
    assert "ray 2.60 " not in line
    assert "numpy" not in line  # not known of the attempt before


def test_an_attempt_with_other_settings_ends_before_it_supersedes(tmp_path: Path) -> None:
    """The last guard, where two machines passed the claim: no attempt of other settings is taken."""
    folder = Folder.at(tmp_path)
    identity.claim(folder, settings(), DATA)
    attempted(folder, {"settings": identity.settings_hash(settings(), DATA)})
    before = (folder / "attempts").names()
    with pytest.raises(SettingsError, match="another configuration"):
        attempted(folder, {"settings": identity.settings_hash(settings(0.5), DATA)})
    assert (folder / "attempts").names() == before


def test_code_outside_a_checkout_is_known_by_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "versions.py"))
    assert versions.code_version.__wrapped__() == versions.version_of("groundray")
    monkeypatch.setenv("PATH", "")
    assert versions.code_version.__wrapped__() == versions.version_of("groundray")
