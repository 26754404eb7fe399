"""The match map of an image and a caption, and the similarity computed from it (paper, stage 2).

M[l, t] = V[l] . W[t]                          image position l, caption token t
S(image, caption) = mean_t max_l M[l, t]       over the caption's valid tokens

The match maps of a batch are never stored: they are computed a tile at a time, and only the best position of each
image is kept for each token, in one or two bytes. Only that position has a gradient. Autograd would multiply by
matrices as large as the match maps, mostly zeros; this backward pass adds up the best rows:

dW[t] = sum_image  g[image, caption of t] / tokens  V[image, best(image, t)]
dV[l] = sum_t      g[image, caption of t] / tokens  W[t]                          over tokens t that l is best for

Both are sums of weighted rows (`embedding_bag`), each computed by one thread in a fixed order: results have the same
bits every time, without atomic additions on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

from groundray.device_copy import to_device

Kind = Literal["dot", "cosine"]


class Sizes(NamedTuple):
    """How much is computed at a time.

    Attributes:
        tokens: columns of a tile of the match maps in the forward pass, about.
        tile: numbers in a tile.
        rows: numbers in a block of rows in the backward pass, of which four are held at a time.
    """

    tokens: int
    tile: int
    rows: int


# On a CPU, a tile of 2 MB in float32 stays in the caches between the product and the maximum: 184 GFLOP/s on two Zen 4
# cores, against 145 with tiles of 4,096 tokens and 90 with one product of all. Rows of 7 MB are 11 images of 196
# positions and width 768: half the size takes 1.25 times the time; nearly twice the size takes 0.85 times the time and
# twice the memory.
#
# A GPU is fast where launches are few and large. With 256 MB in float32, a batch of 180 in four chunks takes a tile and
# a block of rows for each chunk; a rank's 512 images and 4,096 captions of 14 tokens take 98 tiles of 0.1 TFLOP and 3
# blocks. The sizes for a GPU are not measured.
SIZES = {"cpu": Sizes(512, 2**19, 7 * 2**18), "cuda": Sizes(4096, 2**26, 2**26)}


def match_map(
    V: Float[Tensor, "position dim"], W: Float[Tensor, "token dim"], kind: Kind = "dot"
) -> Float[Tensor, "position token"]:
    """Return the match of each position of an image with each token of a caption."""
    return normalised(V, kind) @ normalised(W, kind).T


def similarity(
    V: Float[Tensor, "image position dim"],
    W: Float[Tensor, "caption token dim"],
    valid: Bool[Tensor, "caption token"],
    kind: Kind = "dot",
) -> Float[Tensor, "image caption"]:
    """Return the similarity of each image and each caption: the mean over valid tokens of the best position's match.

    A caption without a valid token has similarity 0 to every image, and no gradient. Among positions that match a
    token equally well, the first has the gradient. Half precision is multiplied as it is; sums, the result and the
    gradients until their end are in float32.
    """
    return similarity_to_words(normalised(V, kind), normalised(W, kind).flatten(0, 1), valid)


def similarity_to_words(
    V: Float[Tensor, "image position dim"],
    words: Float[Tensor, "word dim"],
    valid: Bool[Tensor, "caption token"],
    block: int | None = None,
) -> Float[Tensor, "image caption"]:
    """Return the similarity (dot product) of each image and each caption, given the tokens as one list.

    Args:
        words: the valid tokens of all captions, caption after caption; or all tokens, valid or not. They are multiplied
            in the type of V, in which they must be exact.
        valid: True for the valid tokens of each caption. Read on the host: a mask on a GPU makes it wait.
        block: number of images, counted from the first, that are multiplied together at most. An image's row, its
            gradient and its part of the words' gradient have the same bits in all calls with the same block and the
            same captions, whatever the other blocks are.
    """
    keep = torch.is_grad_enabled() and (V.requires_grad or words.requires_grad)
    S, _ = torch.ops.groundray.best_matches(V, words, valid, block or max(1, V.shape[0]), keep)
    return S


def normalised(x: Tensor, kind: Kind) -> Tensor:
    """Return embeddings, scaled to length 1 for cosine. Lengths of half precision are computed in float32."""
    return F.normalize(x.to(_wide(x)), dim=-1).to(x.dtype) if kind == "cosine" else x


def images_at_a_time(device: str, positions: int) -> int:
    """Return the number of images whose positions are multiplied with a tile's tokens in one product."""
    sizes = sizes_on(device)
    return max(1, sizes.tile // (sizes.tokens * max(1, positions)))


def position_type(positions: int) -> torch.dtype:
    """Return the smallest integer type that holds the indices of so many positions."""
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32) if positions - 1 <= torch.iinfo(kind).max)


# Two operators, opaque to torch.compile, as their loops depend on the number of valid tokens. `torch.library.custom_op`
# is not used: its first call imports the compiler, which takes 3.6 s in every process that never compiles.

torch.library.define(
    "groundray::best_matches", "(Tensor V, Tensor words, Tensor valid, SymInt block, bool keep) -> (Tensor, Tensor)"
)
torch.library.define(
    "groundray::best_matches_gradient",
    "(Tensor gradient, Tensor V, Tensor words, Tensor valid, Tensor best, SymInt block) -> (Tensor, Tensor)",
)


@torch.library.impl("groundray::best_matches", "default")
def _best_matches(V: Tensor, words: Tensor, valid: Tensor, block: int, keep: bool) -> tuple[Tensor, Tensor]:
    """Return S, and the best position in each image of each valid token (empty unless `keep`)."""
    tokens = _Tokens.of(words, valid)
    images, positions, _ = V.shape
    S = V.new_zeros(images, len(tokens.ends), dtype=_wide(V))
    best = V.new_empty(images, len(tokens.caption) if keep else 0, dtype=position_type(positions))
    if positions == 1:
        best.zero_()
    sizes, multiplied = sizes_on(V.device.type), _multiplied(V)
    group = images_at_a_time(V.device.type, positions)
    with torch.autocast(V.device.type, enabled=False):
        for captions, span in tokens.tiles(sizes.tokens):
            W, count = tokens.rows_of(span, multiplied), span.stop - span.start
            highest = S.new_empty(images, count)
            tile = S.new_empty(min(group, block, images) * positions if positions > 1 else 0, count)
            for part in _blocks(images, block, group):
                rows = _aligned(V[part].flatten(0, 1).to(multiplied))
                if positions == 1:
                    _product(rows, W.T, highest[part])
                    continue
                matches = _product(rows, W.T, tile[: len(rows)]).unflatten(0, (-1, positions))
                if keep:
                    highest[part], best[part, span] = matches.max(dim=1)
                else:
                    highest[part] = matches.amax(dim=1)
            S[:, captions] = highest if tokens.one_each(captions) else _means(highest, tokens.counts[captions])
    return S, best


@torch.library.register_fake("groundray::best_matches")
def _(V: Tensor, words: Tensor, valid: Tensor, block: int, keep: bool) -> tuple[Tensor, Tensor]:
    tokens = torch.library.get_ctx().new_dynamic_size() if keep else 0
    S = V.new_empty(V.shape[0], valid.shape[0], dtype=_wide(V))
    return S, V.new_empty(V.shape[0], tokens, dtype=position_type(V.shape[1]))


@torch.library.impl("groundray::best_matches_gradient", "default")
def _gradients(
    gradient: Tensor, V: Tensor, words: Tensor, valid: Tensor, best: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of V and of the words, given that of S. The words' gradient is summed block by block."""
    tokens = _Tokens.of(words, valid)
    images, positions, dim = V.shape
    size = sizes_on(V.device.type).rows
    to_V, to_words = torch.zeros_like(V, dtype=_wide(V)), torch.zeros_like(words, dtype=_wide(V))
    weights = gradient / tokens.counts.clamp(min=1)
    with torch.autocast(V.device.type, enabled=False):
        for _, span in tokens.tiles(max(1, size // max(1, dim))):
            W = tokens.rows_of(span, to_V.dtype)
            to_W = torch.zeros_like(W)
            of_block = to_W if block >= images else torch.zeros_like(W)
            # an image takes its rows, and 8 bytes for each token's index in sorted order
            group = max(1, size // max(1, positions * dim, 6 * len(W)))
            for part in _blocks(images, block, group):
                rows = V[part].flatten(0, 1).to(to_V.dtype)
                winner, weight = best[part, span], weights[part].index_select(1, tokens.caption[span])
                of_block.add_(_bags_of_positions(rows, winner, weight))
                if of_block is not to_W and (part.stop % block == 0 or part.stop == images):
                    to_W.add_(of_block)
                    of_block.zero_()
                to_V[part].add_(_bags_of_words(W, winner, weight, positions).unflatten(0, (-1, positions)))
            to_words[span if tokens.rows is None else tokens.rows[span]] = to_W
    return to_V.to(V.dtype), to_words.to(words.dtype)


@torch.library.register_fake("groundray::best_matches_gradient")
def _(gradient: Tensor, V: Tensor, words: Tensor, valid: Tensor, best: Tensor, block: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(V), torch.empty_like(words)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    V, words, valid, ctx.block, _ = inputs
    ctx.save_for_backward(V, words, valid, output[1])
    ctx.set_materialize_grads(False)  # positions have no gradient: no zeros for it


def _backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    gradients = torch.ops.groundray.best_matches_gradient(gradient, *ctx.saved_tensors, ctx.block)
    return *gradients, None, None, None


torch.library.register_autograd("groundray::best_matches", _backward, setup_context=_keep_inputs)


class _Tokens(NamedTuple):
    """The valid tokens of all captions, caption after caption.

    Attributes:
        words: embeddings of the tokens, possibly among others.
        rows: rows of `words` that are valid tokens; None if all are.
        caption: index of each token's caption.
        counts: number of tokens of each caption.
        ends: end of each caption's tokens in the list of valid tokens.
    """

    words: Tensor
    rows: Tensor | None
    caption: Tensor
    counts: Tensor
    ends: list[int]

    @staticmethod
    def of(words: Tensor, valid: Tensor) -> _Tokens:
        valid = valid.cpu()
        counts = valid.sum(dim=1)
        ends = counts.cumsum(dim=0).tolist()
        all_valid = len(words) == (ends[-1] if ends else 0)
        caption = torch.arange(len(ends)).repeat_interleave(counts)
        return _Tokens(
            words,
            None if all_valid else to_device(valid.flatten().nonzero().squeeze(1), words.device),
            to_device(caption, words.device),
            to_device(counts, words.device),
            ends,
        )

    def rows_of(self, span: slice, dtype: torch.dtype) -> Float[Tensor, "token dim"]:
        """Return the embeddings of some tokens in a type."""
        rows = self.words[span] if self.rows is None else self.words.index_select(0, self.rows[span])
        return _aligned(rows.to(dtype).contiguous())

    def one_each(self, captions: slice) -> bool:
        """Return True if each caption of a range has one token: its mean is that token's match."""
        before = self.ends[captions.start - 1] if captions.start else 0
        ends = self.ends[captions]
        return ends[-1] - before == len(ends) and ends == list(range(before + 1, before + 1 + len(ends)))

    def tiles(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Yield ranges of captions and of their tokens: each the fewest captions that have `size` tokens together."""
        first = start = 0
        for caption, end in enumerate(self.ends):
            if end > start and (end - start >= size or end == self.ends[-1]):
                yield slice(first, caption + 1), slice(start, end)
                first, start = caption + 1, end


def _blocks(count: int, block: int, group: int) -> Iterator[slice]:
    """Yield ranges of at most `group` of `count` images, none of which spans two blocks."""
    for start in range(0, count, block):
        end = min(start + block, count)
        yield from (slice(first, min(first + group, end)) for first in range(start, end, group))


def _means(
    highest: Float[Tensor, "image token"], counts: Integer[Tensor, " caption"]
) -> Float[Tensor, "image caption"]:
    """Return the mean over each caption's tokens, 0 for none. The sum does not depend on the rest of the tile."""
    starts = counts.cumsum(dim=0) - counts
    tokens = torch.arange(highest.shape[1], device=highest.device)
    return (F.embedding_bag(tokens, highest.T.contiguous(), starts, mode="sum") / counts.clamp(min=1)[:, None]).T


def _bags_of_positions(
    V: Float[Tensor, "row dim"], winner: Integer[Tensor, "image token"], weight: Float[Tensor, "image token"]
) -> Float[Tensor, "token dim"]:
    """Return, for each token, the weighted sum over images of the best position's embedding."""
    first = torch.arange(0, len(V), len(V) // len(winner), device=V.device)
    return F.embedding_bag(winner.T + first, V, per_sample_weights=weight.T.contiguous(), mode="sum")


def _bags_of_words(
    W: Float[Tensor, "token dim"],
    winner: Integer[Tensor, "image token"],
    weight: Float[Tensor, "image token"],
    positions: int,
) -> Float[Tensor, "row dim"]:
    """Return, for each position of each image, the weighted sum of the tokens that it matches best."""
    order = _sorted(winner)
    indices = torch.arange(positions, dtype=winner.dtype, device=winner.device).expand(len(winner), -1)
    starts = torch.searchsorted(winner.gather(1, order), indices.contiguous())
    starts += torch.arange(0, winner.numel(), winner.shape[1], device=winner.device)[:, None]
    weights = weight.gather(1, order).flatten()
    return F.embedding_bag(order.flatten(), W, starts.flatten(), per_sample_weights=weights, mode="sum")


def _sorted(winner: Integer[Tensor, "image token"]) -> Integer[Tensor, "image token"]:
    """Return the tokens of each image sorted by their best position, stably."""
    if winner.device.type == "cpu":
        # NumPy sorts small integers by radix: a million in 2 ms, where torch takes 56
        return torch.from_numpy(np.argsort(winner.numpy(), axis=1, kind="stable"))
    return winner.sort(dim=1, stable=True).indices


def _aligned(x: Tensor) -> Tensor:
    """Return the tensor aligned to a cache line: BLAS may add in another order where it is not.

    An image's offset differs with the number of ranks, and its sums must not. Rows whose width is a multiple of 16
    float32 are aligned already.
    """
    return x if x.data_ptr() % 64 == 0 else x.clone()


def sizes_on(device: str) -> Sizes:
    """Return how much is computed at a time on a kind of device, such as `cuda`."""
    return SIZES.get(device, SIZES["cpu"])


def _multiplied(x: Tensor) -> torch.dtype:
    """Return the type of a product's factors: a GPU multiplies half precision as it is."""
    return x.dtype if x.device.type == "cuda" else _wide(x)


def _product(a: Float[Tensor, "row inner"], b: Float[Tensor, "inner column"], out: Tensor) -> Tensor:
    """Return the matrix product, written to `out` and accumulated in its type."""
    return torch.mm(a, b, out=out) if a.dtype == out.dtype else torch.mm(a, b, out_dtype=out.dtype, out=out)


def _wide(x: Tensor) -> torch.dtype:
    """Return the type to accumulate in: float32 for half precision, else the tensor's own."""
    return torch.promote_types(x.dtype, torch.float32)
