"""Models of two towers as transformers has them, such as CLIP and SigLIP: a vector for each image and each text.

The position vectors of an image lie in the space of the texts' vectors. They are what the model's own pooling gives of
a position alone, without training:

    CLIP and its kin    The last layer with each position attending to itself alone: the value path of MaskCLIP (Zhou et
                        al. 2022), with the layer's residual and MLP, then the final norm and the projection. The class
                        token is left out. With its usual attention, the last layer serves the class token, and its
                        positions match texts poorly, or inversely.
    SigLIP              The pooling head with its probe attending to one position alone: the same idea at the only place
                        where the model pools.
    ALIGN               The last feature map, whose mean is the image's vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedTokenizerFast

from groundray.model.loading import from_pretrained
from groundray.model.pretrained import HUB_NAME, is_nowhere, local_copy, locate, quiet, read_tokenizer
from groundray.model.projected_text import PROJECTIONS
from groundray.storage.folder import Folder

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# model types of transformers whose two towers give one vector each; BLIP reads image and text together, and a siglip2
# takes patches of an image, not its pixels (published SigLIP 2 of fixed resolution is a siglip)
TYPES = tuple(sorted(PROJECTIONS.keys() - {"siglip2"}))
SHOWN = 5


class ImageVectors(NamedTuple):
    """The vectors of images, and of the positions of each, row by row, of length 1."""

    whole: Float[Tensor, "image dim"]
    positions: Float[Tensor, "image row column dim"]


@dataclass(frozen=True)
class TwoTowers:
    """A model of two towers, in eval mode and float32.

    Attributes:
        processor: transformers' image processor of the model.
        longest: word pieces of a text; longer texts are cut, as in training.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    processor: Any
    longest: int

    @staticmethod
    def load(place: str) -> TwoTowers:
        """Load a model from a folder, a URL or a name on a model hub.

        Raises:
            ValueError: it has no image tower, it lacks weights, a tokenizer or an image processor, one of them cannot
                be read, or they do not fit each other.
        """
        with local_copy(locate(place)) as folder, quiet():
            configuration = _read(place, CONFIG, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False))
            _check_type(place, configuration.model_type)
            tokenizer = _read(place, "tokenizer", lambda: read_tokenizer(folder))
            if tokenizer is None:
                raise ValueError(
                    f"{place}: expected a fast tokenizer (tokenizer.json or vocab.txt), found none: copy the one that "
                    "the model was trained with there"
                )
            processor = _read(
                place,
                f"image processor ({PROCESSOR})",
                lambda: AutoImageProcessor.from_pretrained(folder, trust_remote_code=False),
            )
            model, report = _read(place, "weights", lambda: from_pretrained(AutoModel, folder))
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{place} lacks weights of its model: {', '.join(missing[:SHOWN])}")
        text = configuration.get_text_config()
        if len(tokenizer) > text.vocab_size:
            raise ValueError(
                f"{place}: expected a tokenizer of at most the {text.vocab_size} word pieces of the model, got one of "
                f"{len(tokenizer)}: it is another model's"
            )
        longest = min(int(tokenizer.model_max_length), text.max_position_embeddings)
        towers = TwoTowers(model.eval(), tokenizer, processor, longest)
        towers.check_images(place)
        return towers

    @property
    def kind(self) -> str:
        """transformers' type of the model, such as `clip`."""
        return self.model.config.model_type

    @property
    def image_modules(self) -> list[torch.nn.Module]:
        """The modules that an image passes."""
        modules = (getattr(self.model, name, None) for name in ("vision_model", "visual_projection"))
        return [module for module in modules if module is not None]

    def to(self, device: str) -> TwoTowers:
        """Return the towers with their model on a device."""
        return replace(self, model=self.model.to(device))

    def pixels(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "image 3 row column"]:
        """Return pictures, resized, cropped and normalised as the model's own were."""
        return self.processor(images=list(pictures), return_tensors="pt")["pixel_values"].numpy()

    @torch.no_grad()
    def image_vectors(self, pixels: Float[np.ndarray, "image 3 row column"]) -> Float[Tensor, "image dim"]:
        """Return a vector of length 1 for each image."""
        found = self.model.get_image_features(pixel_values=self._tensor(pixels))
        return F.normalize(found.pooler_output, dim=-1)

    @torch.no_grad()
    def position_vectors(self, pixels: Float[np.ndarray, "image 3 row column"]) -> ImageVectors:
        """Return a vector of length 1 for each image, and for each of its positions."""
        model, images = self.model, self._tensor(pixels)
        found = model.get_image_features(pixel_values=images, output_hidden_states=True)
        states, vision = found.last_hidden_state, model.vision_model
        if states.dim() == 4:
            positions = states.permute(0, 2, 3, 1)
        else:
            if hasattr(vision, "head"):
                alone = vision.head(states.reshape(-1, 1, states.shape[-1]))
            else:
                before = found.hidden_states[-2][:, 1:]
                (last,) = vision.encoder.layers[-1:]
                alone = last(before.reshape(-1, 1, before.shape[-1]), attention_mask=None)
                alone = alone[0] if isinstance(alone, tuple) else alone
                alone = model.visual_projection(vision.post_layernorm(alone[:, 0]))
            side = model.config.vision_config.patch_size
            rows, columns = (length // side for length in images.shape[-2:])
            positions = alone.reshape(len(images), rows, columns, -1)
        return ImageVectors(F.normalize(found.pooler_output, dim=-1), F.normalize(positions, dim=-1))

    @torch.no_grad()
    def text_vectors(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """Return a vector of length 1 for each text, its special tokens and padding as in training."""
        padded = PROJECTIONS[self.kind].padded
        inputs = self.tokenizer(
            list(texts),
            padding="max_length" if padded else True,
            truncation=True,
            max_length=self.longest,
            return_tensors="pt",
        )
        inputs.pop("token_type_ids", None)
        if padded:
            inputs.pop("attention_mask", None)  # it sees its padding, as in training
        found = self.model.get_text_features(**inputs.to(self.model.device))
        return F.normalize(found.pooler_output, dim=-1)

    def check_images(self, place: str) -> None:
        """Check that the model takes what its image processor gives.

        Raises:
            ValueError: it does not.
        """
        wide, tall = Image.new("RGB", (96, 64)), Image.new("RGB", (64, 96))
        try:
            first, second = self.pixels([wide]), self.pixels([tall])
            if first.shape != second.shape:
                raise ValueError(f"a wide picture becomes {first.shape[2:]} pixels, a tall one {second.shape[2:]}")
            self.image_vectors(first)
        except Exception as error:  # noqa: BLE001  transformers raises all kinds
            raise ValueError(
                f"{place}: expected an image processor ({PROCESSOR}) that gives what the model takes, got another "
                f"({_reason(error)}): copy the one that the model was trained with there"
            ) from None

    def _tensor(self, pixels: Float[np.ndarray, "image 3 row column"]) -> Float[Tensor, "image 3 row column"]:
        return torch.from_numpy(pixels).to(self.model.device)


def known(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether a tokenizer has word pieces for it, and no unknown one."""
    pieces = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [len(own) > 0 and tokenizer.unk_token_id not in own for own in pieces]


class NoImageTower(ValueError):
    """A model of texts alone, or one that has no vector for an image."""


def type_at(place: str) -> str | None:
    """Return transformers' type of the model at a folder, URL or name on a hub; None if none can be read."""
    where = locate(place)
    try:
        if is_nowhere(where):
            return None
        if "://" in where or Folder.at(where).exists():  # transformers would read all of a file as a configuration
            return Folder.at(where).read_json(CONFIG).get("model_type")
        with quiet():
            return AutoConfig.from_pretrained(where, trust_remote_code=False).model_type
    except Exception:  # noqa: BLE001  transformers raises all kinds
        return None


def is_two_towers(place: str) -> bool:
    """Return whether a folder, URL or name holds a model of two towers. No weights are read.

    Whatever cannot be read is none: what needs the model names the reason.
    """
    return type_at(place) in TYPES


def is_hub_name(place: str) -> bool:
    """Return whether a place may be a name on a model hub: OWNER/NAME, where no folder is called OWNER. A mistyped path
    would otherwise be looked for on the hub."""
    owner, _, name = place.partition("/")
    return bool(name and HUB_NAME.fullmatch(place)) and not Path(owner).exists()


def _read(place: str, part: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:  # noqa: BLE001  transformers raises all kinds, tokenizers plain ones
        raise ValueError(
            f"cannot load a model of images and texts from {place}: its {part} cannot be read ({_reason(error)}): "
            "give a folder with config.json, weights, a tokenizer and preprocessor_config.json, all of the same model"
        ) from None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _check_type(place: str, model_type: str) -> None:
    if model_type not in TYPES:
        raise NoImageTower(
            f"{place} is a {model_type}: expected a model with a vector for each image and each text, one of "
            f"{', '.join(TYPES)}"
        )
