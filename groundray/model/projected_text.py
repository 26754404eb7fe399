"""Text towers with their projection: a text's vector in the space that CLIP, SigLIP or ALIGN shares with images.

A folder has one if its model is whole (both towers), or a text tower that was saved with its projection. The class of
`transformers` that is loaded holds the text tower alone; of ALIGN, AltCLIP and ChineseCLIP there is none, and the image
tower is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import transformers
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from groundray.model.loading import from_pretrained

UNUSED = ("vision_model.", "text_model.pooler.", "temperature")  # weights that no text's vector depends on


class Projection(NamedTuple):
    """How a kind of model gives a text's vector.

    Attributes:
        model: name of its class in transformers.
        vectors: calls it with token ids, special tokens included.
        padded: texts are padded to the maximum length and attend to padding, as in training.
    """

    model: str
    vectors: Callable[[Any, Int[Tensor, "text token"]], Float[Tensor, "text dim"]]
    padded: bool = False


def _embeds(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens).text_embeds


def _pooled(model: Any, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens).pooler_output


def _features(model: Any, tokens: Tensor) -> Tensor:
    return model.get_text_features(input_ids=tokens).pooler_output


# by the type of a whole model
PROJECTIONS = {
    "clip": Projection("CLIPTextModelWithProjection", _embeds),
    "metaclip_2": Projection("MetaClip2TextModelWithProjection", _embeds),
    "siglip": Projection("SiglipTextModel", _pooled, padded=True),
    "siglip2": Projection("Siglip2TextModel", _pooled, padded=True),
    "align": Projection("AlignModel", _features),
    "altclip": Projection("AltCLIPModel", _features),
    "chinese_clip": Projection("ChineseCLIPModel", _features),
}


def projection_of(config: PreTrainedConfig) -> Projection | None:
    """Return the projection of the model with a configuration; None if it has none."""
    whole = PROJECTIONS.get(config.model_type)
    saved = config.architectures or ()
    return whole or next((one for one in PROJECTIONS.values() if not one.padded and one.model in saved), None)


def read_projected_text(path: str) -> tuple[PreTrainedModel, Projection, list[str]] | None:
    """Read a text tower with its projection in float32; None if the folder's model has no projection.

    Args:
        path: folder or hub name.

    Returns:
        The model, how it gives vectors, and the names of its weights that are missing.

    Raises:
        Exception: of any kind, as `transformers` has it.
    """
    config: Any = AutoConfig.from_pretrained(path, trust_remote_code=False)
    projection = projection_of(config)
    if projection is None:
        return None
    kind: Any = getattr(transformers, projection.model)
    if kind.config_class is not type(config):  # of the text tower alone
        text = config.get_text_config()
        if hasattr(text, "projection_dim"):
            text.projection_dim = config.projection_dim  # the whole model's is the one that counts
        config = text
    model, report = from_pretrained(kind, path, config=config)
    if hasattr(model, "vision_model"):
        del model.vision_model
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED))
    return model, projection, missing


def text_tower(model: Any) -> Any:
    """Return the text tower of a model with a projection; another model as it is."""
    return getattr(model, "text_model", model)
