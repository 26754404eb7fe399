"""Top-k accuracy of predicates and objects, against the majority class and the same model without the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from groundray.analysis.measures.proportion import proportion_of
from groundray.analysis.result import Analysis, Measure, Table
from groundray.data.batches import SceneGraphBatch
from groundray.model.grounded import GroundedModel
from groundray.model.heads import Vocabulary
from groundray.stage.relational import TopKCounts, encode

UNKNOWN = -1


@dataclass(frozen=True)
class Relations:
    """Top-k accuracy of predicates and objects, from 0 to 1.

    Attributes:
        triplets, objects: number of triplets and objects.
        metrics: `predicate/top1`, `object/top5` and so on.
        without_image: the same metrics with every image blank.
        majority: fraction of the most frequent predicate, and of the most frequent class.
        unknown: number of omitted triplets and objects, whose predicate or class the model was not trained on.
    """

    triplets: int
    objects: int
    metrics: dict[str, float]
    without_image: dict[str, float]
    majority: dict[str, float]
    unknown: dict[str, int]


@torch.no_grad()
def relations(
    model: GroundedModel,
    batches: Iterable[SceneGraphBatch],
    special_tokens: bool,
    taught: Vocabulary,
    used: Vocabulary,
) -> Relations:
    """Evaluate a model of the relational stage on scene graphs.

    Args:
        taught: predicates and classes that the model was trained on.
        used: predicates and classes of the scene graphs. They are matched by name.

    Raises:
        ValueError: the two have no predicate in common, or there is no triplet.
    """
    predicates, classes = (_translation(used[kind], taught[kind]) for kind in ("predicates", "classes"))
    if (predicates == UNKNOWN).all():
        raise ValueError(
            f"the model knows none of the predicates of these shards ({', '.join(used['predicates'][:5])}); "
            f"it was trained with {', '.join(taught['predicates'][:5])}"
        )
    model.eval()
    seen, blind = TopKCounts(), TopKCounts()
    truth: dict[str, list[Tensor]] = {"predicate": [], "object": []}
    unknown = {"triplets": 0, "objects": 0}
    for batch in batches:
        known = predicates[batch.predicate] != UNKNOWN
        of_class = classes[batch.classes]
        named = of_class != UNKNOWN
        unknown["triplets"] += int((~known).sum())
        unknown["objects"] += int((~named).sum())
        asked = replace(batch, pairs=batch.pairs[known], predicate=predicates[batch.predicate][known])
        for counts, shown in ((seen, asked), (blind, asked.without_images(model.visual.blank))):
            scored = encode(model, shown, special_tokens)
            counts.add([scored._replace(logits=scored.logits[named], classes=of_class[named])])
        truth["predicate"].append(asked.predicate)
        truth["object"].append(of_class[named])
    found = {what: torch.cat(parts) for what, parts in truth.items()}
    if len(found["predicate"]) == 0:
        raise ValueError("these scene graphs have no relation that the model knows: there is nothing to find")
    return Relations(
        triplets=len(found["predicate"]),
        objects=len(found["object"]),
        metrics=seen.metrics(),
        without_image=blind.metrics(),
        majority={what: _majority(numbers) for what, numbers in found.items()},
        unknown=unknown,
    )


def _translation(used: tuple[str, ...], taught: tuple[str, ...]) -> Int[Tensor, " word"]:
    """Return the model's number for each word of the shards, or UNKNOWN."""
    numbers: Mapping[str, int] = {word: number for number, word in enumerate(taught)}
    return torch.tensor([numbers.get(word, UNKNOWN) for word in used])


def _majority(numbers: Int[Tensor, " item"]) -> float:
    return numbers.bincount().max().item() / len(numbers) if len(numbers) else 0.0


def analysis(found: Relations, model: str) -> Analysis:
    """Return the results as an analysis.

    Args:
        model: name of the language stream.
    """
    items = {"predicate": found.triplets, "object": found.objects}
    tops = [name.removeprefix("predicate/") for name in found.metrics if name.startswith("predicate/")]
    rows = [
        (
            f"{what}, {top.replace('top', 'top-')}",
            found.metrics[f"{what}/{top}"],
            found.without_image[f"{what}/{top}"],
            found.majority[what] if top == "top1" else None,
        )
        for what in items
        for top in tops
    ]
    return Analysis(
        "relations",
        "Which predicate a pair of objects has, and which class an object is, beside the same model without the image "
        "and the most frequent answer. Intervals are Wilson's (1927).",
        tuple(
            Measure(
                f"{what}/top1", f"{what}: top-1", count, {model: proportion_of(found.metrics[f"{what}/top1"], count)}
            )
            for what, count in items.items()
        ),
        (Table("Accuracy", ("", "with the image", "without", "majority"), tuple(rows)),),
        left_out={f"{what} of words that the model was not taught": count for what, count in found.unknown.items()},
    )
