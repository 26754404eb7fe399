"""What a service answers from is kept by `python -m groundray.clean`, as long as the service is there."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from search_fixtures import SearchPaths

from groundray import open_search
from groundray import search as command
from groundray.image_search import uses
from groundray.image_search.query import Search
from groundray.image_search.uses import USED, keep_marked, mark
from groundray.storage.folder import Folder
from groundray.training.disk_usage import find_cached, find_items

KEY = "0123456789abcdef"


class User:
    pass


def marks() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "groundray-uses"]


def written_long_ago(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"12345")
    os.utime(file, (0, 0))
    return file


def test_an_index_in_use_is_kept(tmp_path: Path) -> None:
    runs, user = tmp_path / "runs", User()
    for name in ("run/attempts/0000-01234567.json", f"run/index/{KEY}/compact.bin", "run/config.yaml"):
        written_long_ago(runs / name)
    cached = written_long_ago(tmp_path / "cache" / "index" / KEY / "compact.bin")
    downloaded = written_long_ago(tmp_path / "cache" / "models" / KEY / "groundray.json")

    def kept() -> dict[str, str]:
        items = [*find_items(Folder.at(runs)), *find_cached(Folder.at(tmp_path / "cache"))]
        return {item.path: item.kept for item in items if item.kind in ("index", "models")}

    before = kept()
    assert len(before) == 3
    assert not any(before.values())
    folders = (runs / "run" / "index" / KEY, cached.parent, downloaded.parent.parent)
    keep_marked([Folder.at(folder) for folder in folders], user)
    assert kept() == dict.fromkeys(before, "used lately")


def test_what_is_used_since_it_was_listed_is_not_deleted(tmp_path: Path) -> None:
    for name in ("attempts/0000-01234567.json", "config.yaml", "index/used/compact.bin", "index/unused/compact.bin"):
        written_long_ago(tmp_path / "run" / name)
    items = {item.path.rpartition("/")[2]: item for item in find_items(Folder.at(tmp_path)) if item.kind == "index"}
    mark([Folder.at(tmp_path / "run" / "index" / "used")])
    assert {name: item.delete(3600) for name, item in items.items()} == {"used": False, "unused": True}
    assert [path.name for path in (tmp_path / "run" / "index").iterdir()] == ["used"]


def test_each_search_marks_what_it_uses(place: SearchPaths, tmp_path: Path) -> None:
    words = ["--checkpoint", place.checkpoint, "--images", place.images, "--index", str(tmp_path), "--text", "red"]
    assert command.main(words) == 0
    marked = [folder / USED for folder in tmp_path.iterdir()]
    assert len(marked) == 2
    for reopen in (lambda: command.main(words), lambda: open_search(place.checkpoint, place.images, str(tmp_path))):
        for file in marked:
            file.unlink()
        reopen()
        assert all(file.exists() for file in marked)


def test_an_index_that_was_marked_before_the_clock_was_set_back_is_kept(tmp_path: Path) -> None:
    for name in ("run/attempts/0000-01234567.json", f"run/index/{KEY}/compact.bin", "run/config.yaml"):
        written_long_ago(tmp_path / name)
    index, tomorrow = tmp_path / "run" / "index" / KEY, time.time() + 86_400
    keep_marked([Folder.at(index)], User())
    os.utime(index / USED, (tomorrow, tomorrow))
    assert [item.kept for item in find_items(Folder.at(tmp_path)) if item.kind == "index"] == ["used lately"]


def test_marks_are_renewed_while_the_user_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, marked = marks(), threading.Event()
    monkeypatch.setattr(uses, "MARK_SECONDS", 0.01)

    def noted(folders: list[Folder]) -> None:
        mark(folders)
        if "groundray-uses" in threading.current_thread().name:
            marked.set()

    monkeypatch.setattr(uses, "mark", noted)
    user = User()
    keep_marked([Folder.at(tmp_path), Folder.at("/proc/none")], user)  # nobody can write there
    assert (tmp_path / USED).exists()
    assert marked.wait(10)
    (own,) = set(marks()) - set(before)
    del user
    own.join(10)
    assert not own.is_alive()


def test_a_search_names_the_folders_that_it_answers_from(place: SearchPaths) -> None:
    search = Search.open(place.checkpoint, place.images, place.index)
    assert search.reranker is not None
    names = [folder.name for folder in search.folders]
    assert len(set(names)) == 2
    assert {*names} <= {path.name for path in Path(place.index).iterdir()}
    assert [folder.name for folder in place.search().folders] == names[:1]
