"""Compositional sets: accuracies, Winoground's scores, areas and thresholds against loops; and the command."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from analysis.two_towers import write_two_towers
from conftest import SmallWorld
from sklearn.metrics import roc_auc_score

from groundray import analyse, config
from groundray.analysis.inputs.compositional_scores import SetScores
from groundray.analysis.inputs.compositional_sets import CompositionalSet, Item, Picture, Task
from groundray.analysis.measures.compositional import area, by_threshold, chosen, compositional, matched, threshold
from groundray.analysis.result import Analysis
from groundray.data.image_decoder import UnusableImage
from groundray.training import preflight, progression
from groundray.training.worker import InProcess


def made_set(task: Task, categories: str, captions: int, truth: str = "") -> CompositionalSet:
    """A set with a picture for each item, or two of `pairs`."""

    def read() -> bytes:
        raise AssertionError("scores are given")

    def item(number: int) -> Item:
        pictures = tuple(Picture(f"{number} {at}", read) for at in range(2 if task == "pairs" else 1))
        is_true = truth[number] == "t" if truth else True
        return Item(f"entry {number}", pictures, ("a",) * captions, categories[number], is_true)

    return CompositionalSet("made", task, tuple(map(item, range(len(categories)))))


def analysed(some: CompositionalSet, own: np.ndarray, blank: np.ndarray, others: np.ndarray) -> Analysis:
    return compositional([some], {"one": {"made": SetScores(own, blank, others)}}, {"one": "cosine"})


def values(made: Analysis) -> dict[str, float]:
    return {measure.key: measure.values["one"].value for measure in made.measures}


def test_a_choice_is_right_where_the_first_caption_scores_highest() -> None:
    S = np.array([[3.0, 1, 2], [2, 2, 1], [1, 0, np.nan], [1, 1, np.nan], [np.nan, 1, 2], [0, 1, 5]])
    assert chosen(S).tolist() == [1, 0, 1, 0, 0, 0]


def test_accuracies_are_over_entries_and_over_categories() -> None:
    generator = np.random.default_rng(0)
    own, blank, others = (generator.integers(0, 4, (9, 2)).astype(float) for _ in range(3))
    categories = "aaaaabbcc"
    made = analysed(made_set("choice", categories, 2), own[:, None], blank, others)
    found = values(made)
    for prefix, S in (("", own), ("blank_image/", blank), ("text_alone/", others)):
        right = [first > second for first, second in S]
        assert found[f"made/{prefix}accuracy"] == pytest.approx(np.mean(right))
        means = [np.mean([one for one, of in zip(right, categories, strict=True) if of == name]) for name in "abc"]
        assert found[f"made/{prefix}category_mean"] == pytest.approx(np.mean(means))
    overview, by_category = made.tables
    assert overview.rows[-1][2:] == (0.5,) * 6
    assert [row[:2] for row in by_category.rows] == [("a", 5), ("b", 2), ("c", 2)]


def test_chance_follows_the_number_of_captions() -> None:
    some = made_set("choice", "aa", 5)
    some = CompositionalSet("made", "choice", (some.items[0], Item("", some.items[1].images, ("a", "b"), "a")))
    own = np.ones((2, 1, 5))
    made = analysed(some, own, own[:, 0], own[:, 0])
    assert made.tables[0].rows[-1][2] == pytest.approx((1 / 5 + 1 / 2) / 2)
    assert values(made)["made/accuracy"] == 0


def test_winoground_scores_are_those_of_its_definition() -> None:
    """All orders of four scores: random ones have the published chance of 1/4, 1/4 and 1/6."""
    S = np.array([one for one in product(range(4), repeat=4) if len(set(one)) == 4], float).reshape(-1, 2, 2)
    found = matched(S)
    for row, (c0_i0, c1_i0, c0_i1, c1_i1) in enumerate(S.reshape(-1, 4)):  # as the paper's code names them
        text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        assert (found["text"][row], found["image"][row], found["group"][row]) == (text, image, text and image)
    assert [found[name].mean() for name in ("text", "image", "group")] == pytest.approx([1 / 4, 1 / 4, 1 / 6])


def test_winoground_gives_nothing_away_without_its_pictures() -> None:
    generator = np.random.default_rng(0)
    own = generator.normal(size=(12, 2, 2))
    found = values(analysed(made_set("pairs", "ab" * 6, 2), own, own[:, 0], own[:, 1]))
    assert found["made/text"] == matched(own)["text"].mean() > 0
    controls = [value for key, value in found.items() if "blank" in key or "alone" in key]
    assert controls == [0.0] * 6


@pytest.mark.parametrize("seed", range(3))
def test_areas_are_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = generator.random(50) < 0.4
    scores = np.round(generator.normal(size=50) + truth, 1)  # some are equal
    found = area(scores, truth)
    assert found.value == pytest.approx(float(roc_auc_score(truth, scores)))
    interval = found.with_interval()
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < found.value < interval.high
    without = np.array([roc_auc_score(np.delete(truth, row), np.delete(scores, row)) for row in range(50)])
    assert np.corrcoef(found.influence, without.mean() - without)[0, 1] > 0.99


def right_above(cut: float, scores: np.ndarray, truth: np.ndarray) -> int:
    return sum((score > cut) == one for score, one in zip(scores, truth, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_the_lowest_of_the_best(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores, truth = generator.integers(0, 6, 15).astype(float), generator.random(15) < 0.5
    cuts = [-np.inf, *sorted(set(scores))]
    assert threshold(scores, truth) == max(cuts, key=lambda cut: right_above(cut, scores, truth))


def test_a_threshold_is_chosen_on_other_folds() -> None:
    generator = np.random.default_rng(4)
    scores, truth = generator.integers(0, 6, 40).astype(float), generator.random(40) < 0.5
    fold = np.arange(40) // 2 % 5
    expected = []
    for score, one, own in zip(scores, truth, fold, strict=True):
        others = [row for row in range(40) if fold[row] != own]
        expected.append((score > threshold(scores[others], truth[others])) == one)
    assert by_threshold(scores, truth, fold).tolist() == expected


def test_true_and_false_captions() -> None:
    generator = np.random.default_rng(2)
    some = made_set("truth", "ab" * 10, 1, "tfft" * 5)
    own = np.array([item.is_true for item in some.items]) + generator.normal(size=20)
    made = analysed(some, own[:, None, None], np.ones((20, 1)), own[:, None])
    found = values(made)
    assert found["made/auc"] == pytest.approx(float(roc_auc_score([item.is_true for item in some.items], own)))
    assert found["made/blank_image/auc"] == 0.5
    assert found["made/text_alone/accuracy"] == found["made/accuracy"]
    assert made.tables[0].rows[-1][2:] == (0.5,) * 6  # half of the captions are true


def test_unusable_entries_are_counted_and_named() -> None:
    some = made_set("choice", "aaa", 2)
    own = np.array([[[2.0, 1.0]], [[np.nan, np.nan]], [[1.0, 2.0]]])
    scores = SetScores(own, own[:, 0], own[:, 0], {1: UnusableImage("missing", "there is no image x")}, unknown=2)
    made = compositional([some], {"one": {"made": scores}}, {"one": ""})
    assert made.measures[0].items == 2
    assert made.left_out == {
        "entries of made with a picture that is missing": 1,
        "captions of made with pieces that one does not know": 2,
    }
    assert made.tables[-1].rows == (("made", "entry 1", "there is no image x"),)
    bad = SetScores(own, own[:, 0], own[:, 0], dict.fromkeys(range(3), UnusableImage("missing", "no image x")))
    with pytest.raises(ValueError, match="made: expected entries with a picture, got none: entry 0: no image x"):
        compositional([some], {"one": {"made": bad}}, {"one": ""})


@pytest.fixture(scope="module")
def model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = tmp_path_factory.mktemp("composed")
    words = world.settings(f"--run.storage={storage}", "--grounding.epochs=1", stages="grounding")
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(lambda _: None))
    return str(storage / "demo" / "model")


@pytest.mark.thorough
def test_the_command_measures_several_sets(
    model: str, world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = world.source / "coco" / "val"
    names = sorted(file.name for file in images.iterdir())[:6]
    entries = {
        str(number): {"filename": name, "caption": "a red circle", "negative_caption": "a blue circle"}
        for number, name in enumerate([*names, "lost.png"])
    }
    (tmp_path / "swap_att.json").write_text(json.dumps(entries))
    told = [
        {"image": name, "caption": f"the circle is {where} the star", "label": number % 2, "relation": where}
        for number, (name, where) in enumerate(product(names, ("above", "below")))
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    clip = write_two_towers(tmp_path / "clip", words=("red", "blue", "circle", "a"))
    words = ["compositional", "--checkpoint", model, "--model", f"clip={clip}", "--images", str(images)]
    words += ["--set", f"sugarcrepe={tmp_path}", "--set", f"vsr={tmp_path}"]
    assert analyse.main([*words, "--batch-size", "4", "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["analyses"]["compositional"]
    assert found["measures"]["sugarcrepe/accuracy"]["items"] == 6
    assert list(found["measures"]["sugarcrepe/accuracy"]["values"]) == ["grounded", "clip"]
    assert found["left_out"] == {
        "entries of sugarcrepe with a picture that is missing": 1,
        "captions of vsr with pieces that clip does not know": 12,
    }
    assert {"vsr/auc", "vsr/accuracy", "vsr/blank_image/auc", "vsr/text_alone/auc"} <= found["measures"].keys()
    assert "lost.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --set NAME=FOLDER with a name of sugarcrepe, aro, winoground, vsr"),
        (["--set", "crepe=."], "a name of sugarcrepe, aro, winoground, vsr"),
        (["--set", "vsr=/nowhere"], "--set vsr: expected test.jsonl"),
    ],
)
def test_sets_that_cannot_be_read_are_refused(
    model: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert analyse.main(["compositional", "--checkpoint", model, *words]) == 2
    assert message in capsys.readouterr().err
