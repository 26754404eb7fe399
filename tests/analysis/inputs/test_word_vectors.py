"""Word vectors as a model: words, phrases, and what is not known."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from analysis.models import bert, word_pieces

from groundray.analysis.inputs import vector_files
from groundray.analysis.inputs.embedding import Embedder, Options
from groundray.analysis.inputs.lexicon import KnownTexts
from groundray.analysis.inputs.model_loading import load_text_model
from groundray.analysis.inputs.vector_files import write_vectors
from groundray.analysis.inputs.word_vectors import WordVectors
from groundray.model.two_towers import is_two_towers

WORDS = {
    "horse": [2, 0],
    "striped": [0, 4],
    "Paris": [1, 1],
    "may": [3, 3],
    "May": [5, 5],
    "ice": [8, 0],
    "cream": [0, 8],
    "ice_cream": [7, 1],
    "c++": [9, 9],
    "c": [1, 9],
    "dog's": [6, 2],
    ". . .": [4, 2],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [f"{word} {' '.join(map(str, vector))}" for word, vector in WORDS.items()]
    (tmp_path / "glove.txt").write_text("\n".join(lines))
    return tmp_path / "glove.txt"


@pytest.mark.parametrize(
    ("text", "vector"),
    [
        ("horse", [2, 0]),
        ("Horse", [2, 0]),
        ("HORSE", [2, 0]),
        ("Paris", [1, 1]),
        ("paris", None),  # as it is written, then in lower case: no other case is guessed
        ("may", [3, 3]),
        ("May", [5, 5]),
        ("MAY", [3, 3]),
        ("striped horse", [1, 2]),
        ("  striped   horse ", [1, 2]),
        ("horse horse striped", [4 / 3, 4 / 3]),  # a word counts as often as it occurs
        ("striped giraffe", None),
        ("ice cream", [7, 1]),  # as a whole
        ("Ice Cream", [7, 1]),
        ("cream ice", [4, 4]),
        ("the ice cream", None),
        ("Horse, striped!", [1, 2]),
        ("horse - striped", [1, 2]),
        ("“horse”", [2, 0]),
        ("c++", [9, 9]),
        ("C++ horse", [5.5, 4.5]),
        ("c#", None),  # another word than c
        ("dog's", [6, 2]),
        (". . .", [4, 2]),
        ("...", None),
        ("", None),
        (" ", None),
    ],
)
def test_a_text_is_looked_up_whole_and_then_by_its_words(file: Path, text: str, vector: list[float] | None) -> None:
    model = WordVectors(file)
    assert model.known([text]).tolist() == [vector is not None]
    if vector:
        found = model.embed([text])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [vector], rtol=1e-6)
    else:
        with pytest.raises(ValueError, match=r"glove\.txt: expected texts of words that the file has, got others for "):
            model.embed([text])


def test_every_format_gives_the_same_vectors(file: Path, tmp_path: Path) -> None:
    texts = ["striped horse", "May", "ice cream"]
    expected = WordVectors(file).embed(texts)
    (tmp_path / "glove.txt.gz").write_bytes(gzip.compress(file.read_bytes()))
    (tmp_path / "fasttext.vec").write_text(f"{len(WORDS)} 2\n{file.read_text()}\n")
    write_vectors(tmp_path / "made" / "vectors.parquet", list(WORDS), np.array(list(WORDS.values()), np.float32), {})
    places = [tmp_path / "glove.txt.gz", tmp_path / "fasttext.vec", f"file://{file}"]
    for place in (*places, tmp_path / "made", tmp_path / "made" / "vectors.parquet"):
        assert np.array_equal(load_text_model(place).embed(texts), expected)


def test_the_file_is_read_once_and_only_words_of_the_texts_are_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = vector_files.read_vectors

    def counted(*arguments: object) -> object:
        found = read(*arguments)
        reads.append(len(found.words))
        return found

    monkeypatch.setattr(vector_files, "read_vectors", counted)
    model = WordVectors(file)
    model.known(["striped horse", "May", "giraffe"])
    model.embed(["May", "striped horse"])
    assert model.notes == ()
    assert reads == [4]  # striped, horse, May and may
    assert model.embed(["ice", "May"]).tolist() == [[8, 0], [5, 5]]
    assert reads == [4, 5]


def test_what_is_left_out_or_not_used_is_noted(tmp_path: Path) -> None:
    (tmp_path / "odd.txt").write_bytes(b"horse 1 2\nhorse 3 4\nbear nan 1\ncaf\xe9 1 1\n")
    options = Options(templates=("a photo of a {}",), layer=2)
    model = load_text_model(tmp_path / "odd.txt", options)
    assert model.known(["horse", "bear"]).tolist() == [True, False]
    assert model.notes == (
        "1 words that are not UTF-8 left out, the first in line 4",
        "1 repeated words left out, the first in line 2",
        "1 words with numbers that are not finite left out, the first in line 3",
        "--layer, --template: not used, a word has one vector",
    )
    assert model.embed(["horse"]).tolist() == [[1, 2]]


def test_word_vectors_and_a_language_model_share_their_words(file: Path) -> None:
    models = {"bert": Embedder("bert", bert(), word_pieces()), "glove": WordVectors(file)}
    texts = ["striped horse", "zebra", "May", "horse", "striped bear"]
    lexicon, _ = KnownTexts.of(models, texts).among(texts, 0.0)
    assert list(lexicon.row_of) == ["striped horse", "horse"]
    assert lexicon.unknown == {"bert": {"May"}, "glove": {"zebra", "striped bear"}}
    assert lexicon.vectors["glove"].tolist() == [[1, 2], [2, 0]]
    assert lexicon.select(["zebra", "horse"]).left_out == {"words out of vocabulary (glove)": 1}


def test_a_place_without_a_model_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "glov.txt", tmp_path / "glov", (tmp_path / "glov.txt").as_uri(), "./glov", "glov.txt"):
        with pytest.raises(
            FileNotFoundError, match=r"a language model or a file of word vectors at .*glov.*, found nothing"
        ):
            load_text_model(place)
        assert not is_two_towers(str(place))
    (tmp_path / "glove.txt").write_text("a 1\n")
    with pytest.raises(ValueError, match="at least one text to embed, got none"):
        WordVectors(tmp_path / "glove.txt").embed([])
