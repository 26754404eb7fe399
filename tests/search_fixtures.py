"""An untrained model with search heads, and the paths of its pool, index and norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from groundray import config
from groundray.image_search.query import Search
from groundray.image_search.towers import Towers
from groundray.model import export
from groundray.model.build import build_head, build_model
from groundray.model.pretrained import load_tokenizer

TOKEN = "s3cret-T0ken/of+a~service"
STAGES = ("grounding", "relational", "retrieval")


@dataclass(frozen=True)
class SearchPaths:
    """Paths of a model, its pool, its index and the norms."""

    checkpoint: str
    images: str
    index: str
    norms: str

    @property
    def options(self) -> list[str]:
        """Command-line options that name these paths."""
        return ["--checkpoint", self.checkpoint, "--images", self.images, "--index", self.index, "--rerank", "0"]

    def search(self) -> Search:
        return Search.open(self.checkpoint, self.images, self.index, rerank=0)


@dataclass(frozen=True)
class Trap:
    """Towers that cannot embed one text.

    Attributes:
        asked: the texts of each call.
    """

    towers: Towers
    text: str
    error: Exception
    asked: list[list[str]] = field(default_factory=list)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append([*texts])
        if self.text in texts:
            raise self.error
        return self.towers.embed_texts(texts)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.towers, name)


def write_model(
    folder: Path, world: Any, stages: Sequence[str] = STAGES, seed: int = 0, options: Sequence[str] = ()
) -> str:
    """Export an untrained model of some stages. Its language stream differs from the ungrounded one.

    Args:
        options: further settings, such as `--retrieval.resize=120`.
    """
    words = {"classes": ("circle.n.01", "star.n.01"), "predicates": ("above",)}
    settings = config.load("demo", [*world.settings(stages=",".join(STAGES)), *options])
    torch.manual_seed(seed)
    model = build_model(settings.model)
    writer = export.Writer(folder, settings, load_tokenizer(settings.model.language), model, {})
    heads = {stage: build_head(stage, settings.model, model, words, seed) for stage in STAGES}
    needs = {"retrieval": ("relational", "retrieval")}
    with torch.no_grad():
        for parameter in (*model.language.parameters(), *heads["retrieval"].parameters()):
            parameter.add_(0.02 * torch.randn_like(parameter))
    for stage in stages:
        model.heads = nn.ModuleDict({name: heads[name] for name in needs.get(stage, (stage,))})
        writer.add(stage, model.state_dict(), {"loss": 0.5}, words if stage == "relational" else {})
    writer.close({})
    return str(folder)
