"""`python -m groundray.baseline` from its command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SmallWorld

from groundray import baseline
from groundray.analysis.inputs.vector_files import read_vectors
from groundray.baselines import picturebook
from groundray.data.schema import Dataset


def words(world: SmallWorld, method: str, out: Path, *options: str) -> list[str]:
    kind = {"vico": "scene_graphs"}.get(method, "captions")
    quick = {
        "picturebook": ["--trunk=tiny", "--image-size=32"],
        "bovw": ["--trunk=tiny", "--image-size=32", "--clusters=6", "--width=4"],
        "vico": ["--width=3", "--epochs=2", "--min-count=2"],
        "glove": ["--width=5", "--epochs=2", "--window=3"],
    }
    return [method, f"--data={world.shards}/{kind}/train", f"--out={out}", *quick[method], *options]


@pytest.mark.parametrize("method", ["picturebook", "bovw", "vico", "glove"])
def test_a_baseline_writes_its_vectors_and_a_card(
    method: str, world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / method
    assert baseline.main(words(world, method, out)) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "vectors.parquet"]
    found = read_vectors(out / "vectors.parquet")
    assert {"red", "circle"} <= set(found.words)
    assert shown[-1] == f"vectors  {len(found.words)} x {found.vectors.shape[1]}  {out}/vectors.parquet"
    kind = {"vico": "scene_graphs"}.get(method, "captions")
    dataset = Dataset.open(f"{world.shards}/{kind}/train")
    assert found.metadata["method"] == method
    assert found.metadata["data"] == [{"folder": str(dataset.folder), "kind": kind, "digest": dataset.fingerprint}]
    assert found.metadata["settings"]["seed"] == 0
    card = (out / "README.md").read_text()
    for fact in (dataset.fingerprint, f"groundray baseline {method} --data=", "| seed | 0 |", "| torch | ", " 20"):
        assert fact in card, fact
    before = (out / "README.md").read_bytes()
    assert baseline.main(words(world, method, out)) == 2
    assert f"{out} has vectors already: give another folder, or --overwrite" in capsys.readouterr().err
    again = words(world, method, tmp_path / "again")
    assert baseline.main(again) == 0
    same = read_vectors(tmp_path / "again" / "vectors.parquet")
    assert same.words == found.words
    assert np.array_equal(same.vectors, found.vectors)
    assert (out / "README.md").read_bytes() == before


def test_overwritten_vectors_have_the_new_seed(world: SmallWorld, tmp_path: Path) -> None:
    assert baseline.main(words(world, "glove", tmp_path / "out")) == 0
    assert baseline.main(words(world, "glove", tmp_path / "out", "--seed=1", "--overwrite")) == 0
    assert read_vectors(tmp_path / "out" / "vectors.parquet").metadata["settings"]["seed"] == 1


def test_several_data_sets_are_one(world: SmallWorld, tmp_path: Path) -> None:
    more = [f"--data={world.shards}/{name}/val" for name in ("objects", "scene_graphs")]
    assert baseline.main(words(world, "picturebook", tmp_path / "out", *more, "--not-centred")) == 0
    found = read_vectors(tmp_path / "out" / "vectors.parquet")
    assert [one["kind"] for one in found.metadata["data"]] == ["captions", "labelled_images", "scene_graphs"]


@pytest.mark.parametrize(
    ("method", "options", "problem"),
    [
        ("vico", ["--data=CAPTIONS"], "expected shards of kind 'scene_graphs' at"),
        ("glove", ["--min-count=99999"], "--min-count: expected words with at least 99,999 occurrences"),
        ("glove", ["--width=500"], "--width: expected at most"),
        ("glove", ["--data=CAPTIONS", "--data=CAPTIONS"], "--data: expected different shards, got"),
        ("picturebook", ["--device=cuda"], "--device: expected a CUDA device, found none"),
        ("picturebook", ["--image-size=8"], "--image-size: expected a size that trunk tiny takes, got 8"),
        ("glove", ["--epochs=0"], "--epochs: expected at least 1, got 0"),
        ("picturebook", ["--images-per-word=0"], "--images-per-word: expected at least 1, got 0"),
        ("picturebook", ["--checkpoint=/nowhere", "CHECKPOINT"], "expected an exported model at /nowhere"),
    ],
)
def test_what_cannot_be_used_is_named_and_nothing_is_written(
    method: str,
    options: list[str],
    problem: str,
    world: SmallWorld,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = words(world, method, tmp_path / "out")
    if options[-1] == "CHECKPOINT":
        given, options = [word for word in given if "trunk" not in word and "size" not in word], options[:-1]
    options = [option.replace("CAPTIONS", f"{world.shards}/captions/train") for option in options]
    assert baseline.main([*given, *options]) == 2
    said = capsys.readouterr().err
    assert problem in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_kept(
    world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert baseline.main(words(world, "glove", tmp_path, "--overwrite")) == 2
    assert "expected an empty folder or one of a baseline" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file", "file/folder", "/proc/groundray/folder"])
def test_a_place_that_cannot_be_written_is_an_error_before_the_work(
    place: str, world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(picturebook, "picturebook", lambda *_: pytest.fail("it was made"))
    assert baseline.main(words(world, "picturebook", tmp_path / place)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_trunk_and_a_model_exclude_each_other(world: SmallWorld, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        baseline.main(words(world, "picturebook", tmp_path / "out", "--checkpoint=runs/demo/model"))
    assert ended.value.code == 2


def test_an_interrupted_baseline_leaves_nothing(
    world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(picturebook, "picturebook", stopped)
    assert baseline.main(words(world, "picturebook", tmp_path / "out")) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_heavy_library() -> None:
    code = "import sys; from groundray.baseline import build_parser; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
