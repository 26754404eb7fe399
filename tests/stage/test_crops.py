"""The crop of a stage's images in training and in validation."""

from __future__ import annotations

import pytest
from conftest import SmallWorld

from groundray import config
from groundray.data.image_inputs import CentreCrop
from groundray.training import preflight


@pytest.mark.parametrize("name", ["grounding", "relational"])
def test_validation_has_a_crop_of_its_own(world: SmallWorld, name: str) -> None:
    def crops(*words: str) -> list[CentreCrop]:
        settings = config.load("demo", world.settings(*words, stages=name))
        (stage,) = preflight.check(settings).stages
        return [source.samples.image_inputs for source in (stage.train, stage.val)]  # type: ignore[attr-defined]

    assert crops() == [CentreCrop(112, 112)] * 2
    assert crops(f"--{name}.resize=120") == [CentreCrop(120, 112)] * 2
    assert crops(f"--{name}.resize=120", f"--{name}.val_resize=128") == [CentreCrop(120, 112), CentreCrop(128, 112)]
    assert crops(f"--{name}.val_resize=128") == [CentreCrop(112, 112), CentreCrop(128, 112)]
