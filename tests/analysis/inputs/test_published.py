"""The paper's numbers: which were printed and which read off figures."""

from __future__ import annotations

from groundray.analysis.inputs import published
from groundray.analysis.result import ReadOff


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
