"""What `max_tokens` cuts off the texts of a data set is counted, and of a large one in a fixed sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import SmallWorld

from groundray.data import truncation
from groundray.data.plan import Plan
from groundray.data.schema import Dataset
from groundray.data.shards import write_shards
from groundray.data.stream import Source
from groundray.data.tokenization import WordPieceTokenizer
from groundray.data.truncation import count_truncation
from groundray.storage.folder import Folder

IMAGE = {"image": b"", "width": 1, "height": 1}


@pytest.fixture(scope="module")
def json(world: SmallWorld) -> str:
    return (world.source / "tokenizer" / "tokenizer.json").read_text()


def opened(
    folder: Path, kind: str, rows: Sequence[dict[str, Any]], json: str, max_tokens: int, training: bool
) -> Source:
    """Write shards with a row group for each ten rows or so, and return what a stage reads of them."""

    def numbered() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows):
            yield {"id": str(number), **(IMAGE if kind != "text" else {}), **row}

    out = Folder.at(folder).make()
    vocabulary = {"classes": ("thing",), "predicates": ("on",)} if kind == "scene_graphs" else {}
    dataset: Dataset = write_shards(out, kind, numbered(), {}, {"fingerprint": "x"}, vocabulary, 200)
    plan = Plan(tuple(dataset.group_sizes.tolist()), 1, 1, shuffle=training, drop_last=training)
    samples = SimpleNamespace(tokenizer=WordPieceTokenizer(json, max_tokens))
    return Source(dataset, cast(Any, samples), plan)


def test_lines_beyond_max_tokens_are_counted(tmp_path: Path, json: str) -> None:
    rows = [{"text": "a red circle"}, {"text": "a " * 20}, {"text": "a " * 6}]
    found = count_truncation(opened(tmp_path, "text", rows, json, 8, True))
    assert found is not None
    assert (found.what, found.texts, found.cut, found.pieces, found.lost, found.longest) == ("lines", 3, 1, 29, 14, 22)
    assert found.fraction == 14 / 29
    assert found.is_loud
    assert "48.3% of the text is never read" in str(found)
    whole = count_truncation(opened(tmp_path / "whole", "text", rows, json, 22, True))
    assert whole is not None
    assert (whole.cut, whole.lost, whole.is_loud) == (0, 0, False)
    assert str(whole) == "none of 3 lines is cut, the longest has 22 word pieces"


@pytest.mark.parametrize(("training", "texts", "cut"), [(True, 3, 1), (False, 2, 0)])
def test_training_reads_all_captions_and_validation_the_first(
    tmp_path: Path, json: str, training: bool, texts: int, cut: int
) -> None:
    rows = [{"captions": ["a red circle", "a " * 20]}, {"captions": ["a"]}]
    found = count_truncation(opened(tmp_path, "captions", rows, json, 8, training))
    assert found is not None
    assert (found.what, found.texts, found.cut) == ("captions", texts, cut)


def test_phrases_of_objects_are_counted(tmp_path: Path, json: str) -> None:
    objects = [{"phrase": phrase, "class": 1} for phrase in ("a", "a a a a")]
    rows = [{"objects": objects, "relations": []}, {"objects": [], "relations": []}]
    found = count_truncation(opened(tmp_path, "scene_graphs", rows, json, 5, False))
    assert found is not None
    assert (found.what, found.texts, found.cut, found.lost) == ("phrases", 2, 1, 1)


def test_a_large_data_set_is_sampled_evenly_and_always_alike(
    tmp_path: Path, json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opened(tmp_path, "text", [{"text": "a " * (10 if n % 2 else 2)} for n in range(400)], json, 7, True)
    assert len(source.dataset.groups) > 8
    monkeypatch.setattr(truncation, "MAX_GROUPS", 8)
    monkeypatch.setattr(truncation, "MAX_ROWS", 32)
    found = count_truncation(source)
    assert found is not None
    assert found == count_truncation(source)
    assert found.rows == found.texts <= 32
    assert found.of_rows == 400
    assert f"(in a sample of {found.rows} of 400 rows)" in str(found)
    monkeypatch.setattr(truncation, "MAX_CHARACTERS", 100)
    fewer = count_truncation(source)
    assert fewer is not None
    assert 0 < fewer.rows < found.rows


def test_images_without_texts_are_not_counted(world: SmallWorld) -> None:
    assert count_truncation(cast(Any, SimpleNamespace(samples=SimpleNamespace(kind="labelled_images")))) is None
