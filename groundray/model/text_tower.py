"""SigLIP's text tower in a folder that `transformers.AutoModel` opens.

AutoModel lists no such tower. It computes what a Megatron-BERT without token types and dropout computes: layer norms
come before attention, before the feed-forward layer and after the last layer, and attention goes both ways. An export
has its weights under the names of `MegatronBertModel`, which AutoModel lists, and its configuration in theirs, with
which groundray reads it back as the tower.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MegatronBertConfig, MegatronBertModel, PreTrainedConfig, PreTrainedModel

TOWERS = ("siglip_text_model", "siglip2_text_model")
KEY = "text_tower"  # of the tower's configuration in that of a folder
# names in a layer, and those in a layer of MegatronBertModel
LAYER = {
    "layer_norm1": "attention.ln",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "layer_norm2": "ln",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
OUTSIDE = {
    "embeddings.token_embedding": "embeddings.word_embeddings",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "final_layer_norm": "encoder.ln",
}
POSITIONS = "embeddings.position_embedding.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"  # of one type, which adds 0


def listed(encoder: PreTrainedModel, weights: Mapping[str, Tensor]) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return an encoder that AutoModel lists, and weights by its names: those given, unless they are a SigLIP tower's.

    The tower's pooled output is left out.

    Returns:
        The encoder, without memory where it is another one, and its state dict.
    """
    tower: Any = encoder.config
    if tower.model_type not in TOWERS:
        return encoder, dict(weights)
    config = MegatronBertConfig(
        vocab_size=tower.vocab_size,
        hidden_size=tower.hidden_size,
        num_hidden_layers=tower.num_hidden_layers,
        num_attention_heads=tower.num_attention_heads,
        intermediate_size=tower.intermediate_size,
        hidden_act=tower.hidden_act,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=tower.attention_dropout,
        max_position_embeddings=tower.max_position_embeddings,
        type_vocab_size=1,
        layer_norm_eps=tower.layer_norm_eps,
        pad_token_id=tower.pad_token_id,
        bos_token_id=tower.bos_token_id,
        eos_token_id=tower.eos_token_id,
    )
    setattr(config, KEY, tower.to_dict())
    with torch.device("meta"):
        model = MegatronBertModel(config, add_pooling_layer=False)
    named = {_renamed(name, "layers", "layer", LAYER, OUTSIDE): weight for name, weight in weights.items()}
    named = {name: weight for name, weight in named.items() if not name.startswith("head.")}
    return model, {**named, TOKEN_TYPES: torch.zeros(1, tower.hidden_size)}


def tower_config(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """Return the configuration of the tower in that of a folder; None where it holds none."""
    tower = getattr(config, KEY, None)
    return CONFIG_MAPPING[tower["model_type"]].from_dict(tower) if tower else None


def tower_weights(weights: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Return weights by the tower's names, its pooled output 0. The token type's weight is added to the positions'."""
    layer, outside = ({other: own for own, other in names.items()} for names in (LAYER, OUTSIDE))
    named = {_renamed(name, "layer", "layers", layer, outside): weight for name, weight in weights.items()}
    named[POSITIONS] = named[POSITIONS] + named.pop(TOKEN_TYPES)
    rows, columns = config.projection_size, config.hidden_size
    return {**named, "head.weight": torch.zeros(rows, columns), "head.bias": torch.zeros(rows)}


def _renamed(name: str, stack: str, other_stack: str, layer: Mapping[str, str], outside: Mapping[str, str]) -> str:
    """Return a weight's name in the other model.

    Args:
        stack: name of the list of layers.
        layer, outside: names of modules in a layer and outside of all, and those in the other model.
    """
    module, _, kind = name.rpartition(".")
    if inner := re.fullmatch(rf"encoder\.{stack}\.(\d+)\.(.+)", module):
        return f"encoder.{other_stack}.{inner[1]}.{layer[inner[2]]}.{kind}"
    return f"{outside.get(module, module)}.{kind}"
