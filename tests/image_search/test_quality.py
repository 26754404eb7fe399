"""Quality of search on the embedded world, with the model of `make demo`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from groundray import prepare
from groundray.data.scenes.scene import Scene, make_scene
from groundray.data.scenes.vocabulary import COLOURS, KINDS, SHAPES
from groundray.data.schema import Dataset
from groundray.image_search.query import Search

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runs" / "demo" / "model"
K = 10
# Of the demo's 200 held-out scenes too few hold both a noun and a colour: no search could find ten of each.
POOL = 2000


def missed(measured: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"the demo does not reach it: {measured}")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL / "groundray.json").is_file(), reason=f"no demo model at {MODEL}: run `make demo`"),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out scenes, the demo's own and more of them."""
    folder = tmp_path_factory.mktemp("pool")
    assert prepare.main(["scenes", "--num-scenes", "100", "--num-val", str(POOL), "--out", str(folder)]) == 0
    return folder / "captions" / "val"


@pytest.fixture(scope="module")
def search(pool: Path) -> Search:
    return Search.open(str(MODEL), str(pool), str(pool.parent / "index"))


@pytest.fixture(scope="module")
def scenes(pool: Path) -> dict[str, Scene]:
    """Return each scene of the pool, by id."""
    made = Dataset.open(str(pool)).source
    first = made["num_scenes"]
    return {str(first + i): make_scene(made["seed"], "val", i, first + i) for i in range(made["num_val"])}


def nouns(scene: Scene) -> set[str]:
    """Return the words that name an object. A zebrine is also called a circle."""
    return {name for item in scene.objects for name in (item.noun, item.shape)}


def colours(scene: Scene) -> set[str]:
    return {item.colour for item in scene.objects}


def test_a_named_object_is_in_the_images_that_are_found(search: Search, scenes: dict[str, Scene]) -> None:
    found = []
    for noun in (*SHAPES, *(kind.noun for kind in KINDS)):
        assert sum(noun in nouns(scene) for scene in scenes.values()) >= K
        found += [noun in nouns(scenes[hit.id]) for hit in search.find(text=f"a {noun}", k=K)]
    assert np.mean(found) >= 0.9


@missed(".39 of .7; at alpha .5 .66 show the object of the picture and .62 the colour")
def test_the_object_of_a_picture_and_another_colour_are_found_together(
    search: Search, scenes: dict[str, Scene]
) -> None:
    found = []
    for id, scene in scenes.items():
        if len(scene.objects) > 1:
            continue
        (item,) = scene.objects
        for colour in COLOURS:
            if colour != item.colour:
                hits = [hit.id for hit in search.find(colour, id, alpha=0.5, k=K + 1) if hit.id != id][:K]
                found += [item.noun in nouns(scenes[hit]) and colour in colours(scenes[hit]) for hit in hits]
    assert np.mean(found) >= 0.7
