"""Trunks of timm: grids, weights from files, errors that name the setting, and export."""

from __future__ import annotations

import argparse
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from groundray import config
from groundray.model.build import build_visual
from groundray.model.timm_trunk import TimmLayers, check_published
from groundray.model.trunk import Trunk, build_trunk, check_trunk

pytestmark = pytest.mark.thorough  # trunks of many kinds

timm: Any = pytest.importorskip("timm", reason="extra `models` is not installed")

# name, image size, channels, side, stride, centre of the first position
GRIDS = [
    ("resnet18", 64, 512, 2, 32, 0.5),  # each strided layer pads one pixel: centred on pixels 0, 32, ...
    ("convnext_atto", 64, 320, 2, 32, 16),  # patches of 4, merged four times
    ("mobilenetv3_small_050", 64, 288, 2, 32, 0.5),
    ("tf_efficientnet_lite0", 64, 1280, 2, 32, 31.5),  # pads at the right and the bottom alone
    ("vit_tiny_patch16_224", 64, 192, 4, 16, 8),
    ("vit_small_patch14_reg4_dinov2", 56, 384, 4, 14, 7),  # a class token and four registers beside the patches
    ("deit_tiny_distilled_patch16_224", 64, 192, 4, 16, 8),
    ("swin_tiny_patch4_window7_224", 224, 768, 7, 32, 16),  # channels last, merged by linear layers
    ("mixer_s32_224", 224, 512, 7, 32, 16),
]
NAMES = [name for name, *_ in GRIDS]


@cache
def trunk_of(name: str) -> Trunk:
    size = next(size for other, size, *_ in GRIDS if other == name)
    torch.manual_seed(0)
    return build_trunk(f"timm/{name}", image_size=size)


def images(trunk: Trunk, count: int = 1) -> Tensor:
    shape = (count, 3, trunk.image_size, trunk.image_size)
    return torch.randint(0, 255, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "size", "channels", "side", "stride", "first"), GRIDS)
def test_grid(name: str, size: int, channels: int, side: int, stride: int, first: float) -> None:
    trunk = trunk_of(name)
    assert (trunk.grid.channels, trunk.grid.side, trunk.grid.stride, trunk.grid.first) == (
        channels,
        side,
        stride,
        first,
    )
    with torch.no_grad():
        assert trunk.eval()(images(trunk)).shape == (1, channels, side, side)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_position_looks_where_the_grid_says(name: str) -> None:
    """By the gradient of a position in the last row and the first column: its centre of gravity."""
    trunk = trunk_of(name).eval()
    pixels = images(trunk).float().requires_grad_()
    trunk.layers((pixels - trunk.mean) / trunk.sd)[0, :, -1, 0].square().sum().backward()
    assert pixels.grad is not None
    seen = pixels.grad[0].square().sum(dim=0)
    centres = torch.arange(trunk.image_size) + 0.5
    row, column = ((seen.sum(dim=axis) * centres).sum() / seen.sum() for axis in (1, 0))
    grid = trunk.grid
    assert row.item() == pytest.approx(grid.first + grid.stride * (grid.side - 1), abs=grid.stride / 2)
    assert column.item() == pytest.approx(grid.first, abs=grid.stride / 2)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_chunk(name: str) -> None:
    trunk = trunk_of(name).train()
    for module in trunk.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert not module.training
        if isinstance(module, timm.layers.DropPath):
            module.drop_prob = 0.0
    batch = images(trunk, 3)
    with torch.no_grad():
        torch.testing.assert_close(trunk(batch)[:1], trunk(batch[:1]), rtol=1e-4, atol=1e-4)
    assert trunk_of(name).eval()  # the next test's


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "vit_small_patch14_reg4_dinov2"])
def test_features_are_those_of_timm(name: str) -> None:
    """The naive twin: timm's own model, its tokens laid out by hand."""
    trunk = trunk_of(name).eval()
    grid = trunk.grid
    network = timm.create_model(name, **({} if name == "resnet18" else {"img_size": trunk.image_size})).eval()
    own = {key.removeprefix("network."): tensor for key, tensor in trunk.layers.state_dict().items()}
    network.load_state_dict(own, strict=False)
    batch = images(trunk, 2)
    mean, sd = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        found = trunk(batch)
        expected = network.forward_features((batch / 255 - mean) / sd)
    for row in range(grid.side):
        for column in range(grid.side):
            if name == "resnet18":
                position = expected[:, :, row, column]
            elif name.startswith("swin"):
                position = expected[:, row, column]
            else:
                position = expected[:, 5 + row * grid.side + column]
            torch.testing.assert_close(found[:, :, row, column], position, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_classifier_is_left_out(name: str) -> None:
    trunk = trunk_of(name)
    trunk.zero_grad()
    trunk.eval()(images(trunk)).sum().backward()
    without = [key for key, parameter in trunk.named_parameters() if parameter.grad is None]
    assert without == []
    assert not any(".head." in key or ".fc." in key or "classifier" in key for key in trunk.state_dict())
    trunk.zero_grad()


@pytest.mark.parametrize(("ours", "theirs"), [("efficientnet_lite0", "tf_efficientnet_lite0"), ("vgg16", "vgg16")])
def test_named_trunk_is_a_network_of_timm_to_the_bit(ours: str, theirs: str) -> None:
    if ours == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch", reason="extra `pretrained` is not installed")
    torch.manual_seed(0)
    trunk = build_trunk(ours).eval()
    network = timm.create_model(theirs, num_classes=0).to(memory_format=torch.channels_last).eval()
    features = network.features[:-1] if ours == "vgg16" else network
    names = list(features.state_dict())[: len(trunk.layers.state_dict())]
    features.load_state_dict(dict(zip(names, trunk.layers.state_dict().values(), strict=True)))
    batch = images(trunk, 2)
    with torch.no_grad():
        pixels = ((batch.float() - trunk.mean) / trunk.sd).contiguous(memory_format=torch.channels_last)
        expected = features(pixels) if ours == "vgg16" else network.forward_features(pixels)
        assert torch.equal(trunk(batch), expected)


def save(state: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    else:
        named = {f"module.{name}": tensor for name, tensor in state.items()}  # as timm's training script writes them
        torch.save({"epoch": 3, "args": argparse.Namespace(model="vit"), "state_dict": named}, file)


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_of_a_checkpoint_with_a_classifier_are_loaded(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10)
    save(network.state_dict(), tmp_path / f"weights.{ending}")
    trunk = build_trunk("timm/vit_tiny_patch16_224", str(tmp_path / f"weights.{ending}"), 64)
    check_trunk("timm/vit_tiny_patch16_224", str(tmp_path / f"weights.{ending}"), 64)
    loaded = {key.removeprefix("network."): tensor for key, tensor in trunk.layers.state_dict().items()}
    assert loaded.keys() == network.state_dict().keys() - {"head.weight", "head.bias"}
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in loaded.items())
    again = tmp_path / "again.safetensors"
    save(dict(trunk.layers.state_dict()), again)  # of the trunk's own layers
    second = build_trunk("timm/vit_tiny_patch16_224", str(again), 64).layers.state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in trunk.layers.state_dict().items())


def test_positions_of_another_image_size_are_resampled(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=96)
    save(network.state_dict(), tmp_path / "weights.safetensors")
    layers: Any = build_trunk("timm/vit_tiny_patch16_224", str(tmp_path / "weights.safetensors"), 64).layers
    expected = timm.layers.resample_abs_pos_embed(network.pos_embed, (4, 4), num_prefix_tokens=1)
    assert layers.network.pos_embed.shape == (1, 17, 192)
    torch.testing.assert_close(layers.network.pos_embed, expected)


@pytest.mark.parametrize("saved", ["resnet18", "vit_tiny_patch16_224"])
def test_weights_of_another_architecture_are_named(tmp_path: Path, saved: str) -> None:
    file = tmp_path / "weights.safetensors"
    save(timm.create_model(saved).state_dict(), file)
    message = re.escape(f"{file} (model.trunk.weights, for trunk timm/convnext_atto) do not fit the model: missing ")
    for use in (check_trunk, build_trunk):
        with pytest.raises(ValueError, match=message):
            use(*("timm/convnext_atto", str(file)), image_size=64)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("resnet81", 64, r"model\.trunk\.name: timm .* has no model 'resnet81': did you mean timm/resnet"),
        ("resnet18.a1_in2k", 64, r"model\.trunk\.name: timm's resnet18 has no weights 'a1_in2k': expected .*a1_in1k"),
        ("pit_ti_224", 224, r"model\.trunk\.name: timm/pit_ti_224 gives no grid .* 1 vector"),
        ("crossvit_tiny_240", 240, r"model\.trunk\.name: timm/crossvit_tiny_240 gives no grid .* list"),
        ("mixer_s32_224", 100, r"model\.image_size: .* multiple of 32 pixels for trunk timm/mixer_s32_224, got 100"),
        ("nest_tiny", 100, r"model\.image_size: trunk timm/nest_tiny does not take .* 100 pixels .* to its own, 224"),
        ("vit_tiny_patch16_224", 100, r"model\.image_size: expected a multiple of 16 pixels .* got 100"),
    ],
)
def test_model_that_is_no_trunk_is_named(name: str, size: int, message: str) -> None:
    for use in (check_trunk, build_trunk):
        with pytest.raises(ValueError, match=message):
            use(f"timm/{name}", "none", size)


def test_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ValueError, match=r"model\.trunk\.name: .* run `pip install groundray\[models\]`"):
        build_trunk("timm/resnet26", image_size=32)


def test_published_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"trunk timm/coatnet_0_224 has no published weights: give a file"):
        check_trunk("timm/coatnet_0_224", "published", 224)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = r"model\.trunk\.weights: the published weights of trunk timm/resnet18 cannot be loaded here \(.*\): give"
    with pytest.raises(ValueError, match=message) as caught:
        check_published("resnet18")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        build_trunk("timm/resnet18", "published", 64)


def test_any_side_makes_positions_of_the_stream() -> None:
    """7 rows of a 32nd of 200 pixels each, rounded up."""
    settings = config.Model(
        trunk=config.Trunk(name="timm/resnet18", weights="none"), image_size=200, attention_heads=4, attention_ffn=8
    )
    visual = build_visual(settings, 16)
    assert visual.positions == 49
    pixels = torch.zeros(2, 3, 200, 200, dtype=torch.uint8)
    with torch.no_grad():
        assert visual(pixels).shape == (2, 49, 16)
        maps = visual.features(pixels).to(torch.bfloat16)
        assert maps.shape == visual.blank(maps).shape == (2, 512, 7, 7)


def test_origin_names_the_library() -> None:
    assert trunk_of("resnet18").origin == {"timm": timm.__version__, "name": "resnet18"}
    assert isinstance(trunk_of("resnet18").layers, TimmLayers)
    with torch.device("meta"):
        assert build_trunk("tiny").origin == {}
