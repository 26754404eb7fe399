"""LoRA: low-rank adapters of linear maps of the language stream, whose own weights stay frozen (Hu et al. 2021).

A map W x + b becomes W x + b + alpha / rank B A dropout(x), with A (rank, in) and B (out, rank), which is 0 at first.
`peft` computes it. Adapters live within a stage: what it hands on is the plain model, with W + alpha / rank B A for W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from groundray.config import TrainedLanguage, TrainedVisual
from groundray.model import encoder_layout
from groundray.model.freezing import language_layers, release_rows
from groundray.model.grounded import GroundedModel
from groundray.rng import hash64, hash_name

ADAPTER = "default"  # peft's name of it
BASE = ".base_layer"  # of a map that has an adapter, in peft's names


def add_adapters(
    model: GroundedModel, stage: str, trains: TrainedVisual | TrainedLanguage | None, seed: int = 0
) -> None:
    """Give the trained layers of the language stream adapters, and freeze all else of it; nothing without `lora`.

    Called after `freeze`. The weights are a function of the seed and the stage's name.

    Raises:
        ValueError: there is no such layer or target, or no peft.
    """
    if not isinstance(trains, TrainedLanguage) or trains.lora is None:
        return
    names = adapted_maps(model, trains)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("trains.lora needs the package peft: run `pip install groundray[models]`") from None
    lora, encoder = trains.lora, model.language.encoder
    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  peft divides it by the rank
        lora_dropout=lora.dropout,
        target_modules=names,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hash64(seed, hash_name(f"adapters of {stage}"))) >> 1)
        inject_adapter_in_model(adapters, encoder, ADAPTER)
    del encoder.peft_config
    release_rows(model)  # all of these parameters are frozen now


def adapted_maps(model: GroundedModel, trains: TrainedLanguage) -> list[str]:
    """Return the names of the linear maps that get adapters, in the language model.

    Raises:
        ValueError: there is no such layer or target; the message lists the targets.
    """
    layers = language_layers(model)
    count = len(layers) if trains.language_layers == "all" else trains.language_layers
    trained = encoder_layout.top(model.language.encoder, count)
    maps = {id(module) for layer in trained for module in layer.modules() if isinstance(module, nn.Linear)}
    names = [name for name, module in model.language.encoder.named_modules() if id(module) in maps]
    targets = trains.lora.targets if trains.lora else ()
    for target in targets:
        if not any(_is_called(name, target) for name in names):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise ValueError(
                f"trains.lora.targets: the trained layers of the language stream have no linear map {target!r}: give "
                f"some of {known}, or none for all of them"
            )
    return [name for name in names if not targets or any(_is_called(name, target) for target in targets)]


def _is_called(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's state dict with its adapters merged, as that of a model without."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        plain = plain_name(name)
        if plain is None:
            continue
        if plain != name and plain.endswith(".weight"):
            layer: Any = model.get_submodule(plain.removesuffix(".weight"))
            tensor = tensor + layer.get_delta_weight(ADAPTER).detach()
        weights[plain] = tensor
    return weights


def remove_adapters(model: GroundedModel) -> None:
    """Remove the adapters, so that the maps are those from before `add_adapters`."""
    for name, base in list(model.language.named_modules()):
        if name.endswith(BASE):
            parent, _, child = name.removesuffix(BASE).rpartition(".")
            setattr(model.language.get_submodule(parent), child, base)


def plain_name(name: str) -> str | None:
    """Return the name of a weight in the model without adapters; None for a weight of an adapter."""
    if not name.startswith("language."):
        return name
    return None if ".lora_" in name else name.replace(f"{BASE}.", ".")
