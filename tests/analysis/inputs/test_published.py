"""The paper's numbers: which were printed and which read off figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundray.analysis.inputs import published
from groundray.analysis.inputs.catalog import Norms
from groundray.analysis.inputs.lexicon import Lexicon
from groundray.analysis.inputs.norm_tables import read_categories
from groundray.analysis.jobs import ANALYSES
from groundray.analysis.request import AnalysisRequest
from groundray.analysis.result import ReadOff

SEMCAT = Path(__file__).parents[4] / "shared" / "data" / "norms"


def test_each_number_is_printed_or_read_off() -> None:
    """Medians of F1 and quartiles of silhouettes stand in figures alone."""
    assert list(published.of("axes", "pc1/words/pearson").values()) == [0.1040, 0.6615, 0.6948]
    for analysis, read_off in (("axes", False), ("norms", True), ("categories", True)):
        for key in published.keys(analysis):
            found = published.of(analysis, key)
            assert list(found) == list(published.MODELS)
            assert [isinstance(one, ReadOff) for one in found.values()] == [read_off] * 3
    ranks = [one for of_phrase in published.PHRASES.values() for one in of_phrase]
    assert not any(isinstance(number, ReadOff) for one in ranks for number in one)


@pytest.mark.skipif(not SEMCAT.exists(), reason=f"SemCat's categories are not there: {SEMCAT}")
def test_the_papers_categories_are_known_by_what_they_hold() -> None:
    rows = read_categories(SEMCAT / "semcat100.csv")
    words, categories = list(rows.word), list(rows.category)
    assert published.is_semcat(words, categories)
    assert published.is_semcat(words[::-1], categories[::-1])
    assert published.is_semcat(*zip(*sorted({*zip(words, categories, strict=True)}), strict=True))  # each row once
    assert not published.is_semcat(words[1:], categories[1:])
    assert not published.is_semcat([*words[:-1], "another"], categories)
    assert not published.is_semcat(words, ["another", *categories[1:]])
    whole = read_categories(SEMCAT / "semcat")  # 110 categories, of which the paper takes 100
    assert not published.is_semcat(whole.word, whole.category)


@pytest.mark.thorough
@pytest.mark.skipif(not SEMCAT.exists(), reason=f"SemCat's categories are not there: {SEMCAT}")
@pytest.mark.parametrize("own", [True, False])
def test_published_silhouettes_stand_beside_the_papers_categories_alone(tmp_path: Path, own: bool) -> None:
    """A file of other words has none, even if it is named after SemCat."""
    lines = (SEMCAT / "semcat100.csv").read_text().splitlines()
    (tmp_path / "semcat100.csv").write_text("\n".join(lines if own else lines[:-1]))
    job = ANALYSES["categories"](AnalysisRequest(norms=Norms.at(str(tmp_path))))
    words = list(dict.fromkeys(job.texts))
    vectors = np.random.default_rng(0).normal(size=(len(words), 3))
    found = job.analyse(Lexicon({word: row for row, word in enumerate(words)}, {"m": vectors}, {"m": frozenset()}))
    assert [bool(one.published) for one in found.measures] == ([own] * 3 + [False] * 3)
