"""Model cards: the hub's own classes read the results back, and base models are ids of the hub."""

from __future__ import annotations

import math
from pathlib import Path

import hub_server
import pytest
import yaml
from conftest import SmallWorld
from huggingface_hub import ModelCard

from groundray import config
from groundray.model.card import card, published_weights, results

METRICS = {
    "grounding": {
        "loss": 1.25,
        "text_to_image/recall@10": 0.985,
        "text_to_image/median_rank": math.nan,
        "without_image/text_to_image/recall@10": 0.05,
    },
    "relational": {"predicate/top1": 0.769},
    "retrieval": {"image_to_text/recall@10": 1 / 3},
}


@pytest.fixture
def settings(world: SmallWorld) -> dict[str, object]:
    return config.load("demo", world.settings()).model_dump(mode="json")


@pytest.mark.parametrize("stream", [False, True])
def test_the_hub_reads_the_results_back(settings: dict[str, object], world: SmallWorld, stream: bool) -> None:
    graphs = {"relational.val": "graphs (20 images; fingerprint 0123456789ab)"}
    text = card("mine", settings, METRICS, graphs, ["google-bert/bert-base-uncased", "timm/resnet50.a1_in1k"], stream)
    metadata = ModelCard(text).data
    assert metadata.model_name == "mine"
    assert metadata.base_model == ["google-bert/bert-base-uncased", "timm/resnet50.a1_in1k"]
    found = {(each.metric_name, each.metric_type, each.metric_value) for each in metadata.eval_results}
    assert found == {
        ("grounding: loss", "loss", 1.25),
        ("grounding: text_to_image/recall@10", "recall@10", 0.985),
        ("relational: predicate/top1", "top1", 0.769),
        ("retrieval: image_to_text/recall@10", "recall@10", 1 / 3),
    }
    assert {each.metric_name: each for each in metadata.eval_results} == {
        each.metric_name: each for each in results(settings, METRICS, graphs)
    }
    by_task = {each.task_type: each for each in metadata.eval_results}
    assert by_task["image-text-retrieval"].dataset_name == str(world.shards / "captions" / "val")
    assert by_task["visual-relationship-detection"].dataset_name == graphs["relational.val"]
    assert {each.dataset_split for each in metadata.eval_results} == {"validation"}
    assert hub_server.problems(yaml.safe_load(text.split("---\n")[1])) == []
    assert "| grounding | without_image/text_to_image/recall@10 | 0.05 |" in text  # a control: in the table alone


def test_a_card_without_stages_or_base_models_is_valid(settings: dict[str, object]) -> None:
    metadata = ModelCard(card("mine", settings, {}, {}, stream=True)).data
    assert metadata.eval_results is None
    assert metadata.base_model is None
    assert metadata.tags[0] == "groundray"


@pytest.mark.parametrize(
    ("language", "trunk", "expected"),
    [
        ({}, {}, {"language": "google-bert/bert-base-uncased", "visual": "timm/vgg16.tv_in1k"}),
        (
            {"name": "minilm"},
            {"name": "tiny", "weights": "none"},
            {"language": "sentence-transformers/all-MiniLM-L6-v2"},
        ),
        ({"name": "answerdotai/ModernBERT-base", "weights": "none"}, {"weights": "trunk.pt"}, {}),
        ({"name": "answerdotai/ModernBERT-base"}, {"weights": "none"}, {"language": "answerdotai/ModernBERT-base"}),
        ({"name": "roberta-base"}, {"name": "efficientnet_lite0"}, {"language": "roberta-base"}),
        ({"name": "s3://bucket/roberta"}, {"weights": "none"}, {}),
        ({"name": "/models/roberta"}, {"weights": "none"}, {}),
    ],
)
def test_base_models_are_published_weights_on_the_hub(
    language: dict[str, str], trunk: dict[str, str], expected: dict[str, str]
) -> None:
    model = config.Model(language=config.Language(**language), trunk=config.Trunk(**trunk))
    assert published_weights(model) == expected


def test_a_folder_is_no_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "roberta").mkdir(parents=True)
    language = config.Language(name="models/roberta")
    assert published_weights(config.Model(language=language, trunk=config.Trunk(weights="none"))) == {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet50", "timm/resnet50.a1_in1k"), ("convnext_tiny.in12k_ft_in1k", "timm/convnext_tiny.in12k_ft_in1k")],
)
def test_a_trunk_of_timm_is_named_with_its_tag(name: str, expected: str) -> None:
    pytest.importorskip("timm", reason="extra `models` is not installed")
    trunk = config.Trunk(name=f"timm/{name}")
    assert published_weights(config.Model(language=config.Language(name="tiny"), trunk=trunk)) == {"visual": expected}
