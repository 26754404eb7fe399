"""The model card of an exported model: data, results and settings, as Markdown with the Hugging Face hub's metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from groundray import config
from groundray.model.timm_trunk import TIMM, hub_name
from groundray.storage.object_store import is_store

# what a stage's validation measures, as a model-index names it; the hub has no fixed list
TASKS = {
    "visual": ("image-classification", "Image classification"),
    "language": ("fill-mask", "Masked language modelling"),
    "grounding": ("image-text-retrieval", "Image-text retrieval"),
    "relational": ("visual-relationship-detection", "Visual relationship detection"),
    "retrieval": ("image-text-retrieval", "Image-text retrieval"),
}
CONTROL = "without_image/"  # metrics of the same model with blank images
TAGS = ["groundray", "visually-grounded-language"]
STREAM_TAGS = ["sentence-transformers", "feature-extraction", "sentence-similarity"]
# ids on the hub of published weights that groundray has under names of its own
PUBLISHED = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "vgg16": f"{TIMM}vgg16.tv_in1k",
}
# `FOLDER` is for the reader to fill in: training does not know where a card is copied or pushed
USE = """from groundray import embed, open_model

exported = open_model("FOLDER")  # this folder: both streams and the heads, in eval mode
vectors = embed(exported, ["a red heart", "a blue star"])  # one row per text"""
USE_OF_STREAM = """from sentence_transformers import SentenceTransformer

sentences = SentenceTransformer("FOLDER")  # this folder, or its name on the hub
vectors = sentences.encode(["a red heart", "a blue star"])  # one row per text, the mean over its tokens"""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def card(
    name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    data: Mapping[str, str],
    base_models: Sequence[str] = (),
    stream: bool = False,
) -> str:
    """Return the model card of a whole model, or of a language stream alone.

    The hub reads its metadata: library, tags, base models, and the results as a model-index.

    Args:
        settings: the run's settings.
        metrics: validation metrics of each stage that trained the model; empty for the model at the start of a run.
        data: a line about each data set, by `stage.part`; those of other stages are left out.
        base_models: ids on the hub of the published weights that the run started from.
        stream: whether it is the card of a language stream, which sentence-transformers loads.
    """
    stages = list(metrics)
    trained = f"trained by groundray in the stages {', '.join(stages)}" if stages else "as groundray's run started"
    kind = "The language stream of a language model" if stream else "A language model"
    sections = [
        f"---\n{_metadata(name, settings, metrics, data, base_models, stream)}\n---",
        f"# {name}",
        f"{kind} grounded in vision, {trained}. It follows *Explainable Semantic Space by Grounding Language to Vision "
        "with Cross-Modal Contrastive Learning* (Zhang, Choi, Han and Liu, NeurIPS 2021).",
        f"## Use\n\n```python\n{USE_OF_STREAM if stream else USE}\n```",
    ]
    if lines := [f"- `{part}`: {line}" for part, line in data.items() if part.split(".")[0] in stages]:
        sections.append("## Data\n\n" + "\n".join(lines))
    if stages:
        sections.append(
            "## Results\n\nOn the validation data, at each stage's best epoch. `without_image` is the same model with "
            "blank images.\n\n| stage | metric | value |\n|---|---|---|\n"
            + "\n".join(
                f"| {stage} | {metric} | {value:.4g} |"
                for stage, values in metrics.items()
                for metric, value in values.items()
            )
        )
    sections.append("## Settings\n\n```yaml\n" + yaml.safe_dump(dict(settings), sort_keys=False, width=100) + "```")
    return "\n\n".join(sections) + "\n"


def results(
    settings: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]], data: Mapping[str, str]
) -> list[EvalResult]:
    """Return the validation metrics of each stage as results of a model-index.

    The controls with blank images are in the card's table alone: they are no results of the model.
    """
    found = []
    for stage, values in metrics.items():
        task, task_name = TASKS.get(stage, (stage, stage))
        shards = str(settings[stage]["val"])
        for metric, value in values.items():
            if metric.startswith(CONTROL) or not math.isfinite(value):
                continue
            found.append(
                EvalResult(
                    task_type=task,
                    task_name=task_name,
                    dataset_type=re.sub(r"[^\w.]+", "-", shards).strip("-"),
                    dataset_name=data.get(f"{stage}.val", shards),
                    dataset_split="validation",
                    metric_type=metric.rpartition("/")[2],
                    metric_name=f"{stage}: {metric}",
                    metric_value=value,
                )
            )
    return found


def published_weights(model: config.Model) -> dict[str, str]:
    """Return the ids on the hub of the published weights that each stream starts from, by `language` and `visual`.

    A stream is left out if it starts from random weights, a file or a folder, or if the hub lacks its weights.
    """
    names: dict[str, str | None] = {}
    language, trunk = model.language, model.trunk
    if language.weights == "published" and language.name != "tiny":
        on_disk = is_store(language.name) or Path(language.name).exists()
        hub_id = PUBLISHED.get(language.name, language.name)
        names["language"] = hub_id if HUB_ID.fullmatch(hub_id) and not on_disk else None
    if trunk.weights == "published":
        timm_name = trunk.name.removeprefix(TIMM)
        names["visual"] = PUBLISHED.get(trunk.name) if timm_name == trunk.name else hub_name(timm_name)
    return {stream: name for stream, name in names.items() if name}


def _metadata(
    name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    data: Mapping[str, str],
    base_models: Sequence[str],
    stream: bool,
) -> str:
    described = ModelCardData(
        library_name="sentence-transformers" if stream else "groundray",
        pipeline_tag="sentence-similarity" if stream else None,
        tags=[*TAGS, *STREAM_TAGS] if stream else TAGS,
        base_model=list(base_models) or None,
        model_name=name,
        eval_results=results(settings, metrics, data) or None,
    )
    if described.eval_results is None:
        described.pop("model_name")  # which only a model-index has
    return described.to_yaml()
