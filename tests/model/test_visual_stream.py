"""The visual stream: the attention block against its naive twin, positions, and sizes that are refused."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from torch import nn

from groundray import config
from groundray.model.build import build_visual
from groundray.model.visual_stream import SpatialAttention, sine_table


def test_attention_block_equals_its_naive_twin() -> None:
    torch.manual_seed(0)
    block = SpatialAttention(width=8, side=2, heads=2, ffn=16).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    weights = dict(block.named_parameters())
    for sample in range(3):
        twin = reference.attention_block(x[sample], block.positions, weights, heads=2)
        torch.testing.assert_close(block(x)[sample], twin, rtol=1e-10, atol=1e-12)


def test_position_table_is_not_in_the_residual() -> None:
    """At initialisation both residual branches are zero and the block returns the normalised input, without the
    position table; both branches have a gradient from the first step."""
    block = SpatialAttention(width=8, side=2, heads=2, ffn=16).eval()
    x = torch.randn(1, 4, 8)
    normalised = nn.functional.layer_norm(x, (8,))
    torch.testing.assert_close(block(x), nn.functional.layer_norm(normalised, (8,)))
    (block(x) * torch.randn(1, 4, 8)).sum().backward()
    for last in (block.attention.out_proj.weight, block.ffn[2].weight):
        assert last.grad is not None
        assert last.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_heads": 3}, "model.attention_heads: .* divides the width 128, got 3"),
        ({"image_size": 100}, "model.image_size: .* multiple of 16 pixels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    settings = config.Model(trunk=config.Trunk(name="tiny", weights="none"), image_size=112, attention_heads=4)
    with pytest.raises(ValueError, match=message):
        build_visual(settings.model_copy(update=change), width=128)


def test_sine_table_holds_sines_and_cosines_of_column_and_row() -> None:
    table = sine_table(side=3, width=10)
    assert table.shape == (9, 10)
    for position in range(9):
        row, column = divmod(position, 3)
        angles = [index * frequency for index in (column, row) for frequency in (math.pi / 3, math.pi)]
        x, y = angles[:2], angles[2:]
        expected = [*map(math.sin, x), *map(math.cos, x), *map(math.sin, y), *map(math.cos, y), 0.0, 0.0]
        assert table[position].tolist() == pytest.approx(expected, abs=1e-6)
