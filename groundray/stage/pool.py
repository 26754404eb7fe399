"""A pool of images and captions that is divided among processes, in blocks of images and tiles of words.

The last digits of a matrix product depend on its shape. So all products of a pool have one shape: what is missing from
a block or a tile is filled up with zeros. A score then has the same bits whatever the parts and the processes are, and
equal embeddings have equal scores. (That such a product computes all its elements alike is tested on CPUs.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from groundray.device_copy import to_device
from groundray.distributed import broadcast, gather_rows, on_every_rank, rank
from groundray.loss.match_map import Kind, images_at_a_time, normalised, similarity_to_words, sizes_on

# Words of a tile. MKL computes the last 8 of 512 columns in another order than the others, in float64; of 480 none.
WORDS = {"cpu": 480, "cuda": 4096}
IMAGES = 256  # of a product, at most: a small pool of vectors is not filled up to a thousand
TYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class ImageBlocks:
    """The images of this process, of which a block is on the device at a time.

    Attributes:
        count: number of images.
        size: number of images of each block but the last.
        slices: images of each block.
    """

    def __init__(self, parts: Sequence[Float[Tensor, "_ position dim"]], kind: Kind, device: torch.device):
        self._parts, self._device = [part for part in parts if len(part)], device
        self._kind: Kind = kind
        self.count = sum(map(len, self._parts))
        positions, dim = self._parts[0].shape[1:] if self._parts else (1, 1)
        self._product = min(IMAGES, images_at_a_time(device.type, positions))
        sizes = sizes_on(device.type)
        # a block's scores with a tile of words, which may be as many captions, are a tile of numbers
        fitting = min(sizes.rows // max(1, positions * dim), sizes.tile // _words(device))
        self.size = max(1, fitting // self._product) * self._product
        self.slices = [slice(first, min(first + self.size, self.count)) for first in range(0, self.count, self.size)]

    def load(self, block: slice) -> Float[Tensor, "image position dim"]:
        """Return images on the device, followed by zeros that fill up the last product."""
        rows = list(_rows(self._parts, block))
        missing = (block.start - block.stop) % self._product
        V = torch.cat([*rows, rows[0].new_zeros(missing, *rows[0].shape[1:])])
        return normalised(to_device(V, self._device), self._kind)

    def scores(self, V: Float[Tensor, "_ position dim"], words: Words) -> Float[Tensor, "image caption"]:
        """Return the similarity of each of a block's images, with the zeros that follow them, and each caption."""
        return similarity_to_words(V, words.W, words.valid, self._product)[:, : words.captions]


class Tile(NamedTuple):
    """Captions of one process whose words are multiplied together.

    Attributes:
        process: rank of the process.
        own: the captions, counted in the process.
        place: the captions, counted over all processes in rank order.
        lengths: number of words of each caption.
    """

    process: int
    own: slice
    place: slice
    lengths: list[int]


class Words(NamedTuple):
    """The words of a tile on the device.

    Attributes:
        W: words, caption after caption, filled up with zeros.
        valid: mask of each caption's words, and of a caption for each word that fills up the tile; on the host.
        captions: number of captions of the tile.
    """

    W: Float[Tensor, "word dim"]
    valid: Bool[Tensor, "caption word"]
    captions: int


class CaptionTiles:
    """The captions of all processes, of which a few tiles of words are on the device at a time.

    Attributes:
        count: number of captions of this process.
        on: number of captions of each process.
        tiles: tiles of all processes, in rank order.
    """

    def __init__(
        self,
        parts: Sequence[Float[Tensor, "_ _ dim"]],
        valid: Sequence[Bool[Tensor, "_ _"]],
        kind: Kind,
        device: torch.device,
    ):
        """Exchange the lengths of all processes' captions: every process makes one at the same time."""
        kept = [(part, mask) for part, mask in zip(parts, valid, strict=True) if len(part)]
        self._parts, self._valid = [part for part, _ in kept], [mask for _, mask in kept]
        self._device = device
        self._kind: Kind = kind
        self.count = sum(map(len, self._parts))
        shape = (self._parts[0].shape[-1], TYPES.index(self._parts[0].dtype)) if kept else (0, 0)
        self.on, dims, types = on_every_rank(self.count, *shape)
        # a process without captions does not know the type of the others' words
        known = next((process for process, count in enumerate(self.on) if count), 0)
        self._dim, self._type = dims[known], TYPES[types[known]]
        lengths = torch.cat([torch.zeros(0, dtype=torch.int64), *(mask.sum(dim=1) for mask in self._valid)])
        self.tiles = list(_tiles(gather_rows(lengths, self.on).tolist(), self.on, _words(device)))

    def rounds(self) -> Iterator[list[tuple[Tile, Words]]]:
        """Yield the tiles of all processes, a few at a time. Every process takes part in each round."""
        size = max(1, sizes_on(self._device.type).tile // (_words(self._device) * max(1, self._dim)))
        for first in range(0, len(self.tiles), size):
            yield [(tile, self._received(tile)) for tile in self.tiles[first : first + size]]

    def load(self, tile: Tile) -> Words:
        """Return a tile of this process."""
        words = [
            part.flatten(0, 1).index_select(0, to_device(mask.flatten().nonzero().squeeze(1), part.device))
            for part, mask in zip(_rows(self._parts, tile.own), _rows(self._valid, tile.own), strict=True)
        ]
        missing = self._width(tile) - sum(tile.lengths)
        W = torch.cat([*words, words[0].new_zeros(missing, self._dim)])
        return self._masked(tile, normalised(to_device(W, self._device), self._kind))

    def _received(self, tile: Tile) -> Words:
        if tile.process == rank():
            words = self.load(tile)
        else:
            shape = self._width(tile), self._dim
            words = self._masked(tile, torch.empty(shape, dtype=self._type, device=self._device))
        broadcast(words.W, tile.process)
        return words

    def _masked(self, tile: Tile, W: Tensor) -> Words:
        lengths = torch.tensor(tile.lengths + [1] * (len(W) - sum(tile.lengths)))
        return Words(W, torch.arange(int(lengths.max())) < lengths[:, None], len(tile.lengths))

    def _width(self, tile: Tile) -> int:
        return max(_words(self._device), sum(tile.lengths))  # one caption may have more words than a tile


def _words(device: torch.device) -> int:
    return WORDS.get(device.type, WORDS["cpu"])


def _tiles(lengths: Sequence[int], counts: Sequence[int], words: int) -> Iterator[Tile]:
    """Yield tiles of at most so many words, and as many captions, of each process; a longer caption has its own."""
    start = 0
    for process, count in enumerate(counts):
        first = start
        total = 0
        for caption in range(start, start + count):
            if caption > first and (total + lengths[caption] > words or caption - first == words):
                yield _tile(process, first, caption, start, lengths)
                first, total = caption, 0
            total += lengths[caption]
        if first < start + count:
            yield _tile(process, first, start + count, start, lengths)
        start += count


def _tile(process: int, first: int, end: int, start: int, lengths: Sequence[int]) -> Tile:
    return Tile(process, slice(first - start, end - start), slice(first, end), list(lengths[first:end]))


def _rows(parts: Sequence[Tensor], wanted: slice) -> Iterator[Tensor]:
    """Yield the rows of a range, part by part."""
    start = 0
    for part in parts:
        first, end = max(wanted.start - start, 0), min(wanted.stop - start, len(part))
        if first < end:
            yield part[first:end]
        start += len(part)
