"""Programs of the space that images and texts share, which torch opens without groundray and the trunk's library.

Beside the weights of the stages grounding and retrieval, an exported model has

image.pt2                  pixels -> V (image, position, dim)
text.pt2                   last hidden state, attention mask -> W (text, token, dim), share (text, token)
preprocessor_config.json   from an image to its pixels, for transformers.AutoImageProcessor

The match map of an image and a text is V W^T. Their similarity is the mean over the text's tokens of the best
position's match: `share` is 1 / count at each token that counts, and 0 at the others. V and W are scaled to length 1
where the stage compares them by cosine. Pooled and retrieval vectors are images of one position and texts of one
token; their similarity is the cosine of the two vectors.

A program holds its weights. The numbers of images, texts and tokens are free.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from groundray import config
from groundray.model.export import StageModel
from groundray.model.heads import RetrievalHeads
from groundray.model.pooling import counted_tokens, mean_of_valid, pooled_images
from groundray.model.visual_stream import VisualStream
from groundray.special_tokens import SpecialTokens

STAGES = ("grounding", "retrieval")
IMAGE, TEXT, PROCESSOR = "image.pt2", "text.pt2", "preprocessor_config.json"

State = Mapping[str, Tensor]
Stage = config.Grounding | config.Retrieval


def write(
    model: Path, stage: StageModel, settings: config.Settings, visual: VisualStream, added: SpecialTokens
) -> str | None:
    """Write the programs of a stage of an exported model to `stages/STAGE/`. No random number is drawn.

    Args:
        model: the exported model's folder.
        stage: the stage, one of STAGES, and the files of its model.
        visual: a visual stream of these settings, with any weights.
        added: the special tokens that the tokenizer adds.

    Returns:
        Why there are no programs, if torch cannot export the trunk; else None.
    """
    chosen, side = settings.stage(stage.name), settings.model.image_size
    assert isinstance(chosen, Stage)
    folder = model / "stages" / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    parts = {part: load_file(model / file) for part, file in {"visual": stage.visual, **stage.heads}.items()}
    stream = copy.deepcopy(visual).float()
    stream.load_state_dict(parts["visual"])
    pixels = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    hidden = torch.zeros(2, 5, visual.embedder.out_channels)
    mask = torch.ones(2, 5, dtype=torch.int64)
    try:
        with torch.random.fork_rng(devices=[]):
            _save(_Images(stream, chosen, parts), folder / IMAGE, 1, pixels)
            _save(_Texts(chosen, parts, added), folder / TEXT, 2, hidden, mask)
    except OSError:  # such as a full disk
        raise
    except Exception as error:  # noqa: BLE001  of any kind: layers are other people's code
        for name in (IMAGE, TEXT):
            (folder / name).unlink(missing_ok=True)
        reason = shorten((str(error).strip() or type(error).__name__).splitlines()[0], 200, placeholder=" ...")
        return (
            f"{stage.name}: the model is exported without {IMAGE} and {TEXT}, as torch.export does not take trunk "
            f"{settings.model.trunk.name}: {reason}"
        )
    resize = chosen.val_resize or chosen.resize or side
    (folder / PROCESSOR).write_text(json.dumps(image_processor(resize, side), indent=2) + "\n", encoding="utf-8")
    return None


class _Images(nn.Module):
    """From images to the embeddings that a stage compares."""

    def __init__(self, visual: VisualStream, stage: Stage, parts: Mapping[str, State]):
        super().__init__()
        self.visual, self.stage, self.heads = visual, stage, None
        if isinstance(stage, config.Retrieval):
            self.projection, self.heads = _linear(parts["relational"], "attention.key"), _heads(parts["retrieval"])
            del self.heads.text
        else:
            self.projection = _linear(parts["grounding"], "visual")

    def forward(self, pixels: UInt8[Tensor, "image 3 side side"]) -> Float[Tensor, "image position dim"]:
        V = self.projection(self.visual.attend(self.visual.trunk(pixels)))
        if self.heads is not None:
            return self.heads.images(V)[:, None]
        return pooled_images(V) if _is_pooled(self.stage) else _scaled(V, self.stage)


class _Texts(nn.Module):
    """From the last hidden states of texts to the embeddings that a stage compares, and each token's share."""

    def __init__(self, stage: Stage, parts: Mapping[str, State], added: SpecialTokens):
        super().__init__()
        self.stage, self.added, self.heads = stage, added, None
        if isinstance(stage, config.Retrieval):
            self.projection, self.heads = _linear(parts["relational"], "attention.query"), _heads(parts["retrieval"])
            del self.heads.image
        else:
            self.projection = _linear(parts["grounding"], "language")

    def forward(
        self, last_hidden_state: Float[Tensor, "text token dim"], attention_mask: Int[Tensor, "text token"]
    ) -> tuple[Float[Tensor, "text compared dim"], Float[Tensor, "text compared"]]:
        counted = counted_tokens(attention_mask != 0, self.stage.special_tokens, self.added)
        W = self.projection(last_hidden_state)
        if self.heads is not None:
            W = self.heads.texts(W, counted)[:, None]
        elif _is_pooled(self.stage):
            W = F.normalize(mean_of_valid(W, counted), dim=-1)[:, None]
        else:
            return _scaled(W, self.stage), counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
        return W, torch.ones_like(W[..., 0])


def _linear(state: State, name: str) -> nn.Linear:
    """Return a linear map of a head."""
    tensors = {key: state[f"{name}.{key}"] for key in ("weight", "bias") if f"{name}.{key}" in state}
    layer = nn.Linear(*reversed(tensors["weight"].shape), bias="bias" in tensors)
    layer.load_state_dict(tensors)
    return layer


def _heads(state: State) -> RetrievalHeads:
    heads = RetrievalHeads(len(state["image.0.bias"]))
    heads.load_state_dict(state)
    return heads


def _is_pooled(stage: Stage) -> bool:
    return isinstance(stage, config.Grounding) and stage.alignment == "pooled"


def _scaled(x: Tensor, stage: Stage) -> Tensor:
    return F.normalize(x, dim=-1) if isinstance(stage, config.Grounding) and stage.similarity == "cosine" else x


def _save(program: nn.Module, file: Path, free: int, *inputs: Tensor) -> None:
    """Export a module and write the program.

    Args:
        free: number of the inputs' first dimensions that are free.
    """
    dynamic = tuple(dict.fromkeys(range(free), torch.export.Dim.DYNAMIC) for _ in inputs)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # about its own internals
        exported = torch.export.export(program.eval(), inputs, dynamic_shapes=dynamic)
        exported.example_inputs = None
        for node in list(exported.graph.nodes):
            node.meta.pop("stack_trace", None)  # it names files of this machine
            if node.target is torch.ops.aten._assert_tensor_metadata.default:  # that the input is on this device
                exported.graph.erase_node(node)
        written = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
        torch.export.save(exported, written)
        file.write_bytes(written.getbuffer())


def image_processor(resize: int, crop: int) -> dict[str, Any]:
    """Return the settings of an image processor of `transformers`, which gives pixels 0-255: the trunk scales them."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resize},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_rescale": False,
        "do_normalize": False,
    }
