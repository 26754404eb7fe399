"""What an analysis reads of the norms, before any vector is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.jobs import ANALYSES
from groundray.analysis.request import AnalysisRequest


def request(folder: Path, **files: str) -> AnalysisRequest:
    for name, content in files.items():
        file = folder / "similarity" / name.replace("_", ".")
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    return AnalysisRequest(norms=Norms.at(str(folder)))


def test_a_file_of_word_pairs_that_cannot_be_read_spoils_only_itself(tmp_path: Path) -> None:
    job = ANALYSES["similarity"](request(tmp_path, good_txt="sun moon 3\ncar bus NA\n", bad_txt="sun\tmoon\tstar\t1\n"))
    (source,) = job.sources
    assert (source.rows, source.used, source.left_out) == (2, 1, {"pairs without a score": 1})
    (note,) = job.notes
    assert note.startswith(f"word pairs not read: {tmp_path}/similarity/bad.txt line 1: expected two columns of words")
    assert job.texts == ("sun", "moon")


def test_word_pairs_of_which_none_can_be_read_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bad\.txt line 1: expected two columns of words"):
        ANALYSES["similarity"](request(tmp_path, bad_txt="sun\tmoon\tstar\t1\n"))


def test_a_given_file_of_word_pairs_must_be_readable(tmp_path: Path) -> None:
    found = request(tmp_path, good_txt="sun moon 3\n", bad_txt="sun\tmoon\tstar\t1\n")
    assert found.norms is not None
    given = AnalysisRequest(
        norms=found.norms.with_files(pairs=[f"{tmp_path}/similarity/{n}.txt" for n in ("good", "bad")])
    )
    with pytest.raises(ValueError, match=r"bad\.txt line 1"):
        ANALYSES["similarity"](given)


def test_a_further_set_of_categories_that_cannot_be_read_spoils_only_itself(tmp_path: Path) -> None:
    (tmp_path / "category_sets").mkdir()
    table = "category,word\nround,moon\nround,ball\nlong,road\nlong,rope\n"
    for name in ("categories", "category_sets/looks"):
        (tmp_path / f"{name}.csv").write_text(table)
    (tmp_path / "category_sets" / "bad.csv").write_text("kind,word\nround,moon\n")
    job = ANALYSES["categories"](AnalysisRequest(norms=Norms.at(str(tmp_path))))
    assert [source.url for source in job.sources] == [
        f"{tmp_path}/categories.csv",
        f"{tmp_path}/category_sets/looks.csv",
    ]
    (note,) = job.notes
    assert note.startswith(f"set of categories not read: {tmp_path}/category_sets/bad.csv")
    words = ("moon", "ball", "road", "rope")
    vectors = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    found = job.analyse(Lexicon({word: row for row, word in enumerate(words)}, {"one": vectors}, {}))
    values = {measure.key: measure.values["one"].value for measure in found.measures}
    assert values["looks/silhouette/rest/median"] == values["silhouette/rest/median"] > 0.9
    assert not [measure for measure in found.measures if measure.key.startswith("looks/") and measure.published]
