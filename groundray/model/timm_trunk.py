"""Trunks of timm: any of its models whose features form a grid, convolutional or a vision transformer."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import sys
from collections.abc import Iterator, Mapping
from math import isqrt
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from groundray.model.grid import NoGrid
from groundray.model.weights import misfit
from groundray.versions import version_of

TIMM = "timm/"  # begins the names of these trunks
WRAPPED = ("state_dict_ema", "model_ema", "state_dict", "model")  # where checkpoints keep a model's weights
MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens


class TimmLayers(nn.Module):
    """A timm model without its classifier, from normalized pixels to a feature map.

    The feature map is what `forward_features` returns: with channels first, and without class and register tokens.

    Attributes:
        unused: the parts of the model that the feature map does not depend on, which are left out.
        origin: the version of timm and the model's name, for the keys of caches.
    """

    def __init__(self, name: str, network: nn.Module, unused: tuple[str, ...] = ()):
        super().__init__()
        for part in unused:
            setattr(network, part, nn.Identity())
        self.network, self.unused = network, unused
        self.origin = {"timm": version_of("timm"), "name": name}

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each colour that the weights expect, in units of 255."""
        published: Any = self.network.pretrained_cfg
        return tuple(published["mean"]), tuple(published["std"])

    @property
    def image_size(self) -> int:
        """Height and width of the images of the published weights, in pixels."""
        published: Any = self.network.pretrained_cfg
        return int(published["input_size"][-1])

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        features: Any = network.forward_features(images)
        if not isinstance(features, Tensor):
            raise NoGrid(f"its features are a {type(features).__name__}")
        if features.dim() == 4:
            return features.permute(0, 3, 1, 2) if getattr(network, "output_fmt", "") == "NHWC" else features
        if features.dim() != 3:
            raise NoGrid("its features are one vector")
        tokens = features.shape[1]
        known = getattr(network, "num_prefix_tokens", None)
        before = tokens - isqrt(tokens) ** 2 if known is None else int(known)
        side = isqrt(tokens - before)
        if side == 1 or side * side != tokens - before or before > MAX_PREFIX_TOKENS:
            raise NoGrid(f"its features are {tokens} vectors, which form no square")
        return features[:, before:].transpose(1, 2).unflatten(2, (side, side))

    def fitting(self, weights: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by their names in these layers, without a classifier.

        The checkpoint is one of timm, of the model's authors where timm reads theirs, or of these layers. Position
        tables of another image size are resampled, as timm does.
        """
        wrapped = next((key for key in WRAPPED if isinstance(weights.get(key), Mapping)), None)
        state = {
            name.removeprefix("_orig_mod.").removeprefix("module.").removeprefix("network."): tensor
            for name, tensor in (weights[wrapped] if wrapped else weights).items()
        }
        # timm's modules name the function that converts the authors' names, where there is one
        convert = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        if convert and misfit(self.network, self._without_classifier(state)):
            # weights of another architecture cannot be converted: what does not fit is told then
            with contextlib.suppress(KeyError, AttributeError, TypeError, RuntimeError, ValueError):
                state = convert(dict(state), self.network)
        return {f"network.{name}": tensor for name, tensor in self._without_classifier(state).items()}

    def _without_classifier(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in self.unused}


def timm_layers(name: str, image_size: int, published: bool = False) -> TimmLayers:
    """Build the layers of a timm model for square images, without its classifier.

    Args:
        name: name in timm, which may have a tag that names published weights.
        image_size: height and width of the images in pixels. Models with a table of positions get one of this size.
        published: load the published weights, which are downloaded once; otherwise, weights are random.

    Raises:
        ValueError: timm is not installed or has no such model, the model has no grid or does not take images of this
            size, or its weights are not to be had; the message names the setting.
    """
    unused = _unused_parts(name, image_size)
    return TimmLayers(name, _create(name, image_size, published), unused)


def check_published(name: str) -> None:
    """Raise ValueError if a timm model has no published weights, or the hub that has them cannot be reached."""
    import timm
    from huggingface_hub import model_info, try_to_load_from_cache

    published = timm.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise ValueError(
            f"model.trunk.weights: trunk {TIMM}{name} has no published weights: give a file of them, or none"
        )
    if not published.hf_hub_id:
        return
    files = (published.hf_hub_filename,) if published.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(published.hf_hub_id, file), str) for file in files):
        return
    try:
        model_info(published.hf_hub_id, timeout=10)
    except Exception as error:  # noqa: BLE001  the hub's, or any of its HTTP client, which is another one by version
        raise _cannot_download(name, error) from None


def hub_name(name: str) -> str | None:
    """Return the id on the hub of a timm model's published weights; None where they are not on the hub."""
    published = _timm().get_pretrained_cfg(name)
    return published.hf_hub_id if published else None


@functools.cache
def _unused_parts(name: str, image_size: int) -> tuple[str, ...]:
    """Return the names of the model's parts that its feature map does not depend on, from a pass without numbers."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.device("meta"):
        network = _create(name, image_size)
        try:
            maps = TimmLayers(name, network.eval())(torch.zeros(1, 3, image_size, image_size))
        except NoGrid as error:
            raise ValueError(
                f"model.trunk.name: {TIMM}{name} gives no grid of positions: {error}: choose a convolutional model "
                "or a vision transformer with patches, such as timm/convnext_atto or timm/vit_tiny_patch16_224"
            ) from None
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise _wrong_size(name, image_size, error) from None
        maps.sum().backward()
    return tuple(
        part
        for part, module in network.named_children()
        if (parameters := list(module.parameters())) and all(parameter.grad is None for parameter in parameters)
    )


def _create(name: str, image_size: int, published: bool = False) -> nn.Module:
    timm = _timm()
    model, _, tag = name.partition(".")
    if not timm.is_model(model) or (tag and name not in timm.list_pretrained(f"{model}.*")):
        raise ValueError(_unknown(name))
    options = {"pretrained": published}
    try:
        with _silent():
            try:
                return timm.create_model(name, img_size=image_size, **options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                return timm.create_model(name, **options)
    except OSError as error:
        raise _cannot_download(name, error) from None
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        if published:
            raise _cannot_download(name, error) from None
        raise _wrong_size(name, image_size, error) from None


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ValueError(
            "model.trunk.name: trunks of timm need a package: run `pip install groundray[models]`"
        ) from None
    return timm


def _unknown(name: str) -> str:
    """Return the error for a name that timm does not have, with names like it."""
    timm = _timm()
    model, _, tag = name.partition(".")
    if tag and timm.is_model(model):
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
        return f"model.trunk.name: timm's {model} has no weights {tag!r}: " + (
            f"expected one of {', '.join(tags)}" if tags else "it has none"
        )
    near = difflib.get_close_matches(model, timm.list_models(), 3)
    return f"model.trunk.name: timm {version_of('timm')} has no model {model!r}: " + (
        f"did you mean {', '.join(TIMM + other for other in near)}?" if near else "see timm.list_models()"
    )


def _wrong_size(name: str, image_size: int, error: Exception) -> ValueError:
    published = _timm().get_pretrained_cfg(name)
    own = f"set model.image_size to its own, {published.input_size[-1]}" if published else "set another size"
    return ValueError(
        f"model.image_size: trunk {TIMM}{name} does not take images of {image_size} pixels ({_line(error)}): {own}"
    )


def _cannot_download(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"model.trunk.weights: the published weights of trunk {TIMM}{name} cannot be loaded here ({_line(error)}): "
        "give a file of them, or none"
    )


def _line(error: Exception) -> str:
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 100, placeholder=" ...")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep timm's and the hub's log lines off the terminal: what matters of them is in the error."""
    loggers = [logging.getLogger(name) for name in ("timm", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
