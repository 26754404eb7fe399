"""The visual stream: trunk, embedder and spatial attention give an embedding for each position of the image."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import BFloat16, Float, UInt8
from torch import Tensor, nn

from groundray.model.initialization import Initialization
from groundray.model.trunk import Trunk


class SpatialAttention(nn.Module):
    """One post-norm transformer block over the positions of the image.

    A learned position table is added to the attention's input; the residual takes the input without it. Dropout
    follows the attention's output and the feed-forward layer.

    With the initialization `identity`, the table holds sines and cosines of row and column: initialised near zero,
    relations such as `left of` took thousands of steps to be learned instead of 150. Both residual branches are
    initialised to zero (Zhang et al. 2019), so that at first each position holds its own features: with random
    weights, small shapes took twice the steps. With `pytorch`, linear maps are those of `nn.Linear` and the table that
    of `nn.Embedding`, of standard deviation 1.
    """

    def __init__(
        self,
        width: int,
        side: int,
        heads: int,
        ffn: int,
        dropout: float = 0.1,
        initialization: Initialization = "identity",
    ):
        super().__init__()
        self.positions = nn.Parameter(0.5 * sine_table(side, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.ReLU(), nn.Linear(ffn, width))
        self.ffn_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        if initialization == "identity":
            for parameter in (*self.attention.out_proj.parameters(), *self.ffn[2].parameters()):
                nn.init.zeros_(parameter)
        else:
            nn.init.normal_(self.positions)
            # nn.MultiheadAttention has an initialization of its own, by Xavier and without bias
            nn.init.kaiming_uniform_(self.attention.in_proj_weight, a=math.sqrt(5))
            nn.init.uniform_(self.attention.in_proj_bias, -1 / math.sqrt(width), 1 / math.sqrt(width))
            self.attention.out_proj.reset_parameters()

    def forward(self, x: Float[Tensor, "sample position dim"]) -> Float[Tensor, "sample position dim"]:
        positioned = x + self.positions
        attended, _ = self.attention(positioned, positioned, positioned, need_weights=False)
        x = self.attention_norm(x + self.dropout(attended))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


def sine_table(side: int, width: int) -> Float[Tensor, "position dim"]:
    """Return sines and cosines of the column, then of the row, of each position of a square, row by row.

    Frequencies range from half a period over the whole side to half a period from one position to the next. The last
    `width` modulo 4 dimensions are 0.
    """
    frequencies = np.pi / side * np.geomspace(1, side, width // 4)
    row, column = np.indices((side, side)).reshape(2, -1, 1)
    waves = [wave(axis * frequencies) for axis in (column, row) for wave in (np.sin, np.cos)]
    table = np.concatenate([*waves, np.zeros((side * side, width % 4))], axis=1)
    return torch.from_numpy(table).float()


# Pixels 0-255, or feature maps of the trunk that were computed before.
Images = UInt8[Tensor, "sample 3 height width"] | BFloat16[Tensor, "sample channel row column"]


class VisualStream(nn.Module):
    """An embedding for each position of an image.

    Attributes:
        positions: number of positions of an image, counted row by row.
    """

    def __init__(
        self,
        trunk: Trunk,
        width: int,
        heads: int,
        ffn: int,
        initialization: Initialization = "identity",
    ):
        super().__init__()
        channels, side, _ = trunk.shape
        self.positions = side * side
        self.trunk = trunk
        self.channel_dropout = nn.Dropout2d(0.0)
        self.embedder = nn.Conv2d(channels, width, kernel_size=1)
        self.attention = SpatialAttention(width, side, heads, ffn, initialization=initialization)

    def forward(self, images: Images) -> Float[Tensor, "sample position dim"]:
        """Return the embeddings of images, given their pixels or their feature maps (`features`)."""
        if images.is_floating_point():
            return self.attend(images.to(self.embedder.weight.dtype))
        return self.attend(self.features(images))

    @property
    def heads(self) -> int:
        """Number of heads of its attention: no shape of a weight tells it."""
        return self.attention.attention.num_heads

    def blank(self, images: Images) -> Images:
        """Return as many images of the trunk's mean colour: pixels or feature maps, as the given images are."""
        colour = self.trunk.mean.round().to(torch.uint8)
        if not images.is_floating_point():
            return colour.expand_as(images)
        side = self.trunk.image_size
        return self.features(colour.expand(1, 3, side, side)).to(images.dtype).expand_as(images)

    def empty(self) -> Float[Tensor, "0 position dim"]:
        """Return the embeddings of an empty batch."""
        return self.embedder.weight.new_zeros(0, self.positions, self.embedder.out_channels)

    def features(self, images: UInt8[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample channel row column"]:
        """Return the trunk's feature maps, without an autograd graph if the trunk is frozen."""
        frozen = not any(parameter.requires_grad for parameter in self.trunk.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return self.trunk(images)

    def attend(self, features: Float[Tensor, "sample channel row column"]) -> Float[Tensor, "sample position dim"]:
        """Return the embeddings of feature maps."""
        return self.attention(self.embedder(self.channel_dropout(features)).flatten(2).transpose(1, 2))
