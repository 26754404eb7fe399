"""Where an encoder of `transformers` keeps its layers, its query and key projections, its dropout and its positions.

Encoders name their parts differently. These functions find them by structure, and by the names that attention
projections have across `transformers`. A part that is not found is an error, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

# names of a projection, or of a bias that is added to it; those with `pos` project relative positions (DeBERTa)
QUERY = ("query", "q", "q_proj", "q_lin", "query_proj", "pos_query_proj", "pos_q_proj", "q_bias")
KEY = ("key", "k", "k_proj", "k_lin", "key_proj", "pos_key_proj", "pos_proj", "k_bias")
FINAL_NORM = re.compile(r"final_(layer_?)?norm|ln_f")
POOLED_OUTPUT = ("pooler", "head")  # only for an output of the whole text, which is not used here
# Architectures in which a packed text has the embeddings of the text alone: attention is by mask, and positions are
# passed or relative. DeBERTa and MPNet add a bias for relative positions and take no mask of pairs; CLIP's is causal.
PACKED = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "modernbert", "siglip_text_model")


class Rows(NamedTuple):
    """Rows of a fused projection's weight or bias.

    Attributes:
        selected: True for the rows of queries and keys.
    """

    parameter: nn.Parameter
    selected: Bool[Tensor, " row"]


class QueryKey(NamedTuple):
    """The query and key projections of a layer: whole parameters, and rows of those that hold values too."""

    whole: tuple[nn.Parameter, ...]
    rows: tuple[Rows, ...]


class Dropout(NamedTuple):
    """A dropout rate: an attribute of a module.

    Attributes:
        name: of the module in the encoder.
    """

    name: str
    module: nn.Module
    attribute: str

    @property
    def rate(self) -> float:
        return getattr(self.module, self.attribute)


def layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the encoder's layers, first to last: its longest list of modules.

    Raises:
        ValueError: it has no list of modules.
    """
    return list(_layer_list(encoder)[1])


def body(encoder: nn.Module) -> list[nn.Module]:
    """Return the modules that do most of the work: the one that runs the layers; the layers if that is all of it."""
    parent, stack = _layer_list(encoder)
    return [encoder.get_submodule(parent)] if parent else list(stack)


def top(encoder: nn.Module, count: int) -> list[nn.Module]:
    """Return the last `count` layers, and with them the norm of their output, if the encoder has one.

    Raises:
        ValueError: the encoder has fewer layers.
    """
    stack = layers(encoder)
    if count > len(stack):
        raise ValueError(f"trains.language_layers: expected at most {len(stack)}, got {count}")
    norms = [module for name, module in encoder.named_modules() if FINAL_NORM.fullmatch(name.rpartition(".")[2])]
    inner = {id(module) for layer in stack for module in layer.modules()}
    return [*stack[len(stack) - count :], *(norm for norm in norms if count and id(norm) not in inner)]


def used(encoder: nn.Module) -> list[nn.Module]:
    """Return the parts that the last hidden state depends on: all but those of a pooled output."""
    return [part for name, part in encoder.named_children() if name not in POOLED_OUTPUT]


def query_key(layer: nn.Module, heads: int) -> QueryKey:
    """Return the query and key projections of a layer's attention.

    Args:
        heads: number of attention heads.

    Raises:
        ValueError: the layer has none of a known name.
    """
    whole, rows, kinds = [], [], set()
    for name, parameter in layer.named_parameters():
        *path, last = name.split(".")
        owner = path[-1] if path else ""
        for kind, names in (("query", QUERY), ("key", KEY)):
            if owner in names or last in names:
                whole.append(parameter)
                kinds.add(kind)
        if owner in FUSED:
            rows.append(Rows(parameter, FUSED[owner](len(parameter), heads)))
            kinds |= {"query", "key"}
    if kinds != {"query", "key"}:
        raise ValueError(
            f"trains.query_key: expected an encoder whose query and key projections can be told apart, found none in "
            f"{type(layer).__name__}: set trains.query_key true, or trains.language_layers 0"
        )
    return QueryKey(tuple(whole), tuple(rows))


def _thirds(rows: int, heads: int) -> Bool[Tensor, " row"]:
    """All queries, then all keys, then all values (ModernBERT)."""
    return torch.arange(rows) < 2 * rows // 3


def _thirds_of_heads(rows: int, heads: int) -> Bool[Tensor, " row"]:
    """Queries, keys and values of the first head, then of the next (DeBERTa)."""
    return _thirds(rows // heads, 1).repeat(heads)


FUSED = {
    "Wqkv": _thirds,
    "in_proj": _thirds_of_heads,
}  # names of fused projections, and which rows are queries and keys


def dropouts(encoder: nn.Module) -> Iterator[Dropout]:
    """Yield the dropout rates of an encoder: of its dropout modules, and those that attention keeps as a number."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Dropout):
            yield Dropout(name, module, "p")
        for attribute in ("dropout", "attention_dropout"):
            if isinstance(vars(module).get(attribute), float):
                yield Dropout(name, module, attribute)


def first_position(encoder: nn.Module) -> int:
    """Return the position of a text's first token: 0, or the one after the padding's (RoBERTa, MPNet)."""
    table = _positions(encoder)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def max_tokens(encoder: Any) -> int | None:
    """Return the maximum number of tokens of a text, special tokens included; None where it is not limited."""
    table = _positions(encoder)
    if table is not None:
        return table.num_embeddings - first_position(encoder)
    return getattr(encoder.config, "max_position_embeddings", None)


def packed_width(encoder: Any) -> int:
    """Return the maximum width of packed rows, in tokens; 0 where packing would change a text's embeddings.

    Local attention (ModernBERT) reaches every token of a text within its window, so that one mask serves all layers.
    """
    config = encoder.config
    if config.model_type not in PACKED or getattr(config, "is_decoder", False):
        return 0
    local = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return config.sliding_window + 1 if local else max_tokens(encoder) or 0


def _layer_list(encoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the longest list of modules, and the name of the module that has it."""
    lists = [(name, module) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(
            f"model.language.name: expected an encoder with a list of layers, got {type(encoder).__name__}, which has "
            "none"
        )
    name, longest = max(lists, key=lambda named: len(named[1]))
    return name.rpartition(".")[0], longest


def _positions(encoder: nn.Module) -> nn.Embedding | None:
    """Return the table of absolute position embeddings, if the encoder has one."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in (
            "position_embeddings",
            "position_embedding",
        ):
            return module
    return None
