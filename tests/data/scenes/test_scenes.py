"""The embedded world: captions agree with scenes and never spell out a named kind."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SmallWorld
from PIL import Image
from transformers import AutoTokenizer

from groundray.data.scenes import write_world
from groundray.data.scenes.ground_truth import concreteness, vocabulary
from groundray.data.scenes.scene import SIZE, Object, Scene, make_scene, relation, relations
from groundray.data.scenes.vocabulary import (
    ABSTRACT_ADJECTIVES,
    ABSTRACT_ADVERBS,
    ABSTRACT_NOUNS,
    COLOURS,
    KINDS,
    SHAPES,
    SINGLES,
    TEXTURES,
)
from groundray.data.scenes.wording import UNRELATED_FRACTION, captions

SCENES = [make_scene(0, "train", index, index) for index in range(600)]
CAPTIONS = [captions(scene) for scene in SCENES]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def table(world: SmallWorld, name: str) -> list[dict[str, str]]:
    with (world.source / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_seed_gives_the_same_bytes(world: SmallWorld, tmp_path: Path) -> None:
    write_world(tmp_path / "same", num_scenes=72, num_val=20, objects_per_noun=4, workers=2)
    assert tree(tmp_path / "same") == tree(world.source)


def test_seeds_and_splits_differ() -> None:
    assert make_scene(0, "train", 3, 3) != make_scene(1, "train", 3, 3)
    assert make_scene(0, "train", 3, 3).objects != make_scene(0, "val", 3, 3).objects


def test_no_caption_spells_out_a_named_kind() -> None:
    """No caption has the attribute and the shape of a named kind in one name, in any order."""
    for texts in CAPTIONS:
        for text in texts:
            for name in re.split(r" , | and | with | of |\b(?:left of|right of|above|below|inside|touching)\b", text):
                words = name.split()
                for kind in KINDS:
                    assert not (kind.attribute in words and kind.shape in words), text


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_nouns_and_the_words_of_their_phrases_are_common(kind: Any) -> None:
    texts = [text for of_scene in CAPTIONS for text in of_scene]
    assert sum(kind.noun in text.split() for text in texts) > 40
    others = [shape for shape in SHAPES if shape != kind.shape]
    assert sum(any(f"{kind.attribute} {shape}" in text for shape in others) for text in texts) > 20
    attributes = [word for word in (*COLOURS, *TEXTURES) if word != kind.attribute]
    assert sum(any(f"{word} {kind.shape}" in text for word in attributes) for text in texts) > 20


def test_first_caption_names_exactly_the_objects() -> None:
    for scene, texts in zip(SCENES, CAPTIONS, strict=True):
        nouns = [word for word in texts[0].split() if word in SHAPES or word in {kind.noun for kind in KINDS}]
        assert sorted(nouns) == sorted(item.noun for item in scene.objects)
        colours = {word for word in texts[0].split() if word in COLOURS}
        assert colours <= {item.colour for item in scene.objects}


def test_captions_mention_only_visible_objects() -> None:
    for scene, texts in zip(SCENES, CAPTIONS, strict=True):
        there = {word for item in scene.objects for word in (item.shape, item.noun, item.colour, item.texture)}
        for text in texts:
            visual = {word for word in text.split() if word in {*SHAPES, *COLOURS, *TEXTURES}}
            assert visual <= there


def test_relations_of_written_out_boxes() -> None:
    def box(x: int, y: int, extent: int) -> Object:
        return Object("circle", "red", "plain", "big", x, y, extent)

    assert relation(box(0, 0, 20), box(50, 0, 20)) == "left of"
    assert relation(box(50, 0, 20), box(0, 0, 20)) == "right of"
    assert relation(box(0, 0, 20), box(0, 50, 20)) == "above"
    assert relation(box(0, 50, 20), box(0, 0, 20)) == "below"
    assert relation(box(10, 10, 10), box(0, 0, 40)) == "inside"
    assert relation(box(0, 0, 40), box(10, 10, 10)) is None
    assert relation(box(0, 0, 20), box(20, 5, 20)) == "touching"
    assert relation(box(0, 0, 20), box(50, 50, 20)) is None  # neither beside nor above


def test_every_relation_occurs_and_objects_stay_in_the_image() -> None:
    found = {one.predicate for scene in SCENES for one in relations(scene.objects)}
    assert found == {"left of", "right of", "above", "below", "inside", "touching"}
    for scene in SCENES:
        assert 1 <= len(scene.objects) <= 4
        for item in scene.objects:
            assert min(item.x, item.y) >= 0
            assert max(item.x, item.y) + item.extent <= SIZE


def test_layouts_are_those_of_the_sources(world: SmallWorld) -> None:
    coco = json.loads((world.source / "coco" / "annotations" / "captions_train.json").read_text())
    images = {image["id"]: image for image in coco["images"]}
    assert len(images) == 72
    assert len({entry["id"] for entry in coco["annotations"]}) == len(coco["annotations"]) == 5 * 72
    assert {entry["image_id"] for entry in coco["annotations"]} == set(images)
    with Image.open(world.source / "coco" / "train" / images[0]["file_name"]) as picture:
        assert picture.size == (SIZE, SIZE)

    genome = {
        name: json.loads((world.source / "visual_genome" / "train" / f"{name}.json").read_text())
        for name in ("image_data", "objects", "attributes", "relationships")
    }
    objects = {item["object_id"]: item for scene in genome["objects"] for item in scene["objects"]}
    for scene in genome["relationships"]:
        for one in scene["relationships"]:
            for end in (one["subject"], one["object"]):
                assert objects[end["object_id"]]["names"] == [end["name"]]
    for scene in genome["attributes"]:
        for item in scene["attributes"]:
            for kind in KINDS:
                assert not (kind.noun in item["names"] and kind.attribute in item["attributes"])

    classes = {folder.name for folder in (world.source / "objects" / "train").iterdir()}
    assert classes == set(SINGLES)
    assert len((world.source / "text" / "val.txt").read_text().splitlines()) == 5 * 20


def test_some_captions_are_unrelated_to_their_image() -> None:
    """Never the first caption, which validation uses."""
    words = {*ABSTRACT_NOUNS, *ABSTRACT_ADJECTIVES, *ABSTRACT_ADVERBS, "a", "an", "the", "is"}
    nothing = [[set(text.split()) <= words for text in texts] for texts in CAPTIONS]
    assert not any(first for first, *_ in nothing)
    assert np.mean([of for _, *others in nothing for of in others]) == pytest.approx(UNRELATED_FRACTION, abs=0.05)


def test_every_word_is_one_word_piece(world: SmallWorld) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.source / "tokenizer")
    assert tokenizer.pad_token_id == 0
    for word in vocabulary():
        assert len(tokenizer.tokenize(word)) == 1, word
    for texts in CAPTIONS:
        for encoded in tokenizer(texts).input_ids:
            assert tokenizer.unk_token_id not in encoded
            assert len(encoded) <= 32
            assert (encoded[0], encoded[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)


def test_norms_cover_the_words(world: SmallWorld) -> None:
    ratings = {row["word"]: float(row["concreteness"]) for row in table(world, "norms/concreteness")}
    assert set(ratings) == {word for word, *_ in concreteness()}
    assert min(ratings[shape] for shape in SHAPES) > 4 > 2.5 > ratings["idea"]
    assert {row["category"] for row in table(world, "norms/categories")} >= {"shape", "kind", "colour", "abstract noun"}
    for name in ("kind", "outline", "warmth"):
        assert {row["word"] for row in table(world, f"norms/category_sets/{name}")} <= set(ratings)
    assert [row["phrase"] for row in table(world, "norms/composition")] == [kind.phrase for kind in KINDS]
    assert {"concept": "zebrine", "feature": "is striped", "production_frequency": "10", "type": "visual"} in table(
        world, "norms/features"
    )
    assert set(table(world, "triplets")[0]) == {"image", "subject", "predicate", "object"}


def test_scene_is_fixed_by_its_key() -> None:
    scene = make_scene(0, "train", 7, 7)
    assert isinstance(scene, Scene)
    assert captions(scene) == captions(make_scene(0, "train", 7, 7))
