"""The loss and the metrics of the visual stage against what they are by hand, of one class an image and of several."""

from __future__ import annotations

import math
from unittest.mock import Mock

import pytest
import reference
import torch
from torch import Tensor

from groundray import config
from groundray.data.plan import Plan
from groundray.data.stream import Source, Step
from groundray.stage.visual import Classified, VisualStage

IMAGES, CLASSES = 7, 4


def stage(several: bool) -> VisualStage:
    train = Mock(spec=Source, plan=Mock(spec=Plan, batch_size=IMAGES))
    return VisualStage(config.Visual(train="t", val="v", batch_size=IMAGES), train, train, {}, several=several)


def problem(several: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(IMAGES, CLASSES, dtype=torch.float64, generator=generator)
    if several:  # no image shows the last class
        return logits, torch.rand(IMAGES, CLASSES, generator=generator) < torch.tensor([0.4, 0.6, 0.3, 0.0])
    return logits, torch.randint(CLASSES, (IMAGES,), generator=generator)


def losses(logits: Tensor, labels: Tensor) -> list[float]:
    """Return the loss of each image, class by class."""
    found = []
    for scores, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if isinstance(label, list):
            odds = [score if shown else -score for score, shown in zip(scores, label, strict=True)]
            found.append(sum(math.log(1 + math.exp(-odd)) for odd in odds))
        else:
            found.append(math.log(sum(map(math.exp, scores))) - scores[label])
    return found


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("sizes", [(7,), (3, 4), (5, 0, 2)])
def test_the_loss_is_the_mean_over_images_in_any_chunks(several: bool, sizes: tuple[int, ...]) -> None:
    logits, labels = problem(several)
    chunks = [Classified(*parts) for parts in zip(logits.split(sizes), labels.split(sizes), strict=True)]
    loss, _ = stage(several).loss(chunks)
    assert loss.item() == pytest.approx(sum(losses(logits, labels)) / IMAGES, rel=1e-12)


@pytest.mark.parametrize("several", [False, True])
def test_metrics_are_those_of_all_images(several: bool) -> None:
    logits, labels = problem(several)
    parts = [Classified(*part) for part in zip(logits.split((4, 3, 0)), labels.split((4, 3, 0)), strict=True)]
    steps = [Step(0, 0, False, ((0, parts[0]),)), Step(0, 1, True, ((0, parts[1]), (1, parts[2])))]  # type: ignore[arg-type]
    found = stage(several).validate(lambda batch: batch, steps)
    assert found.pop("loss") == pytest.approx(sum(losses(logits, labels)) / IMAGES, rel=1e-12)
    if several:
        of_classes = zip(logits.T.tolist(), labels.T.tolist(), strict=True)
        shown = [reference.average_precision(*columns) for columns in of_classes if any(columns[1])]
        assert len(shown) == CLASSES - 1
        assert found == {"mean_average_precision": pytest.approx(sum(shown) / len(shown), rel=1e-12)}
    else:
        hits = [
            scores.index(max(scores)) == label for scores, label in zip(logits.tolist(), labels.tolist(), strict=True)
        ]
        assert found == {"top1": pytest.approx(sum(hits) / IMAGES), "top5": 1.0}
