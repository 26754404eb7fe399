"""A small RoBERTa from scratch goes through all stages, and finds images afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer, RobertaConfig

from groundray import config, prepare, search
from groundray.image_search.query import Search
from groundray.training import preflight, progression
from groundray.training.in_process import InProcess

STAGES = {"visual": "objects", "language": "text", "grounding": "captions", "relational": "scene_graphs"}
EPOCHS = {"visual": 2, "language": 3, "grounding": 10, "relational": 4, "retrieval": 4}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_roberta_from_scratch_is_grounded_and_finds_images(tmp_path: Path) -> None:
    scenes = tmp_path / "scenes"
    assert prepare.main(["scenes", "--out", str(scenes), "--num-scenes", "1500"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(scenes / "source" / "tokenizer")
    tokenizer.save_pretrained(tmp_path / "roberta")
    RobertaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=64,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
    ).save_pretrained(tmp_path / "roberta")
    shards = STAGES | {"retrieval": "captions"}
    words = [
        f"--model.language.name={tmp_path / 'roberta'}",
        "--model.language.tokenizer=null",
        f"--run.storage={tmp_path}",
        "--tracking.enabled=false",
        "--analysis.enabled=false",
        f"--stages={','.join(shards)}",
        *(f"--{stage}.epochs={count}" for stage, count in EPOCHS.items()),
        *(f"--{stage}.{part}={scenes / kind / part}" for stage, kind in shards.items() for part in ("train", "val")),
    ]
    result = progression.run_stages(preflight.check(config.load("demo", words)), InProcess(lambda _: None))
    metrics = result["stages"]
    model = tmp_path / "demo" / "model"
    assert type(AutoModel.from_pretrained(model / "language")).__name__ == "RobertaModel"
    assert metrics["language"]["accuracy"] > 0.2
    for stage in ("grounding", "retrieval"):
        assert metrics[stage]["text_to_image/recall@10"] > 0.5  # of 200 images: 0.05 by chance
    assert metrics["relational"]["predicate/top1"] > metrics["relational"]["without_image/predicate/top1"]

    images, index = scenes / "captions" / "val", tmp_path / "index"
    paths = [str(model), str(images), str(index)]
    options = [
        text
        for name, path in zip(("checkpoint", "images", "index"), paths, strict=True)
        for text in (f"--{name}", path)
    ]
    assert search.main([*options, "--text", "a red circle", "--k", "5"]) == 0
    hits = Search.open(*paths).find(text="a red circle", k=5)
    assert len({hit.id for hit in hits}) == 5
