"""A model that was taught where things are, so that what the page should show is known.

Contrastive training finds places by itself, in many more steps than a test has. Here the places are told: the boxes of
drawn scenes say at which positions a word's match map should be high, and after three hundred steps the model points at
what is named, in scenes that it has not seen. The vectors of search are not taught; they are what they began as.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from conftest import SmallWorld
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from groundray import config
from groundray.data.scenes.drawing import jpeg
from groundray.data.scenes.scene import Object, Scene, make_scene
from groundray.model import export
from groundray.model.build import build_head, build_model
from groundray.model.grounded import GroundedModel
from groundray.model.heads import GroundingHeads
from groundray.model.pretrained import load_tokenizer

STAGES = ("grounding", "relational", "retrieval")
VOCABULARY = {"classes": ("none",), "predicates": ("none",)}  # of the relational stage
SCENES, BATCH = 400, 32
STEPS = 300
SHARPNESS = 10.0  # of the cosines in the losses: the inverse of a temperature


def names(item: Object) -> tuple[str, str, str]:
    """Return the single words that name an object: its noun, its colour, its texture."""
    return item.noun, item.colour, item.texture


def named(scene: Scene, word: str) -> list[Object]:
    """The objects of a scene that a word names."""
    return [item for item in scene.objects if word in names(item)]


@dataclass(frozen=True)
class Lessons:
    """Scenes with their pictures, and for each word whether a position is on an object that it names."""

    words: list[str]
    pictures: UInt8[Tensor, "scene 3 height width"]
    on: Bool[Tensor, "scene position word"]


def teach(folder: Path, world: SmallWorld) -> None:
    """Write the export of a taught model, with the stages that search and match maps take, to `folder`."""
    settings = config.load("demo", world.settings(stages=",".join(STAGES)))
    tokenizer = load_tokenizer(settings.model.language)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as quick for a model of this size, and far quicker on a machine that is shared
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(settings.model)
        heads = {name: build_head(name, settings.model, model, VOCABULARY) for name in STAGES}
        writer = export.Writer(folder, settings, tokenizer, model, heads)
        for name, head in heads.items():
            model.heads[name] = head
        grid = model.visual.trunk.grid
        lessons = _lessons(grid.first + grid.stride * np.arange(grid.side))
        tokens = tokenizer(lessons.words, return_tensors="pt", padding=True)
        ids, mask = tokens["input_ids"], tokens["attention_mask"].bool()
        _teach(model, lessons, ids, mask)
    torch.set_num_threads(threads)
    for stage, words in zip(STAGES, ({}, VOCABULARY, {}), strict=True):
        writer.add(stage, model.state_dict(), {}, words)
    writer.close({})


def _lessons(middles: Float[np.ndarray, " side"]) -> Lessons:
    scenes = [make_scene(0, "lessons", index, index) for index in range(SCENES)]
    words = sorted({word for scene in scenes for item in scene.objects for word in names(item)})
    pictures = [np.asarray(Image.open(io.BytesIO(jpeg(scene)))).transpose(2, 0, 1) for scene in scenes]
    on = np.stack([[positions(named(scene, word), middles).ravel() for word in words] for scene in scenes])
    return Lessons(words, torch.from_numpy(np.stack(pictures)), torch.from_numpy(on).transpose(1, 2))


def positions(items: list[Object], middles: Float[np.ndarray, " side"]) -> Bool[np.ndarray, "side side"]:
    """Which places of a grid lie on one of some objects, or not further than half a place beside it.

    Args:
        middles: of the grid's rows, and of its columns, in pixels.
    """
    pitch = middles[1] - middles[0]
    found = np.zeros((len(middles), len(middles)), dtype=bool)
    for item in items:
        across = np.abs(middles - item.centre[0]) <= (item.extent + pitch) / 2
        down = np.abs(middles - item.centre[1]) <= (item.extent + pitch) / 2
        found |= down[:, None] & across[None, :]
    return found


def _teach(model: GroundedModel, lessons: Lessons, ids: Tensor, mask: Tensor) -> None:
    """Match maps: high on what a word names, where it is there, and nowhere, where it is not."""
    heads = model.head(GroundingHeads)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(STEPS):
        batch = torch.randint(SCENES, (BATCH,))
        V = F.normalize(heads.visual(model.visual(lessons.pictures[batch])), dim=-1)
        W = F.normalize(heads.language(model.language(ids, mask))[:, 1], dim=-1)
        optimizer.zero_grad()
        _loss(SHARPNESS * V @ W.T, lessons.on[batch]).backward()
        optimizer.step()
    model.eval()


def _loss(M: Float[Tensor, "scene position word"], on: Bool[Tensor, "scene position word"]) -> Tensor:
    there = on.any(dim=1)
    inside = M.log_softmax(dim=1).masked_fill(~on, -torch.inf).logsumexp(dim=1)
    best = M.amax(dim=1) - SHARPNESS / 2
    return -inside[there].mean() + F.binary_cross_entropy_with_logits(best, there.float())
