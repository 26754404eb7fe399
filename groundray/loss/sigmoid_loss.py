"""The pairwise sigmoid loss over the global batch (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training").

Every pair of an image and a caption is a decision of its own: no row or column of the similarity matrix is needed
whole. Words are sent to all ranks; each rank computes the pairs of its own images, a tile of the matrix at a time, with
the gradient in the same pass. A tile is then forgotten: no rank ever holds the matrix, or the best positions of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from groundray.distributed import gather_words, on_every_rank, rank, sum_over_chunks
from groundray.loss.match_map import Kind, normalised, sizes_on


def sigmoid_loss(
    V: Float[Tensor, "own_sample position dim"],
    W: Float[Tensor, "own_sample token dim"],
    valid: Bool[Tensor, "own_sample token"],
    temperature: float | Float[Tensor, " own_sample"],
    bias: float | Float[Tensor, " own_sample"],
    kind: Kind = "dot",
    chunks: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """Return the sigmoid loss of the global batch, the same on every rank; 0 for an empty batch.

    It is the sum over all pairs of an image i and a caption j, divided by the number of samples, of

        -log sigmoid(z_ij (S_ij / temperature + bias)),    z_ij = 1 if i = j, else -1

    Args:
        V: embeddings of this rank's images.
        W: embeddings of this rank's captions, padded.
        valid: True for the tokens that the similarity averages over.
        temperature, bias: of the logits; a learned one as the same number for each of this rank's samples, whose
            gradients are the parts of its gradient.
        kind: similarity of a position and a token.
        chunks: number of samples of each of this rank's chunks, of which some may be empty; None for a single chunk.
            The same chunks give a loss of the same bits on any number of ranks.
    """
    sizes = list(chunks) if chunks else [len(V)]
    V = normalised(V, kind)
    words, valid = gather_words(normalised(W, kind), valid)
    wide = torch.promote_types(V.dtype, torch.float32)
    if len(valid) == 0:
        return V.sum(dtype=wide)
    rows = [x if isinstance(x, Tensor) else V.new_full((len(V),), x, dtype=wide) for x in (temperature, bias)]
    return _SigmoidLoss.apply(V, words, *rows, valid, sizes, torch.is_grad_enabled())


class _SigmoidLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        V: Tensor,
        words: Tensor,
        temperature: Tensor,
        bias: Tensor,
        valid: Tensor,
        sizes: Sequence[int],
        keep: bool,
    ) -> Tensor:
        wide = torch.promote_types(V.dtype, torch.float32)
        samples_of, chunks_of = on_every_rank(len(V), len(sizes))
        first, samples = sum(samples_of[: rank()]), len(valid)
        keep = keep and any(ctx.needs_input_grad)
        sources = (V, words, temperature, bias) if keep else ()
        words = words.to(wide)  # the gradient of words is summed over blocks, in their type
        losses = [V.new_zeros((), dtype=wide) for _ in sizes]
        blocks = list(_blocks(sizes, max(1, sizes_on(V.device.type).tile // samples)))
        gradients = [torch.zeros_like(x, dtype=wide) for x in sources] if len(blocks) != 1 else []
        for chunk, rows in blocks:
            block = rows.stop - rows.start
            S, best = torch.ops.groundray.best_matches(V[rows], words, valid, block, keep)
            scale = temperature[rows, None]
            x = S / scale + bias[rows, None]
            matched = x.diagonal(first + rows.start)  # those of this block's images
            matched.neg_()
            losses[chunk] -= F.logsigmoid(-x).sum()
            if keep:
                to_x = x.sigmoid_().div_(samples)
                matched.neg_()
                to_V, to_words = torch.ops.groundray.best_matches_gradient(
                    to_x / scale, V[rows], words, valid, best, block
                )
                parts = to_V, to_words, -(to_x * S).sum(dim=1) / temperature[rows] ** 2, to_x.sum(dim=1)
                gradients = gradients or list(parts)
                if len(blocks) > 1:
                    for whole, part, place in zip(gradients, parts, (rows, slice(None), rows, rows), strict=True):
                        whole[place] += part
        ctx.gradients = [whole.to(x.dtype) for whole, x in zip(gradients, sources, strict=True)]
        return sum_over_chunks(losses, chunks_of) / samples

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  torch declares the decorator otherwise
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        found, ctx.gradients = ctx.gradients, ()  # multiplied in place, once: V's takes as much memory as V
        return *(x.mul_(gradient) for x in found), None, None, None


def _blocks(sizes: Sequence[int], most: int) -> Iterator[tuple[int, slice]]:
    """Yield each chunk's number and ranges of at most `most` of its samples."""
    start = 0
    for chunk, size in enumerate(sizes):
        end = start + size
        yield from ((chunk, slice(first, min(first + most, end))) for first in range(start, end, most))
        start = end
