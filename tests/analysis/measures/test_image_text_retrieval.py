"""Retrieval by the published protocol, against ranks read off the whole similarity matrix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from analysis.known_encoder import Known, Vectors
from analysis.two_towers import write_two_towers
from conftest import SmallWorld

from groundray import analyse, config
from groundray.analysis.exported import batches_of, reading_settings
from groundray.analysis.inputs.caption_pool import CaptionedImages, Pool
from groundray.analysis.measures.image_text_retrieval import (
    Retrieval,
    analysis,
    published,
    random_ranks,
    retrieval,
    tables,
)
from groundray.analysis.systems import measure_retrieval
from groundray.model import export
from groundray.stage.contrastive import captioned_images, encode_for_grounding, pool_recalls
from groundray.training import preflight, progression
from groundray.training.worker import InProcess

WIDTH = Vectors.width


def made_up(counts: Sequence[int], seed: int = 0) -> tuple[np.ndarray, list[list[str]]]:
    """Images of three positions, and so many captions of one or two tokens for each."""
    generator = np.random.default_rng(seed)
    images = generator.integers(-1, 3, (len(counts), 3, WIDTH))

    def caption(image: np.ndarray) -> str:
        tokens = [
            image[generator.integers(3)] + generator.integers(-1, 2, WIDTH) for _ in range(generator.integers(1, 3))
        ]
        return ",".join(" ".join(map(str, token)) for token in tokens)

    return images, [[caption(image) for _ in range(count)] for image, count in zip(images, counts, strict=True)]


def in_batches(images: np.ndarray, captions: list[list[str]], size: int = 4) -> list[CaptionedImages]:
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    return [CaptionedImages(images[part], captions[part]) for part in parts]


def pool_of(images: np.ndarray, captions: list[list[str]], size: int = 4, most: int = 5) -> Pool:
    return Pool(Known(), in_batches(images, captions, size), most)


def similarities(images: np.ndarray, captions: Sequence[str]) -> list[list[float]]:
    """The mean over a caption's tokens of the best position's product, one by one."""
    tokens = [[np.array(token.split(), float) for token in caption.split(",")] for caption in captions]
    return [[float(np.mean([max(image @ token) for token in own])) for own in tokens] for image in images.astype(float)]


def naive(images: np.ndarray, captions: list[list[str]]) -> dict[str, float]:
    """Karpathy and Fei-Fei's figures of a pool, from the whole matrix."""
    S = similarities(images, [caption for own in captions for caption in own])
    image_of = [image for image, own in enumerate(captions) for _ in own]
    found: dict[str, float] = {}
    for way, ranks in zip(("text_to_image", "image_to_text"), reference.matched_ranks(S, image_of), strict=True):
        for k in (1, 5, 10):
            found[f"{way}/recall@{k}"] = sum(rank <= k for rank in ranks) / len(ranks)
        found[f"{way}/mean_rank"] = sum(ranks) / len(ranks)
        found[f"{way}/median_rank"] = float(np.floor(np.median(np.array(ranks) - 1)) + 1)  # as VSE++ has it
    found["rsum"] = 100 * sum(value for name, value in found.items() if "recall" in name)
    return found


@pytest.mark.parametrize("counts", [[5] * 23, [1] * 23, [2, 5, 1, 7, 3, 5, 6] * 3], ids=["five", "one", "uneven"])
def test_figures_are_those_of_the_whole_matrix(counts: list[int]) -> None:
    """All captions are queries, the best of an image's first five counts, and ties count against the query."""
    for seed in range(3):
        images, captions = made_up(counts, seed)
        found = retrieval(pool_of(images, captions))
        first_five = [own[:5] for own in captions]
        assert found.published == pytest.approx(naive(images, first_five))
        first = naive(images, [own[:1] for own in captions])
        assert {name: found.metrics[name] for name in found.metrics if "median" not in name} == pytest.approx(
            {name: first[name] for name in found.metrics if "median" not in name}
        )
        assert (found.images, found.captions) == (len(counts), sum(min(count, 5) for count in counts))


def test_captions_beyond_the_fifth_and_images_with_fewer_are_counted() -> None:
    images, captions = made_up([7, 5, 6, 2])
    assert retrieval(pool_of(images, captions)).left_out == {
        "captions beyond an image's 5": 3,
        "images have fewer than 5 captions": 1,
    }


def test_folds_are_pools_of_their_own_in_the_order_of_the_data() -> None:
    images, captions = made_up([5, 3, 1, 4, 5, 2, 5, 5, 1, 3, 5], seed=3)
    found = retrieval(pool_of(images, captions), fold=3)
    assert found.folds is not None
    assert (found.folds.count, found.folds.images, found.folds.left_out) == (3, 3, 2)
    parts = [naive(images[start : start + 3], captions[start : start + 3]) for start in (0, 3, 6)]
    assert found.folds.metrics == pytest.approx({name: np.mean([part[name] for part in parts]) for name in parts[0]})
    assert retrieval(pool_of(images, captions), fold=6).folds is None


def test_first_captions_alone_read_no_other_caption() -> None:
    images, captions = made_up([5] * 9)
    unreadable = [[own[0], "not a vector"] for own in captions]
    found = retrieval(pool_of(images, unreadable, most=1), "first-caption")
    assert found.captions == 9
    assert found.published == {}
    assert found.metrics == retrieval(pool_of(images, captions)).metrics


def test_parts_of_a_pool_do_not_change_its_ranks() -> None:
    images, captions = made_up([5, 2, 3] * 7)
    whole, parts = (pool_of(images, captions, size) for size in (21, 2))
    for first in (True, False):
        for some in (None, slice(4, 11)):
            assert [x.tolist() for x in whole.ranks(some, first)] == [x.tolist() for x in parts.ranks(some, first)]


def test_random_ranks_are_expected_recalls() -> None:
    """By counting all sets of the first k captions."""
    found = random_ranks(np.array([2, 1, 3]))
    chosen = list(combinations("aabccc", 5))
    share = [sum(image in first for first in chosen) / len(chosen) for image in "abc"]
    assert found["image_to_text/recall@5"] == pytest.approx(np.mean(share))
    assert found["text_to_image/recall@1"] == pytest.approx(1 / 3)
    assert found["image_to_text/recall@10"] == 1


def test_intervals_are_over_images_with_all_their_captions() -> None:
    """Copies of a caption give no more certainty: the interval is that of one caption an image."""
    images, captions = made_up([1] * 40)
    one, five = (retrieval(pool_of(images, [own * times for own in captions])) for times in (1, 5))
    for k in (1, 5, 10):
        name = f"text_to_image/recall@{k}"
        assert five.published[name] == one.published[name]
        assert five.intervals[name] == pytest.approx(one.intervals[name])
        low, high = one.intervals[name]
        assert low is not None
        assert high is not None
        assert low <= one.published[name] <= high
    assert set(one.intervals) == {name for name in one.published if "rank" not in name}


def test_the_analysis_pairs_systems_on_equal_shards_alone() -> None:
    images, captions = made_up([5] * 12)
    other, others = made_up([5] * 12, seed=1)
    found = {
        "grounding": retrieval(pool_of(images, captions), shards="a"),
        "clip": retrieval(pool_of(images, captions), shards="a"),
        "retrieval": retrieval(pool_of(other, others), shards="b"),
    }
    labels = {"grounding": "grounded", "clip": "clip", "retrieval": "relational"}
    made = analysis(found, labels)
    measures = {measure.key: measure for measure in made.measures}
    recall = measures["published/text_to_image/recall_at_5"]
    assert list(recall.values) == ["grounded", "clip", "relational"]
    assert [(one.first, one.other, one.value.value, one.p) for one in recall.differences] == [
        ("grounded", "clip", 0.0, 1.0)
    ]
    assert (
        measures["grounding/text_to_image/recall_at_10"].values["grounded"].value
        == (found["grounding"].metrics["text_to_image/recall@10"])
    )
    assert [len(table.rows) for table in tables(found, labels)] == [3, 3, 2, 2]  # with random ranks


def test_median_ranks_are_rounded_down() -> None:
    images, captions = made_up([1] * 4, seed=5)
    ranks = pool_of(images, captions).ranks()
    ranks.text_to_image[:] = torch.tensor([1, 2, 3, 4])
    assert published(ranks)["text_to_image/median_rank"] == 2


@pytest.fixture(scope="module")
def model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = tmp_path_factory.mktemp("retrieved")
    words = world.settings(f"--run.storage={storage}", "--grounding.epochs=1", stages="grounding")
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(lambda _: None))
    return str(storage / "demo" / "model")


def test_first_captions_have_the_bits_of_validation(model: str, world: SmallWorld) -> None:
    """The published protocol reads more captions, and changes nothing of the first."""
    (found,) = measure_retrieval(model, None, 8).values()
    exported = export.load(model, "grounding")
    settings = reading_settings(exported.about, "grounding", 8)
    stage = settings.stage("grounding")
    with torch.no_grad():
        pool = [
            encode_for_grounding(exported.model, batch, stage.special_tokens, stage.alignment)
            for batch in batches_of(captioned_images(settings, stage, exported.tokenizer, stage.val, shuffle=False))
        ]
    assert found.metrics == pool_recalls(pool, stage.similarity, torch.device("cpu"))
    assert found.metrics == measure_retrieval(model, None, 8, protocol="first-caption")["grounding"].metrics
    assert (found.images, found.captions) == (20, 100)


def analysed(tmp_path: Path, *words: str) -> dict[str, Any]:
    out = tmp_path / "numbers.json"
    assert analyse.main(["retrieval", *words, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_a_clip_stands_beside_the_checkpoint(
    model: str, world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    clip = write_two_towers(tmp_path / "clip")
    numbers = analysed(tmp_path, "--checkpoint", model, "--model", f"clip={clip}")
    assert list(numbers) == ["grounding", "clip"]
    assert [numbers[name]["captions"] for name in numbers] == [100, 100]
    shown = capsys.readouterr().out
    assert "Retrieval among 20 images and 100 captions" in shown
    assert "clip, cosine" in shown
    alone = analysed(tmp_path, "--model", f"clip={clip}", "--data", f"{world.shards}/captions/val")
    assert alone == {"clip": numbers["clip"]}
    first = analysed(tmp_path, "--checkpoint", model, "--protocol", "first-caption")
    assert first["grounding"]["metrics"] == numbers["grounding"]["metrics"]
    assert first["grounding"]["published"] == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --checkpoint DIR, or --model clip=FOLDER"),
        (["--model", "clip=clip"], "give --data SHARDS"),
        (["--model", "text=bert", "--data", "captions"], "--model text: expected a model of images and texts"),
        (["--model", "nothing=nowhere", "--data", "captions"], "--model nothing: expected a model of images and texts"),
        (["--checkpoint", "model", "--model", "grounding=clip"], "--model: grounding is a stage"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    model: str, world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    write_two_towers(tmp_path / "clip")
    places = {"bert": f"{model}/language", "captions": f"{world.shards}/captions/val", "model": model}
    places |= {name: str(tmp_path / name) for name in ("clip", "nowhere")}
    named = []
    for word in words:
        name, equals, place = word.partition("=")
        named.append(f"{name}={places[place]}" if equals else places.get(word, word))
    assert analyse.main(["retrieval", *named]) == 2
    assert message in capsys.readouterr().err


def test_a_result_without_ranks_is_json() -> None:
    one = Retrieval(2, 2, {"text_to_image/recall@1": 0.5}, 1.0, "cosine", shards="/somewhere")
    assert json.loads(json.dumps(one.as_json()))["folds"] is None
    assert "shards" not in one.as_json()
