"""Two-way NT-Xent: of each image its caption is found, and of each caption its image, among all of the batch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def two_way_nt_xent(S: Float[Tensor, "sample sample"], temperature: float) -> Float[Tensor, ""]:
    """The mean over the batch of  -log softmax_j(S_ij / tau)[i] - log softmax_i(S_ij / tau)[j]  (paper, stage 2).

    An empty batch has loss 0.
    """
    if S.numel() == 0:
        return S.sum()
    logits = S / temperature
    own = -F.log_softmax(logits, dim=1).diagonal() - F.log_softmax(logits, dim=0).diagonal()
    return own.mean()
