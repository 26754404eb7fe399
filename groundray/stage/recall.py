"""Ranks of matched images and captions in a pool that is divided among processes, without its similarity matrix.

The rank of a query's own match is the number of candidates that do not score lower. Ties count against the query, and
so does NaN: it is not lower than anything, and nothing is lower than it. An image with several captions has the rank of
the best of them among the captions of other images, as is usual where images have five (Karpathy and Fei-Fei 2015).

Each process counts for its own images. It first computes the scores of matched pairs, in the same products that compute
all others (`pool`); then the words of all processes are sent round, a few tiles at a time, and each process counts the
scores that are lower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from groundray.device_copy import to_device
from groundray.distributed import gather_rows, on_every_rank, rank, sum_over_ranks
from groundray.loss.match_map import Kind, sizes_on
from groundray.stage.metrics import MatchedRanks
from groundray.stage.pool import CaptionTiles, ImageBlocks


@torch.no_grad()
def matched_ranks(
    images: Sequence[Float[Tensor, "_ position dim"]],
    captions: Sequence[Float[Tensor, "_ _ dim"]],
    valid: Sequence[Bool[Tensor, "_ _"]],
    kind: Kind,
    device: torch.device,
    image_of: Int[Tensor, " own_caption"] | None = None,
) -> MatchedRanks:
    """Return the ranks in a pool of which each process holds some images, with all of their captions.

    Beside its arguments, a process holds at most 4 `rows` and 8 `tile` numbers (`match_map.Sizes`: 46 MB in float32 on
    a CPU), where 4 images and 4 tiles of words are not more; and 150 bytes for each caption of all processes.

    Args:
        images: embeddings of this process's images in parts, on the host or on the device. Parts may be empty.
        captions: embeddings of its captions in parts, each padded to a length of its own.
        valid: True for the tokens that the similarity averages over, on the host.
        kind: similarity of a position and a token.
        device: where scores are computed.
        image_of: index of each caption's image among this process's images, on the host; None if caption i is the only
            one of image i.

    Raises:
        ValueError: `image_of` does not name an image for each caption.
    """
    blocks, tiles = ImageBlocks(images, kind, device), CaptionTiles(captions, valid, kind, device)
    image_of = torch.arange(blocks.count) if image_of is None else image_of
    if len(image_of) != tiles.count or (image_of >= blocks.count).any():
        raise ValueError(
            f"expected one of {blocks.count} images for each of {tiles.count} captions, got {len(image_of)} numbers up "
            f"to {max(image_of.tolist(), default=0)}: pass the number of each caption's image as image_of"
        )
    matched, kept = _matched_scores(blocks, tiles, image_of, device)
    worst_if_nan = matched.where(~matched.isnan(), -torch.inf)  # nothing is lower
    best = _highest(worst_if_nan, image_of, blocks.count)

    of_captions = to_device(gather_rows(worst_if_nan, tiles.on), device)
    of_images = to_device(best, device)[:, None]
    lower_images = torch.zeros(len(of_captions), dtype=torch.int64, device=device)
    lower_captions = torch.zeros(blocks.count, dtype=torch.int64, device=device)
    for words in tiles.rounds():
        for block in blocks.slices:
            V = blocks.load(block)
            for tile, W in words:
                S = kept.pop((block.start, tile.place.start), None)
                S = blocks.scores(V, W)[: block.stop - block.start] if S is None else S
                lower_images[tile.place] += (of_captions[tile.place] > S).sum(dim=0)
                lower_captions[block] += (of_images[block] > S).sum(dim=1)

    own = _counts(image_of, blocks.count)
    own_lower = _counts(image_of[matched < best[image_of]], blocks.count)
    others_lower = lower_captions.cpu() - own_lower
    queries = own > 0
    image_to_text = 1 + sum(tiles.on) - own - others_lower
    images_on, queries_on = on_every_rank(blocks.count, int(queries.sum()))
    lower = lower_images.cpu()
    sum_over_ranks([lower])
    return MatchedRanks(sum(images_on) - lower, gather_rows(image_to_text[queries], queries_on))


def _matched_scores(
    blocks: ImageBlocks, tiles: CaptionTiles, image_of: Int[Tensor, " caption"], device: torch.device
) -> tuple[Float[Tensor, " caption"], dict[tuple[int, int], Tensor]]:
    """Return the score of each of this process's captions with its image, on the host; and the first scores, at
    most a tile of numbers, which need not be computed again, by the first image and the first caption."""
    kept: dict[tuple[int, int], Tensor] = {}
    room = sizes_on(device.type).tile
    matched = torch.zeros(tiles.count, dtype=torch.float64, device=device)
    own = [tile for tile in tiles.tiles if tile.process == rank()]
    for block in blocks.slices:
        V = blocks.load(block)
        inside = (image_of >= block.start) & (image_of < block.stop)
        for tile in own:
            here = inside[tile.own].nonzero().squeeze(1) + tile.own.start
            if len(here) == 0:
                continue
            S = blocks.scores(V, tiles.load(tile))[: block.stop - block.start]
            row, column = to_device(image_of[here] - block.start, device), to_device(here - tile.own.start, device)
            # into one tensor: many small ones among large ones would keep the memory between them
            matched[to_device(here, device)] = S[row, column].double()
            if S.numel() <= room:
                kept[block.start, tile.place.start] = S.clone()
                room -= S.numel()
    return matched.cpu(), kept


# On the host, by numpy: of torch, a GPU would refuse both where results must have the same bits.


def _highest(
    scores: Float[Tensor, " caption"], image_of: Int[Tensor, " caption"], images: int
) -> Float[Tensor, " image"]:
    """Return the highest score of each image's captions; minus infinity if it has none."""
    highest = np.full(images, -np.inf)
    np.maximum.at(highest, image_of.numpy(), scores.numpy())
    return torch.from_numpy(highest)


def _counts(image_of: Int[Tensor, " caption"], images: int) -> Int[Tensor, " image"]:
    """Return the number of captions of each image."""
    return torch.from_numpy(np.bincount(image_of.numpy(), minlength=images))
