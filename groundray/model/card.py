"""The model card of an exported model: data, results and settings, as Markdown with the hub's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


def card(
    name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    data: Mapping[str, str],
) -> str:
    """Return the model card.

    Args:
        settings: the run's settings.
        metrics: validation metrics of each stage that trained the model.
        data: a line about each data set, by `stage.part`; those of other stages are left out.
    """
    stages = list(metrics)
    sections = [
        "---\nlibrary_name: transformers\ntags: [groundray, visually-grounded-language]\n---",
        f"# {name}",
        "A language model grounded in vision, trained by groundray in the stages "
        + ", ".join(stages)
        + ". It follows *Explainable Semantic Space by Grounding Language to Vision with Cross-Modal Contrastive "
        "Learning* (Zhang, Choi, Han and Liu, NeurIPS 2021).",
        "## Data\n\n" + "\n".join(f"- `{part}`: {line}" for part, line in data.items() if part.split(".")[0] in stages),
        "## Results\n\nOn the validation data, at each stage's best epoch. `without_image` is the same model with "
        "blank images.\n\n| stage | metric | value |\n|---|---|---|\n"
        + "\n".join(
            f"| {stage} | {metric} | {value:.4g} |"
            for stage, values in metrics.items()
            for metric, value in values.items()
        ),
        "## Settings\n\n```yaml\n" + yaml.safe_dump(dict(settings), sort_keys=False, width=100) + "```",
    ]
    return "\n\n".join(sections) + "\n"
