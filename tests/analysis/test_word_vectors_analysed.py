"""Files of word vectors as rows of the tables, from the command line."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from analysis.models import WORDS, bert, write

from groundray import analyse, embed
from groundray.analysis.inputs.model_loading import load_text_model
from groundray.analysis.inputs.vector_files import write_vectors
from groundray.analysis.inputs.word_pairs import read_pairs

GIVEN = Path(__file__).parents[3] / "shared" / "data"
# gensim 4.4's `KeyedVectors.evaluate_word_pairs` on these files: rank correlation, and pairs of words that it has
GENSIM = {
    "EN-RG-65": (0.690737, 65),
    "EN-SIMLEX-999": (0.296411, 996),
    "EN-SimVerb-3500": (0.177963, 3_469),
    "EN-WS-353-REL": (0.495544, 252),
    "EN-WS-353-SIM": (0.603521, 203),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(tmp_path: Path, *words: str) -> dict[str, Any]:
    assert analyse.main([*words, "--json", str(tmp_path / "found.json")]) == 0
    return json.loads((tmp_path / "found.json").read_text())


@pytest.mark.skipif(not GIVEN.exists(), reason=f"there are no published vectors and word pairs at {GIVEN}")
def test_published_vectors_correlate_with_people_as_gensim_has_it(tmp_path: Path) -> None:
    place = GIVEN / "vectors" / "glove.6B.100d.txt.gz"
    glove = load_text_model(place)
    files = {name: str(GIVEN / "norms" / "similarity" / f"{name}.txt") for name in GENSIM}
    sets = {name: read_pairs(file) for name, file in files.items()}
    glove.known([word for pairs in sets.values() for word in (*pairs.first, *pairs.second)])  # reads the file once
    for name, (expected, items) in GENSIM.items():
        pairs = sets[name]
        both = glove.known(pairs.first) & glove.known(pairs.second)
        assert both.sum() == items, name
        one, other = (glove.embed(np.array(words)[both].tolist()) for words in (pairs.first, pairs.second))
        cosines = np.sum(one * other, axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert scipy.stats.spearmanr(cosines, pairs.score[both]).statistic == pytest.approx(expected, abs=1e-5), name
    # the same by the command; intervals for all five sets take 10 s
    few = ("EN-SIMLEX-999", "EN-WS-353-REL")
    words = ["--model", f"glove={place}", *(word for name in few for word in ("--pairs", files[name]))]
    measures = run(tmp_path, "similarity", *words)["analyses"]["similarity"]["measures"]
    for name in few:
        found = measures[f"{name}/spearman"]
        assert (found["values"]["glove"]["value"], found["items"]) == pytest.approx(GENSIM[name], abs=1e-5)


def test_word_vectors_are_rows_beside_language_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws = np.random.default_rng(0)
    words = [word for word in WORDS if word not in (",", "zebra")]
    vectors = draws.normal(size=(len(words), 4)).astype(np.float32)
    lines = [f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, vectors.tolist(), strict=True)]
    (tmp_path / "glove.txt.gz").write_bytes(gzip.compress("".join([*lines, lines[0]]).encode()))
    write_vectors(tmp_path / "seen" / "vectors.parquet", words, vectors, {})
    write(tmp_path / "bert", bert())
    pairs = [(one, other, row * 7 % 10) for row, (one, other) in enumerate(itertools.pairwise(words))]
    pairs += [("red fruit", "black bear", 3), ("Red", "FRUIT", 4), ("zebra", "horse", 9)]
    (tmp_path / "pairs.tsv").write_text("".join(f"{one}\t{other}\t{score}\n" for one, other, score in pairs))
    models = {"bert": tmp_path / "bert", "glove": tmp_path / "glove.txt.gz", "seen": tmp_path / "seen"}
    options = [word for name, place in models.items() for word in ("--model", f"{name}={place}")]
    options += ["--template", "a photo of a {}", "--layer", "1", "--pairs", str(tmp_path / "pairs.tsv")]
    found = run(tmp_path, "similarity", *options)
    assert list(found["models"]) == ["bert", "glove", "seen"]
    measure = found["analyses"]["similarity"]["measures"]["pairs/spearman"]
    assert measure["items"] == len(pairs) - 1
    assert measure["values"]["glove"] == measure["values"]["seen"] != measure["values"]["bert"]
    left_out = found["analyses"]["similarity"]["left_out"]
    assert left_out["words out of vocabulary (glove)"] == left_out["words out of vocabulary (seen)"] == 1
    notes = [note for note in found["notes"] if "control" not in note]
    assert notes == [
        "glove: 1 repeated words left out, the first in line 13",
        "glove: --layer, --template: not used, a word has one vector",
        "seen: --layer, --template: not used, a word has one vector",
    ]
    assert run(tmp_path, "similarity", *options) == found  # from the cache
    assert np.array_equal(embed(tmp_path / "glove.txt.gz", ["red"]), vectors[[words.index("red")]])


def test_a_broken_file_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "glove.txt").write_text("red 1 2 3\nblue 1 2\ngreen 1 2 3\n")
    (tmp_path / "pairs.tsv").write_text("red\tblue\t1\nred\tgreen\t2\ngreen\tblue\t3\n")
    words = ["--model", f"glove={tmp_path / 'glove.txt'}", "--pairs", str(tmp_path / "pairs.tsv")]
    assert analyse.main(["similarity", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert "glove.txt line 2: expected a word and 3 numbers as in most lines, got 2 after 'blue 1 2'" in error
    assert "Traceback" not in error
