"""Top-k accuracy, counted in a way that can be added up over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOP = (1, 5, 10)


def hits(
    scores: Float[Tensor, "sample option"], truth: Int[Tensor, " sample"], at: Sequence[int] = TOP
) -> Int[Tensor, " k"]:
    """How many samples have their own option among the k highest scores, for each k.

    Ties count against the sample: a model that finds every option alike is right only by having but k of them.
    """
    own = scores.gather(1, truth[:, None])
    better = (scores >= own).sum(dim=1)
    return torch.stack([(better <= k).sum() for k in at])
