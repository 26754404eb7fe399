"""Kept vectors: the same bits again, and made anew where a file cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from analysis.models import bert, word_pieces, write

from groundray.analysis.inputs.embedding import Embedder, Options
from groundray.analysis.inputs.text_model import TextModel, Vectors
from groundray.analysis.inputs.vector_cache import Cache
from groundray.analysis.inputs.word_vectors import WordVectors

TEXTS = ("zebra", "striped horse", "strawberry")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder.load(write(tmp_path_factory.mktemp("stream"), bert()))


def never(model: TextModel, texts: Sequence[str]) -> Vectors:
    raise AssertionError(f"{len(texts)} vectors are made")


def test_vectors_are_made_once(embedder: Embedder, tmp_path: Path) -> None:
    notes: list[str] = []
    cache = Cache.at(tmp_path, notes.append)
    made = cache.embed(embedder, TEXTS)
    assert np.array_equal(made, embedder.embed(TEXTS))
    again = cache.embed(embedder, TEXTS, never)
    assert again.dtype == np.float32
    assert np.array_equal(again, made)
    assert notes == []


def test_cache_key_covers_all_that_vectors_depend_on(embedder: Embedder, tmp_path: Path) -> None:
    cache = Cache.at(tmp_path, pytest.fail)
    cache.embed(embedder, TEXTS)
    tokenizer = word_pieces()
    others = [
        (embedder, TEXTS[:2]),
        (embedder, TEXTS[::-1]),
        (embedder, ("zebra striped", "horse", "strawberry")),
        (Embedder("layer", bert(), tokenizer, Options(layer=1)), TEXTS),
        (Embedder("weights", bert(seed=1), tokenizer), TEXTS),
    ]
    for other, texts in others:
        with pytest.raises(AssertionError, match="vectors are made"):
            cache.embed(other, texts, never)
        assert np.array_equal(cache.embed(other, texts), other.embed(texts))
    assert len(list((tmp_path / "embeddings").iterdir())) == 1 + len(others)


def test_word_vectors_are_kept_by_the_content_of_their_file(tmp_path: Path) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("zebra 1 2\nhorse 3 4\n")
    cache = Cache.at(tmp_path / "cache", pytest.fail)
    assert cache.embed(WordVectors(file), ["horse"]).tolist() == [[3, 4]]
    file.rename(tmp_path / "same.txt")
    assert cache.embed(WordVectors(tmp_path / "same.txt"), ["horse"], never).tolist() == [[3, 4]]
    file.write_text("zebra 1 2\nhorse 3 5\n")
    assert cache.embed(WordVectors(file), ["horse"]).tolist() == [[3, 5]]


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another's"])
def test_a_damaged_file_is_made_anew_with_a_note(embedder: Embedder, tmp_path: Path, damage: str) -> None:
    notes: list[str] = []
    cache = Cache.at(tmp_path, notes.append)
    made = cache.embed(embedder, TEXTS)
    (file,) = (tmp_path / "embeddings").iterdir()
    content = file.read_bytes()
    cache.embed(embedder, TEXTS[:2])
    (other,) = {*(tmp_path / "embeddings").iterdir()} - {file}
    file.write_bytes(
        {
            "cut": content[:-5],
            "flipped": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
            "emptied": b"",
            "another's": other.read_bytes(),
        }[damage]
    )
    assert np.array_equal(cache.embed(embedder, TEXTS), made)
    (note,) = notes
    assert note.startswith(f"{file} is damaged (")
    assert note.endswith("computed again")
    assert file.read_bytes() == content
    assert np.array_equal(cache.embed(embedder, TEXTS, never), made)


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_time(embedder: Embedder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes: list[str] = []
    made = Cache.at(tmp_path / "file", notes.append).embed(embedder, TEXTS)
    assert np.array_equal(made, embedder.embed(TEXTS))
    assert "--cache" in notes[-1]


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    assert str(Cache.at(None, pytest.fail).folder) == f"{tmp_path}/mine/groundray/embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(Cache.at(None, pytest.fail).folder) == f"{tmp_path}/home/.cache/groundray/embeddings"
