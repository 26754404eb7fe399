"""Quality of search on the embedded world, with the model of `make demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundray import prepare
from groundray.data.scenes.scene import Scene, make_scene
from groundray.data.scenes.vocabulary import COLOURS, KINDS, SHAPES
from groundray.data.schema import Dataset
from groundray.image_search.calibration import Calibration, best_matches
from groundray.image_search.explain import GroundingMatcher
from groundray.image_search.query import Search

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "runs" / "demo" / "model"
K = 10
# Of the demo's 200 held-out scenes too few hold both a noun and a colour: no search could find ten of each.
POOL = 2000


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL / "groundray.json").is_file(), reason=f"no demo model at {MODEL}: run `make demo`"),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out scenes, the demo's own and more of them. The weights of `rerank.py` were chosen on them."""
    return draw(tmp_path_factory.mktemp("pool"), seed=0)


@pytest.fixture(scope="module")
def search(pool: Path) -> Search:
    return open_search(pool)


@pytest.fixture(scope="module")
def scenes(pool: Path) -> dict[str, Scene]:
    return scenes_of(pool)


@pytest.fixture(scope="module")
def other_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out scenes on which nothing was chosen."""
    return draw(tmp_path_factory.mktemp("other"), seed=1)


def draw(folder: Path, seed: int) -> Path:
    words = ["--num-scenes", "100", "--num-val", str(POOL), "--seed", str(seed), "--out", str(folder)]
    assert prepare.main(["scenes", *words]) == 0
    return folder / "captions" / "val"


def open_search(pool: Path) -> Search:
    return Search.open(str(MODEL), str(pool), str(pool.parent / "index"))


def scenes_of(pool: Path) -> dict[str, Scene]:
    """Return each scene of a pool, by id."""
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
    assert np.mean(found) >= 0.95


def test_the_object_of_a_picture_and_another_colour_are_found_together(other_pool: Path) -> None:
    """Measured: .739; .738 on the scenes on which the description's weights were chosen."""
    search, scenes, found = open_search(other_pool), scenes_of(other_pool), []
    for id, scene in scenes.items():
        if len(scene.objects) > 1:
            continue
        (item,) = scene.objects
        for colour in COLOURS:
            if colour != item.colour:
                hits = [hit.id for hit in search.find(colour, id, alpha=0.5, k=K + 1) if hit.id != id][:K]
                found += [item.noun in nouns(scenes[hit]) and colour in colours(scenes[hit]) for hit in hits]
    assert np.mean(found) >= 0.7


def shares(search: Search, scenes: dict[str, Scene], wanted: bool, **query: Any) -> tuple[float, float, int]:
    """Return the share of results that show a noun, and, as wanted, a colour or nothing of it; the share of those that
    show the noun; and of how many pairs of noun and colour, those with at least K such scenes.

    Args:
        query: the fields of a search, in which {noun} and {colour} stand for their words.
    """
    both, named, pairs = 0.0, 0.0, 0
    for noun in (*SHAPES, *(kind.noun for kind in KINDS)):
        for colour in COLOURS:
            right = {
                id for id, scene in scenes.items() if noun in nouns(scene) and (colour in colours(scene)) == wanted
            }
            if len(right) < K:
                continue
            filled = {
                name: tuple(each.format(noun=noun, colour=colour) for each in value)
                if isinstance(value, tuple)
                else value.format(noun=noun, colour=colour)
                for name, value in query.items()
            }
            hits = [hit.id for hit in search.find(k=K, **filled)]
            both += np.mean([id in right for id in hits])
            named += np.mean([noun in nouns(scenes[id]) for id in hits])
            pairs += 1
    return both / pairs, named / pairs, pairs


def test_a_colour_is_left_out(search: Search, scenes: dict[str, Scene]) -> None:
    """Measured: .95 show the noun and nothing of the colour, .80 without `without`; by vectors alone .84 and .74. Of
    those left, .95 show the noun; by vectors alone .89."""
    plain, _, pairs = shares(search, scenes, False, text="a {noun}")
    left_out, named, _ = shares(search, scenes, False, text="a {noun}", without="{colour}")
    assert pairs > 100
    assert left_out >= max(0.8, plain + 0.05)
    assert named >= 0.85


def test_a_noun_and_a_colour_are_found_together(search: Search, scenes: dict[str, Scene]) -> None:
    """Measured: .80 show both for two texts, .67 for the phrase of both words, .18 for the noun alone; by vectors alone
    .60, .54 and .20."""
    together, _, pairs = shares(search, scenes, True, text=("a {noun}", "{colour}"))
    phrase, *_ = shares(search, scenes, True, text="a {colour} {noun}")
    alone, *_ = shares(search, scenes, True, text="a {noun}")
    assert pairs > 100
    assert together >= max(0.45, 2 * alone)
    assert together >= phrase


def test_words_are_said_to_be_present_and_absent_rightly(search: Search, scenes: dict[str, Scene]) -> None:
    """Nouns and colours, one word each, on 400 scenes of the pool, of which 256 others calibrate at most.

    Measured on 244 scenes beside 256 that calibrate: of words in a scene .05 are said to be absent and .62 present; of
    words that are not, .62 and .06. The rest is unclear. The best single threshold errs on one word of five.
    """
    matcher = GroundingMatcher.load(str(MODEL))
    assert matcher is not None
    calibration = Calibration.open(matcher, search.towers, search.index, print)
    words = [*SHAPES, *(kind.noun for kind in KINDS), *COLOURS]
    features = np.concatenate([matcher.word_features(word).features for word in words])
    has, said, dark = [], [], []
    for row in range(400):
        scene = scenes[search.index.ids[row]]
        positions = matcher.position_features(matcher.preprocess(search.index.pictures[row])[None])
        (scores,) = best_matches(positions, features)
        has.append([word in nouns(scene) | colours(scene) for word in words])
        said.append([one.presence for one in calibration.judge(features, scores)])
        dark.append(scores <= calibration.low)
    there, told, unlit = np.array(has), np.array(said), np.array(dark)
    assert (told[there] == "absent").mean() <= 0.12
    assert (told[there] == "present").mean() >= 0.4
    assert (told[~there] == "absent").mean() >= 0.52
    assert (told[~there] == "present").mean() <= 0.09
    assert unlit[told == "absent"].mean() >= 0.97  # what is said to be absent stays dark
    assert unlit[there].mean() <= 0.4  # measured: .25
