"""Zero-shot classification: accuracies against loops, class texts against their definition, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis.known_encoder import Known, Vectors
from analysis.two_towers import write_two_towers
from conftest import SmallWorld
from transformers import AutoModel, AutoTokenizer

from groundray import analyse, config
from groundray.analysis.inputs.class_texts import ClassTexts
from groundray.analysis.inputs.dual_encoder import PretrainedEncoder
from groundray.analysis.jobs import made_by_all
from groundray.analysis.measures.zero_shot import zero_shot
from groundray.analysis.request import AnalysisRequest
from groundray.training import preflight, progression
from groundray.training.worker import InProcess


def test_accuracies_are_those_of_a_loop() -> None:
    generator = np.random.default_rng(0)
    truth = np.array([0] * 20 + [1] * 5 + [2] * 3 + [4] * 2 + [5, 6] * 6)
    scores = {name: generator.integers(0, 6, (len(truth), 8)).astype(float) for name in ("one", "other")}
    found = {
        one.key: one for one in zero_shot(scores, truth, list("abcdefgh"), dict.fromkeys(scores, ""), ["{}"]).measures
    }
    for model, table in scores.items():
        for k in (1, 5):
            right = [sum(not other < row[label] for other in row) <= k for row, label in zip(table, truth, strict=True)]
            by_class = [
                np.mean([one for one, label in zip(right, truth, strict=True) if label == c]) for c in set(truth)
            ]
            assert found[f"top{k}"].values[model].value == pytest.approx(np.mean(right))
            value = found[f"class_mean/top{k}"].values[model]
            assert value.value == pytest.approx(np.mean(by_class))
            assert value.low is not None
            assert value.high is not None
            assert value.low < value.value < value.high
    assert (found["top1"].items, found["class_mean/top1"].items) == (42, 6)
    (difference,) = found["top1"].differences
    assert difference.value.value == pytest.approx(
        found["top1"].values["other"].value - found["top1"].values["one"].value
    )


def test_equal_scores_are_wrong() -> None:
    made = zero_shot({"same": np.zeros((4, 7))}, np.array([0, 1, 2, 3]), list("abcdefg"), {"same": ""}, ["{}"])
    assert [one.values["same"].value for one in made.measures] == [0.0] * 4
    assert made.left_out == {"classes without an image": 3}
    overview, by_class = made.tables
    assert overview.rows[1][2:] == pytest.approx((1 / 7, 1 / 7, 5 / 7, 5 / 7))
    assert by_class.rows[6] == ("g", 0, None)


def test_of_vectors_a_class_is_the_mean_of_its_sentences_at_length_one(tmp_path: Path) -> None:
    folder = write_two_towers(tmp_path)
    templates = ["a photo of a {}", "the {} ,", "{}"]
    encoder = PretrainedEncoder.load("clip", str(folder))
    V = torch.nn.functional.normalize(torch.randn(4, 1, 8), dim=-1)
    found = ClassTexts(encoder, ["striped_horse", "red", "unheard"], templates)
    assert found.unknown == 1
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for column, name in enumerate(("striped horse", "red", "unheard")):
        sentences = [template.replace("{}", name) for template in templates]
        units = []
        for sentence in sentences:
            inputs = tokenizer(sentence, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            with torch.no_grad():
                vector = model.get_text_features(**inputs).pooler_output[0]
            units.append(vector / vector.norm())
        mean = torch.stack(units).mean(dim=0)
        np.testing.assert_allclose(found.scores(V)[:, column], V[:, 0] @ (mean / mean.norm()), atol=1e-6)


def test_of_a_match_map_a_class_has_the_mean_score_of_its_sentences() -> None:
    images = np.random.default_rng(1).integers(-2, 3, (5, 3, Vectors.width))
    labels, templates = ["1 0 2 0 1 1", "0 2 0 0 -1 1"], ["{}", "{},1 1 1 1 1 1"]
    found = ClassTexts(Known(), labels, templates).scores(Known().images(images))
    for image, row in zip(images, found, strict=True):
        for label, score in zip(labels, row, strict=True):
            token = np.array(label.split(), float)
            best, second = (image @ token).max(), (image @ np.ones(Vectors.width)).max()
            assert score == pytest.approx((best + (best + second) / 2) / 2)


@pytest.fixture(scope="module")
def model(world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    storage = tmp_path_factory.mktemp("classified")
    words = world.settings(f"--run.storage={storage}", "--grounding.epochs=1", stages="grounding")
    progression.run_stages(preflight.check(config.load("demo", words)), InProcess(lambda _: None))
    return str(storage / "demo" / "model")


def test_the_command_compares_a_checkpoint_with_a_clip(model: str, world: SmallWorld, tmp_path: Path) -> None:
    clip, out = write_two_towers(tmp_path / "clip", words=("circle", "square", "a", "photo", "of")), tmp_path / "z.json"
    words = ["zero-shot", "--checkpoint", model, "--model", f"clip={clip}", "--data", f"{world.shards}/objects/val"]
    assert analyse.main([*words, "--template", "a {}", "--json", str(out)]) == 0
    found = json.loads(out.read_text())["analyses"]["zero_shot"]
    assert list(found["measures"]["top1"]["values"]) == ["grounded", "clip"]
    assert found["measures"]["top1"]["items"] == 15
    assert found["left_out"] == {"classes whose name clip does not know": 13}
    assert "'a {}'" in found["about"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --data SHARDS, as `prepare image-folder` writes them"),
        (["--data", "captions"], "expected shards of kind 'labelled_images'"),
        (["--template", "a photo"], "expected a template with one {}"),
        (["--model", "text=bert"], "--model text: expected a model of images and texts"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    model: str, world: SmallWorld, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    places = {"captions": f"{world.shards}/captions/val", "text=bert": f"text={model}/language"}
    assert analyse.main(["zero-shot", "--checkpoint", model, *(places.get(word, word) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_all_classifies_and_composes_where_data_is_given() -> None:
    usual = made_by_all(AnalysisRequest())
    assert not {"zero_shot", "compositional"} & set(usual)
    assert made_by_all(AnalysisRequest(labelled="data/objects/val")) == (*usual, "zero_shot")
    assert made_by_all(AnalysisRequest(sets=("vsr=vsr",))) == (*usual, "compositional")
