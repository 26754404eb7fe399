"""The match map and the similarity of an image and a caption that it gives (paper, stage 2).

M[l, t] = V[l] . W[t]                          image position l, caption token t
S(image, caption) = mean_t max_l M[l, t]       over the caption's valid tokens

The match maps of a batch are never held: they are made a tile at a time, and of each token only the best position of
each image is kept, in a byte or two. Only that position has a gradient, so where autograd would multiply two matrices
as large as the match maps, mostly zeros, the backward pass adds up the rows that won:

dW[t] = sum_image  g[image, caption of t] / tokens  V[image, best(image, t)]
dV[l] = sum_t      g[image, caption of t] / tokens  W[t]                          over tokens t that l is best for

Both are bags of weighted rows (`embedding_bag`), each summed by one thread in a fixed order: the same bits at each
repeat, and no atomic additions on a GPU either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["dot", "cosine"]

# A tile of the match maps in the forward pass: about TOKENS columns, and rows to make up TILE numbers. 2 MB in float32
# stays in the caches between the product and the maximum: both together do 184 GFLOP/s on two Zen 4 cores, where tiles
# of 4,096 tokens do 145 and one product of everything 90.
TOKENS = 512
TILE = {"cpu": 2**19, "cuda": 2**24}  # a GPU wants products that fill it; its number is not measured

# Numbers of a block of rows in the backward pass, four of them at a time: 7 MB in float32, as 11 images of 196
# positions of width 768. Half as many take 1.25 times the time; nearly twice as many take 0.85 times, and twice the
# memory.
ROWS = 7 * 2**18


def match_map(
    V: Float[Tensor, "position dim"], W: Float[Tensor, "token dim"], kind: Kind = "dot"
) -> Float[Tensor, "position token"]:
    """How well each position of an image matches each token of a caption."""
    V, W = normalised(V, W, kind)
    return V @ W.T


def similarity(
    V: Float[Tensor, "image position dim"],
    W: Float[Tensor, "caption token dim"],
    valid: Bool[Tensor, "caption token"],
    kind: Kind = "dot",
) -> Float[Tensor, "image caption"]:
    """The similarity of each image and each caption: the mean over valid tokens of the best position's match.

    A caption without a valid token has similarity 0 to every image, and no gradient. Of positions that match a token
    equally well, the first has the gradient. Half precision is multiplied and added in float32, which S then has too.
    """
    V, W = normalised(V, W, kind)
    return similarity_to_words(V, W.flatten(0, 1), valid)


def similarity_to_words(
    V: Float[Tensor, "image position dim"],
    words: Float[Tensor, "word dim"],
    valid: Bool[Tensor, "caption token"],
    block: int | None = None,
) -> Float[Tensor, "image caption"]:
    """The similarity (dot) of each image and each caption, whose tokens come as one list.

    Args:
        words: the valid tokens of all captions, one caption after the other; or all tokens, valid or not.
        block: images that are multiplied together at most, counted from the first. An image's row, its gradient and
            what it adds to the words' have the same bits in any call in which its block and the captions are the same,
            whatever other blocks there are.
    """
    keep = torch.is_grad_enabled() and (V.requires_grad or words.requires_grad)
    S, _ = torch.ops.groundray.best_matches(V, words, valid, block or max(1, V.shape[0]), keep)
    return S


def normalised(V: Tensor, W: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Both embeddings, at length 1 for cosine."""
    return (F.normalize(V, dim=-1), F.normalize(W, dim=-1)) if kind == "cosine" else (V, W)


def position_type(positions: int) -> torch.dtype:
    """The smallest type that holds the number of each position, from 0."""
    return next(kind for kind in (torch.uint8, torch.int16, torch.int32) if positions - 1 <= torch.iinfo(kind).max)


# Two operators, opaque to torch.compile: their loops depend on how many tokens are valid. They are not defined with
# `torch.library.custom_op`, whose first call imports the compiler: 3.6 s of every process that never compiles.

torch.library.define(
    "groundray::best_matches", "(Tensor V, Tensor words, Tensor valid, SymInt block, bool keep) -> (Tensor, Tensor)"
)
torch.library.define(
    "groundray::best_matches_gradient",
    "(Tensor gradient, Tensor V, Tensor words, Tensor valid, Tensor best, SymInt block) -> (Tensor, Tensor)",
)


@torch.library.impl("groundray::best_matches", "default")
def _best_matches(V: Tensor, words: Tensor, valid: Tensor, block: int, keep: bool) -> tuple[Tensor, Tensor]:
    """S, and the best position in each image of each valid token where it is to be kept."""
    tokens = _Tokens.of(words, valid)
    images, positions, _ = V.shape
    S = V.new_zeros(images, len(tokens.ends), dtype=_wide(V))
    best = V.new_empty(images, len(tokens.caption) if keep else 0, dtype=position_type(positions))
    group = max(1, TILE.get(V.device.type, TILE["cpu"]) // (TOKENS * max(1, positions)))
    with torch.autocast(V.device.type, enabled=False):
        for captions, span in tokens.tiles(TOKENS):
            W, count = tokens[span], span.stop - span.start
            highest = S.new_empty(images, count)
            tile = S.new_empty(min(group, images) * positions, count)
            for some in _blocks(images, block, group):
                rows = _aligned(V[some].flatten(0, 1).to(S.dtype))
                matches = torch.mm(rows, W.T, out=tile[: len(rows)]).unflatten(0, (-1, positions))
                if keep:
                    highest[some], best[some, span] = matches.max(dim=1)
                else:
                    highest[some] = matches.amax(dim=1)
            S[:, captions] = _means(highest, tokens.counts[captions])
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
    """The gradients of V and of the words, given that of S. The words' is a sum over blocks of images."""
    tokens = _Tokens.of(words, valid)
    images, positions, dim = V.shape
    to_V, to_words = torch.zeros_like(V, dtype=_wide(V)), torch.zeros_like(words, dtype=_wide(V))
    shares = gradient / tokens.counts.clamp(min=1)
    with torch.autocast(V.device.type, enabled=False):
        for _, span in tokens.tiles(max(1, ROWS // max(1, dim))):
            W = tokens[span]
            to_W = torch.zeros_like(W)
            of_block = to_W if block >= images else torch.zeros_like(W)
            # an image takes its rows, and of each token where it stands in which order, in 8 bytes each
            group = max(1, ROWS // max(1, positions * dim, 6 * len(W)))
            for some in _blocks(images, block, group):
                rows = V[some].flatten(0, 1).to(to_V.dtype)
                winner, share = best[some, span], shares[some].index_select(1, tokens.caption[span])
                of_block.add_(_bags_of_positions(rows, winner, share))
                if of_block is not to_W and (some.stop % block == 0 or some.stop == images):
                    to_W.add_(of_block)
                    of_block.zero_()
                to_V[some].add_(_bags_of_words(W, winner, share, positions).unflatten(0, (-1, positions)))
            to_words[span if tokens.rows is None else tokens.rows[span]] = to_W
    return to_V.to(V.dtype), to_words.to(words.dtype)


@torch.library.register_fake("groundray::best_matches_gradient")
def _(gradient: Tensor, V: Tensor, words: Tensor, valid: Tensor, best: Tensor, block: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(V), torch.empty_like(words)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    V, words, valid, ctx.block, _ = inputs
    ctx.save_for_backward(V, words, valid, output[1])
    ctx.set_materialize_grads(False)  # the positions have none, and zeros in its place would take as much as they do


def _backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    of_both = torch.ops.groundray.best_matches_gradient(gradient, *ctx.saved_tensors, ctx.block)
    return *of_both, None, None, None


torch.library.register_autograd("groundray::best_matches", _backward, setup_context=_keep_inputs)


class _Tokens(NamedTuple):
    """The valid tokens of all captions, one after the other: padding costs nothing.

    Attributes:
        words: embeddings that the tokens are among.
        rows: which of them the tokens are; None where they are all of them.
        caption: of each token.
        counts: of each caption's tokens.
        ends: where each caption's tokens end.
    """

    words: Tensor
    rows: Tensor | None
    caption: Tensor
    counts: Tensor
    ends: list[int]

    @staticmethod
    def of(words: Tensor, valid: Tensor) -> _Tokens:
        counts = valid.sum(dim=1)
        ends = counts.cumsum(dim=0).tolist()
        every = len(words) == (ends[-1] if ends else 0)
        return _Tokens(
            words,
            None if every else valid.flatten().nonzero().squeeze(1),
            torch.arange(len(ends), device=valid.device).repeat_interleave(counts),
            counts,
            ends,
        )

    def __getitem__(self, span: slice) -> Tensor:  # type: ignore[override]
        rows = self.words[span] if self.rows is None else self.words.index_select(0, self.rows[span])
        return _aligned(rows.to(_wide(rows)).contiguous())

    def tiles(self, size: int) -> Iterator[tuple[slice, slice]]:
        """Captions next to each other, and their tokens: the fewest captions that have `size` tokens together."""
        first = start = 0
        for caption, end in enumerate(self.ends):
            if end > start and (end - start >= size or end == self.ends[-1]):
                yield slice(first, caption + 1), slice(start, end)
                first, start = caption + 1, end


def _blocks(count: int, block: int, group: int) -> Iterator[slice]:
    """At most `group` of `count` images at a time, and never of two blocks."""
    for start in range(0, count, block):
        end = min(start + block, count)
        yield from (slice(first, min(first + group, end)) for first in range(start, end, group))


def _means(
    highest: Float[Tensor, "image token"], counts: Integer[Tensor, " caption"]
) -> Float[Tensor, "image caption"]:
    """The mean over each caption's tokens, added one by one whatever else is in the tile; of none it is 0."""
    starts = counts.cumsum(dim=0) - counts
    tokens = torch.arange(highest.shape[1], device=highest.device)
    return (F.embedding_bag(tokens, highest.T.contiguous(), starts, mode="sum") / counts.clamp(min=1)[:, None]).T


def _bags_of_positions(
    V: Float[Tensor, "row dim"], winner: Integer[Tensor, "image token"], share: Float[Tensor, "image token"]
) -> Float[Tensor, "token dim"]:
    """The sum over images of their positions that won a token, for each token."""
    first = torch.arange(0, len(V), len(V) // len(winner), device=V.device)
    return F.embedding_bag(winner.T + first, V, per_sample_weights=share.T.contiguous(), mode="sum")


def _bags_of_words(
    W: Float[Tensor, "token dim"],
    winner: Integer[Tensor, "image token"],
    share: Float[Tensor, "image token"],
    positions: int,
) -> Float[Tensor, "row dim"]:
    """The sum over tokens that a position has won, for each position of each image."""
    order = _sorted(winner)
    places = torch.arange(positions, dtype=winner.dtype, device=winner.device).expand(len(winner), -1)
    starts = torch.searchsorted(winner.gather(1, order), places.contiguous())
    starts += torch.arange(0, winner.numel(), winner.shape[1], device=winner.device)[:, None]
    weights = share.gather(1, order).flatten()
    return F.embedding_bag(order.flatten(), W, starts.flatten(), per_sample_weights=weights, mode="sum")


def _sorted(winner: Integer[Tensor, "image token"]) -> Integer[Tensor, "image token"]:
    """The tokens of each image in the order of their positions; of the same position in their own."""
    if winner.device.type == "cpu":
        # numpy sorts small integers by their digits: a million in 2 ms, where torch takes 56
        return torch.from_numpy(np.argsort(winner.numpy(), axis=1, kind="stable"))
    return winner.sort(dim=1, stable=True).indices


def _aligned(x: Tensor) -> Tensor:
    """The tensor on a cache line's edge: a matrix library may add in another order where it is not.

    Which images come first differs from rank to rank, and their sums must not. A width that is a multiple of 16 float32
    is there already.
    """
    return x if x.data_ptr() % 64 == 0 else x.clone()


def _wide(x: Tensor) -> torch.dtype:
    """The type to add in: float32 for half precision, else the tensor's own."""
    return torch.promote_types(x.dtype, torch.float32)
