"""Which tokens of a text count, and one vector for the tokens of a text or the positions of an image."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from groundray.device_copy import to_device
from groundray.special_tokens import BERT, SpecialTokens


def counted_tokens(
    mask: Bool[Tensor, "text token"], special_tokens: bool, added: SpecialTokens = BERT
) -> Bool[Tensor, "text token"]:
    """Return the mask of each text's tokens, with or without special tokens.

    Args:
        added: the special tokens that the tokenizer adds; BERT's are [CLS], a text's first token, and [SEP], its last.
    """
    if special_tokens:
        return mask
    number = mask.cumsum(dim=1)  # of a token in its text, from 1
    return mask & (number > added.before) & (number <= number[:, -1:] - added.after)


def mean_of_valid(x: Float[Tensor, "text token dim"], valid: Bool[Tensor, "text token"]) -> Float[Tensor, "text dim"]:
    """Return the mean over each text's valid tokens; 0 for a text without one.

    Args:
        valid: on the host or on the device of `x`.
    """
    valid = to_device(valid, x.device)
    counts = valid.sum(dim=1, keepdim=True).clamp(min=1)
    return (x * valid[:, :, None]).sum(dim=1) / counts


def pooled_images(V: Float[Tensor, "image position dim"]) -> Float[Tensor, "image 1 dim"]:
    """Return the mean over positions, at length 1, in at least float32."""
    wide = torch.promote_types(V.dtype, torch.float32)
    return F.normalize(V.mean(dim=1, keepdim=True, dtype=wide), dim=-1)


def pooled_texts(
    W: Float[Tensor, "text token dim"], valid: Bool[Tensor, "text token"]
) -> tuple[Float[Tensor, "text 1 dim"], Bool[Tensor, "text 1"]]:
    """Return the mean over valid tokens, at length 1, in at least float32, as a single token; 0 for a text without."""
    means = mean_of_valid(at_least_float32(W), valid)
    return F.normalize(means, dim=-1)[:, None], torch.ones(len(W), 1, dtype=torch.bool)


def at_least_float32(x: Tensor) -> Tensor:
    """Return the tensor in float32 if it is in bfloat16, else unchanged."""
    return x.float() if x.dtype == torch.bfloat16 else x
