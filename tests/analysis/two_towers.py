"""Small models of images and texts with random weights, written to folders as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from analysis.models import word_pieces
from transformers import (
    AlignConfig,
    AlignModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    EfficientNetImageProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

SIDE = 16
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": SIDE, "patch_size": 8}


def write_two_towers(folder: Path, kind: str = "clip", words: tuple[str, ...] = (), seed: int = 0) -> Path:
    """Write a CLIP, SigLIP or ALIGN with its tokenizer and image processor; return its folder.

    Args:
        words: the tokenizer's words, by default those of `models.WORDS`.
    """
    torch.manual_seed(seed)
    tokenizer = word_pieces(words) if words else word_pieces()
    tokenizer.model_max_length = 12
    text: dict[str, Any] = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"eos_token_id": tokenizer.sep_token_id, "bos_token_id": tokenizer.cls_token_id, "pad_token_id": 0}
    size = {"height": SIDE, "width": SIDE}
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config={**TOWER, **PICTURE}, projection_dim=8))
        processor: Any = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    elif kind == "siglip":
        model = SiglipModel(
            SiglipConfig(text_config={**text, "projection_size": 16}, vision_config={**TOWER, **PICTURE})
        )
        processor = SiglipImageProcessor(size=size)
    else:
        size = {"height": 4 * SIDE, "width": 4 * SIDE}  # halved five times
        vision = {"image_size": 4 * SIDE, "width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 16}
        model = AlignModel(AlignConfig(text_config=text, vision_config=vision, projection_dim=32))
        processor = EfficientNetImageProcessor(size=size)
    for parameter in model.parameters():  # as initialised, all vectors would be nearly equal
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
