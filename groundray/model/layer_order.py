"""How many layers of the language stream or the trunk are above each parameter, for layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from groundray.model import encoder_layout
from groundray.model.grounded import GroundedModel
from groundray.model.timm_trunk import TIMM, TimmLayers

BLOCKS = ("_Block", "MBConvBlock")  # classes of the blocks of `tiny` and `efficientnet_lite0`


def layers_above_language(model: GroundedModel) -> dict[int, int]:
    """Return the number of layers above each parameter of the language stream, by its id.

    It is that of all layers for the embeddings, which the model has before its first layer, and 0 for what follows one
    (a last norm).
    """
    return _above(model.language, encoder_layout.layers(model.language.encoder))


def layers_above_trunk(model: GroundedModel) -> dict[int, int]:
    """Return the number of layers above each parameter of the trunk, by its id.

    Layers are blocks, or convolutions where there are no blocks (`vgg16`); in a timm model, what timm's own layer-wise
    decay takes for layers. What comes before the first (a stem, positions) is below all of them, what follows one
    belongs to it.

    Raises:
        ValueError: the layers have no order.
    """
    trunk: Any = model.visual.trunk
    if isinstance(trunk.layers, TimmLayers):
        return _above_in_timm(trunk.layers)
    blocks = [module for module in trunk.layers.modules() if type(module).__name__ in BLOCKS]
    return _above(
        trunk.layers, blocks or [module for module in trunk.layers.modules() if isinstance(module, nn.Conv2d)]
    )


def _above(whole: nn.Module, layers: Sequence[nn.Module]) -> dict[int, int]:
    above = {
        id(parameter): len(layers) - 1 - index for index, layer in enumerate(layers) for parameter in layer.parameters()
    }
    outside = len(layers)
    for parameter in whole.parameters():
        outside = 0 if id(parameter) in above else outside
        above.setdefault(id(parameter), outside)
    return above


def _above_in_timm(layers: TimmLayers) -> dict[int, int]:
    from timm.models import group_parameters

    network: Any = layers.network
    try:
        numbers: Any = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    except (AttributeError, NotImplementedError, AssertionError):
        numbers = {}
    top = max(numbers.values(), default=0)
    if not top:
        raise ValueError(
            f"expected a trunk whose layers have an order, got {TIMM}{layers.origin['name']}, of which timm knows "
            "none: leave it out, or choose another trunk"
        )
    return {id(parameter): top - numbers[name] for name, parameter in network.named_parameters()}
