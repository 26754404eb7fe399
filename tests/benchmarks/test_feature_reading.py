"""The benchmark of trunk features: every contender reads all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SmallWorld

from groundray.benchmarks import feature_reading
from groundray.benchmarks.input_pipeline import training_source
from groundray.benchmarks.session import Session
from groundray.data.schema import Dataset


def test_every_contender_is_measured(world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_reading, "SHAPE", (2, 3, 3))
    source = training_source(Dataset.open(str(world.shards / "captions" / "train"), "captions"), 8)
    captions, features = feature_reading.write_features(tmp_path, parts=2, shape=(2, 3, 3))
    featured = feature_reading.with_features(source, captions, features, 8)
    session = Session(repeats=1)
    session.plan([feature_reading.CASE])
    rows = feature_reading.measure(featured, 2, session, {"batch": 8})
    assert [row.contender for row in rows] == [
        feature_reading.PLAIN,
        feature_reading.VERIFIED,
        feature_reading.FIRST,
        feature_reading.LATER,
    ]
    assert all(row.figures["bytes_per_second"] > 0 and row.figures["cpu_per_gb"] > 0 for row in rows)
    assert rows[0].figures["rate_of_plain"] == 1
