"""Search and match maps with CLIP, SigLIP and ALIGN of random weights, against transformers' own outputs."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis import models
from analysis.two_towers import write_two_towers
from conftest import SmallWorld
from fastapi.testclient import TestClient
from PIL import Image
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from groundray.data.image_decoder import decode
from groundray.image_search.checkpoint import check_searchable, open_matcher, open_towers
from groundray.image_search.dual_encoder import DualEncoderMatcher, DualEncoderTowers, visible_part, without_ends
from groundray.image_search.errors import BadQuery
from groundray.image_search.http.app import create_app
from groundray.image_search.index import default_folder, index_spec, open_pool
from groundray.image_search.service import Service
from groundray.model.two_towers import is_hub_name
from groundray.storage.user_cache import user_cache

pytestmark = pytest.mark.thorough  # other models behind the service of test_http.py

KINDS = ["clip", "siglip", "align"]
WORDS = ("a", "red", "blue", "heart", "star", "circle")


def picture(width: int = 60, height: int = 40) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def matcher_at(folder: Path) -> DualEncoderMatcher:
    found = open_matcher(str(folder), open_towers(str(folder)))
    assert isinstance(found, DualEncoderMatcher)
    return found


def pixels_of(folder: Path, encoded: bytes) -> torch.Tensor:
    return AutoImageProcessor.from_pretrained(folder)(images=[decode(encoded)], return_tensors="pt")["pixel_values"]


def texts_of(folder: Path, model: Any, texts: list[str], kind: str) -> torch.Tensor:
    padding = "max_length" if kind == "siglip" else True
    inputs = AutoTokenizer.from_pretrained(folder)(
        texts, padding=padding, max_length=12, truncation=True, return_tensors="pt"
    )
    inputs.pop("token_type_ids", None)
    if kind == "siglip":
        inputs.pop("attention_mask")
    return F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / kind, kind, WORDS)
    towers, model = open_towers(str(folder)), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        image = F.normalize(model.get_image_features(pixels_of(folder, picture())).pooler_output, dim=-1)
        texts = texts_of(folder, model, ["red heart", "a blue star"], kind)
    np.testing.assert_allclose(towers.embed_pixels(towers.preprocess(picture())[None]), image.numpy(), atol=1e-5)
    np.testing.assert_allclose(towers.embed_texts(["red heart", "a blue star"]), texts.numpy(), atol=1e-5)
    assert (towers.kind, towers.name, towers.stages, towers.width) == (kind, kind, (), image.shape[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(5, 400), (400, 5), (170, 5)])
def test_very_long_pictures_are_seen_as_by_the_processor_without_being_scaled_whole(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    folder = write_two_towers(tmp_path / kind, kind, WORDS)
    towers = DualEncoderTowers.load(str(folder))
    np.testing.assert_allclose(towers.preprocess(picture(*size)), pixels_of(folder, picture(*size))[0], atol=1e-5)
    longest = Image.new("RGB", (20_000, 1))
    scaled = without_ends(longest, towers.towers.processor)
    assert scaled.size == ((32, 1) if kind == "clip" else longest.size)  # the others scale all pictures to a square


def naive_positions(model: Any, kind: str, pixels: torch.Tensor) -> torch.Tensor:
    """Each position by itself, layer by layer and number by number of the attention's value path."""
    vision = model.vision_model
    if kind == "align":
        return vision(pixels).last_hidden_state[0].permute(1, 2, 0)
    if kind == "siglip":
        head, found = vision.head, []
        width = head.attention.embed_dim
        for state in vision(pixels).last_hidden_state[0]:
            value = head.attention.in_proj_weight[2 * width :] @ state + head.attention.in_proj_bias[2 * width :]
            pooled = head.attention.out_proj(value)
            found.append(pooled + head.mlp(head.layernorm(pooled)[None])[0])
        return torch.stack(found).unflatten(0, (2, 2))
    states = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        states = layer(states, None)
    last, found = vision.encoder.layers[-1], []
    for state in states[0, 1:]:
        attended = state + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(state)))
        found.append(model.visual_projection(vision.post_layernorm(attended + last.mlp(last.layer_norm2(attended)))))
    return torch.stack(found).unflatten(0, (2, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_is_the_cosine_of_each_position_and_a_word_by_itself(kind: str, tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / kind, kind, WORDS)
    model = AutoModel.from_pretrained(folder).eval()
    match = (matcher := matcher_at(folder)).match("red heart", matcher.decode(picture()))
    assert [(word.text, word.start, word.end) for word in match.words] == [
        *(("red heart", 0, 9), ("red", 0, 3), ("heart", 4, 9))
    ]
    with torch.no_grad():
        positions = F.normalize(naive_positions(model, kind, pixels_of(folder, picture())), dim=-1)
        texts = texts_of(folder, model, [word.text for word in match.words], kind)  # `photo` is no word of the model's
        image = F.normalize(model.get_image_features(pixels_of(folder, picture())).pooler_output, dim=-1)[0]
    for word, vector in zip(match.words, texts, strict=True):
        np.testing.assert_allclose(word.map, (positions @ vector).numpy(), atol=1e-5)
    assert match.similarity == pytest.approx((image @ texts[0]).item(), abs=1e-5)
    assert match.words[0].map.std() > 1e-4
    assert (match.first, match.step) == pytest.approx((0.25, 0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_products_of_the_features_of_positions_and_words(kind: str, tmp_path: Path) -> None:
    matcher = matcher_at(write_two_towers(tmp_path / kind, kind, WORDS))
    encoded = [picture(), picture(40, 60)]
    words = matcher.word_features("a blue star")
    features = matcher.position_features(np.stack([matcher.preprocess(one) for one in encoded]))
    for one, positions in zip(encoded, features, strict=True):
        match = matcher.match("a blue star", matcher.decode(one))
        np.testing.assert_allclose(
            (positions @ words.features.T).T, [word.map.ravel() for word in match.words], atol=1e-5
        )


def test_words_are_embedded_in_a_template_that_the_model_knows(tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / "clip", "clip", (*WORDS, "photo", "of", "."))
    matcher = matcher_at(folder)
    expected = matcher.towers.embed_texts(["red heart", "a photo of a red.", "a photo of a heart."])
    np.testing.assert_allclose(matcher.word_features("red heart").features, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(200, 120), (75, 131)])
def test_the_shown_part_is_what_the_processor_keeps(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    """The red channel of the test picture holds each pixel's column, the green channel its row."""
    folder, (width, height) = write_two_towers(tmp_path / kind, kind), size
    processor = AutoImageProcessor.from_pretrained(folder)
    ramps = np.zeros((height, width, 3), np.uint8)
    ramps[..., 0], ramps[..., 1] = np.arange(width), np.arange(height)[:, None]
    plain = {"do_normalize": False, **({"include_top": False} if kind == "align" else {})}
    pixels = processor(images=[Image.fromarray(ramps)], return_tensors="np", **plain)["pixel_values"][0]
    left, top, right, bottom = visible_part(processor, width, height)
    for row, (low, high, length) in enumerate(((left, right, width), (top, bottom, height))):
        seen = pixels[row].mean(axis=row) / processor.rescale_factor
        side = len(seen)
        middle = (np.arange(side) + 0.5) / side * (high - low) + low
        inner = slice(2, -2)  # at an edge, a filter has fewer pixels
        np.testing.assert_allclose(seen[inner], middle[inner] * length - 0.5, atol=1.0)


def test_a_text_without_words_is_refused(tmp_path: Path) -> None:
    matcher = matcher_at(write_two_towers(tmp_path))
    for refused in (matcher.word_features, matcher.towers.check_text):
        with pytest.raises(BadQuery, match="which has no word"):
            refused("\u200b")


def test_the_index_is_of_the_image_tower_and_the_processor(world: SmallWorld, tmp_path: Path) -> None:
    pool = open_pool(str(world.shards / "captions" / "val"))

    def key(folder: Path) -> str:
        return index_spec(open_towers(str(folder)), pool, str(tmp_path)).folder.name

    folder = write_two_towers(tmp_path / "clip")
    keys = [key(folder), key(write_two_towers(tmp_path / "other", seed=1))]
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    shutil.copytree(folder, tmp_path / "brighter")
    (tmp_path / "brighter" / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.4] * 3}))
    keys.append(key(tmp_path / "brighter"))
    shutil.copytree(folder, tmp_path / "activated")  # the same weights, which compute other numbers
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "activated" / "config.json").write_text(json.dumps(settings))
    keys.append(key(tmp_path / "activated"))
    assert len(set(keys)) == 4
    towers = open_towers(str(folder))
    with torch.no_grad():
        towers.towers.model.text_projection.weight += 1  # pyright: ignore  no picture passes through it
    assert index_spec(towers, pool, str(tmp_path)).folder.name == keys[0]


def test_a_clip_is_served_with_search_match_maps_and_the_words_of_its_text_tower(
    world: SmallWorld, tmp_path: Path
) -> None:
    folder = write_two_towers(tmp_path / "clip", "clip", WORDS)
    service = Service.open(str(folder), str(world.shards / "captions" / "val"), str(tmp_path / "index"))
    client = TestClient(create_app(service), "http://localhost")
    health = client.get("/healthz").json()
    assert (health["model"], health["kind"], health["stages"], health["recall"]) == ("clip", "clip", [], 1.0)

    towers, index = service.search.towers, service.search.index
    vectors = towers.embed_pixels(np.stack([towers.preprocess(index.pictures[row]) for row in range(len(index))]))
    cosines = vectors @ towers.embed_texts(["red heart"])[0]
    results = client.get("/search", params={"text": "red heart", "k": 5}).json()["answers"][0]["results"]
    assert [one["id"] for one in results] == [index.ids[row] for row in np.argsort(-cosines)[:5].tolist()]
    np.testing.assert_allclose([one["score"] for one in results], np.sort(cosines)[:-6:-1], atol=1e-3)

    found = client.post("/match-map", data={"text": "red heart"}, files={"file": picture()}).json()
    assert [token["text"] for token in found["tokens"]] == ["red heart", "red", "heart"]
    assert (found["rows"], found["columns"], found["crop"]) == (2, 2, pytest.approx([1 / 6, 0, 5 / 6, 1], abs=0.03))
    words = client.get("/words").json()
    assert words["models"] == ["text tower"]
    assert {"red", "heart"} <= {word["text"] for word in words["words"]}


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("preprocessor_config.json", r"clip: its image processor \(preprocessor_config\.json\) cannot be read"),
        ("tokenizer.json", "clip: its tokenizer cannot be read"),
        ("model.safetensors", "clip: its weights cannot be read"),
    ],
)
def test_a_clip_that_lacks_a_part_is_refused_before_it_is_served(lost: str, message: str, tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / "clip")
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=message):
        check_searchable(str(folder))


def test_damaged_and_unfit_parts_are_refused(tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / "clip")
    check_searchable(str(folder))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="clip: its weights cannot be read"):
        check_searchable(str(folder))
    (folder / "model.safetensors").write_bytes(weights)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    wider = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | wider))
    with pytest.raises(ValueError, match=r"expected an image processor .* that gives what the model takes"):
        check_searchable(str(folder))


def test_folders_without_a_model_that_can_search_are_named(tmp_path: Path) -> None:
    models.write(tmp_path / "bert", models.bert())
    with pytest.raises(ValueError, match="bert is a bert: expected a model with a vector for each image"):
        check_searchable(str(tmp_path / "bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"found no groundray\.json.* CLIP, SigLIP or ALIGN"):
        check_searchable(str(tmp_path / "empty"))


def test_a_mistyped_path_is_not_looked_for_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("openai/clip-vit-base-patch32")
    (tmp_path / "runs").mkdir()
    assert not any(map(is_hub_name, ("runs/modell", "modell", "runs/demo/model", str(tmp_path), "s3://bucket/model")))


def test_indexes_of_a_model_from_a_hub_are_in_the_users_cache() -> None:
    assert default_folder("openai/clip-vit-base-patch32") == str(user_cache() / "index")
