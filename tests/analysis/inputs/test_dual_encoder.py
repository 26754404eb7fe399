"""Models of images and texts from folders, against transformers' own logits."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from analysis import models
from analysis.two_towers import SIDE, write_two_towers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from groundray.analysis.inputs.dual_encoder import DualEncoders, PretrainedEncoder, scores
from groundray.model.two_towers import is_two_towers

TEXTS = ["a photo of a striped horse", "red fruit", "the white bear", "a " * 30]  # the last is cut
KINDS = ["clip", "siglip", "align"]


def pictures(count: int = 5) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)) for _ in range(count)]


def encoded(images: list[Image.Image]) -> pa.Table:
    files = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return pa.table({"image": files})


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_logits_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path, kind)
    encoder = PretrainedEncoder.load(kind, str(folder))
    V = encoder.images(encoder.image_inputs.arrays(encoded(pictures())))
    found = scores(encoder, V, encoder.texts(TEXTS))

    model: Any = AutoModel.from_pretrained(folder).eval()
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    padding = "max_length" if kind == "siglip" else True
    words = tokenizer(TEXTS, padding=padding, max_length=12, truncation=True, return_tensors="pt")
    words.pop("token_type_ids", None)
    if kind == "siglip":
        words.pop("attention_mask")
    with torch.no_grad():
        logits = model(**words, **processor(pictures(), return_tensors="pt")).logits_per_image
    scale = {"clip": lambda: model.logit_scale.exp(), "siglip": lambda: model.logit_scale.exp()}
    if kind == "align":
        expected = logits * model.temperature
    else:
        expected = (logits - getattr(model, "logit_bias", torch.zeros(1))) / scale[kind]()
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-6)
    assert np.ptp(found, axis=1).min() > 1e-3  # texts differ, so an exchange would be seen


def test_blank_images_are_of_the_mean_colour(tmp_path: Path) -> None:
    encoder = PretrainedEncoder.load("clip", str(write_two_towers(tmp_path)))
    mean = tuple(round(255 * share) for share in AutoImageProcessor.from_pretrained(tmp_path).image_mean)
    arrays = encoder.image_inputs.arrays(encoded([Image.new("RGB", (SIDE, SIDE), mean)]))
    np.testing.assert_allclose(encoder.blank(arrays), arrays, atol=0.01)


def test_a_file_of_word_vectors_is_not_read_as_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would read all of a file, which may have gigabytes."""
    monkeypatch.setattr(AutoConfig, "from_pretrained", pytest.fail)
    (tmp_path / "glove.txt").write_text("zebra 1 2\n")
    (tmp_path / "vectors.parquet").write_bytes(b"")
    assert not is_two_towers(str(tmp_path / "glove.txt"))
    assert not is_two_towers(str(tmp_path))


def test_a_model_is_loaded_once(tmp_path: Path) -> None:
    folder = str(write_two_towers(tmp_path))
    encoders = DualEncoders()
    assert encoders.model("clip", folder) is encoders.model("clip", folder)


def test_models_of_texts_alone_are_told_apart(tmp_path: Path) -> None:
    models.write(tmp_path / "bert", models.bert())
    write_two_towers(tmp_path / "clip")
    assert is_two_towers(str(tmp_path / "clip"))
    assert not is_two_towers(str(tmp_path / "bert"))
    assert not is_two_towers(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"bert is a bert: expected a model with a vector for each image"):
        PretrainedEncoder.load("bert", str(tmp_path / "bert"))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("preprocessor_config.json", "cannot load a model of images and texts from"),
        ("model.safetensors", "cannot load a model of images and texts from"),
        ("config.json", "cannot load a model of images and texts from"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_incomplete_folders_are_named(lost: str, message: str, tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path / "clip")
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=message) as raised:
        PretrainedEncoder.load("clip", str(folder))
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_lacking_weights_are_named(tmp_path: Path) -> None:
    folder, wider = write_two_towers(tmp_path / "clip"), tmp_path / "wider"
    shutil.copytree(folder, wider)
    tree = json.loads((wider / "config.json").read_text())
    tree["text_config"]["num_hidden_layers"] = 3
    (wider / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"wider lacks weights of its model: text_model\.encoder\.layers\.2"):
        PretrainedEncoder.load("clip", str(wider))
