"""What computes an index, position features or usual matches is named in its key: a change of it makes them anew."""

from __future__ import annotations

from pathlib import Path

import pytest
from called_code import Code, called, encoding, named_code, unnamed
from search_fixtures import SearchPaths

from groundray.image_search import calibration, index, positions
from groundray.image_search.checkpoint import open_matcher, open_towers
from groundray.image_search.index import IndexEncoder, index_spec, open_pool
from groundray.image_search.positions import PositionEncoder, positions_spec
from groundray.image_search.service import Service
from groundray.model.pooling import counted_tokens


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Code:
    """The code of the keys that are made."""
    return named_code(monkeypatch, index, positions, calibration)


def test_an_index(place: SearchPaths, tmp_path: Path, named: Code) -> None:
    towers = open_towers(place.checkpoint)
    spec = index_spec(towers, open_pool(place.images), str(tmp_path))
    assert not unnamed(called(encoding(spec, IndexEncoder(towers, place.images))), named)


def test_position_features(place: SearchPaths, tmp_path: Path, named: Code) -> None:
    matcher = open_matcher(place.checkpoint, open_towers(place.checkpoint))
    assert matcher is not None
    spec = positions_spec(matcher, open_pool(place.images), str(tmp_path))
    assert not unnamed(called(encoding(spec, PositionEncoder(matcher, place.images))), named)


def test_usual_matches(place: SearchPaths, service: Service, named: Code) -> None:
    towers = open_towers(place.checkpoint)
    matcher = open_matcher(place.checkpoint, towers)
    assert matcher is not None
    calibration.Calibration.open(matcher, towers, service.search.index, print)
    backend, images = towers.backend, open_pool(place.images)
    found = called(lambda: calibration.measure(matcher, backend, images))
    # counted_tokens says which words count in the similarity, which is not measured
    assert not unnamed(found, [*named, calibration.Calibration, counted_tokens])
