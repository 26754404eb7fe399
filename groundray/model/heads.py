"""The heads that stages add to the two streams (the relational stage's is in `relation_module.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_MASKED_LM_MAPPING, BertConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from groundray.device_copy import to_device
from groundray.model.initialization import Initialization
from groundray.model.pooling import mean_of_valid

# The names behind the numbers of a stage's data, by kind: `classes`, `predicates`.
Vocabulary = Mapping[str, tuple[str, ...]]

MAX_SCALE = 100.0  # of logits, the inverse of a learned temperature (Radford et al. 2021, CLIP)


class Classifier(nn.Module):
    """Classifier of images: 2x2 max-pool of the positions, then two hidden layers (paper, visual stage).

    With `hidden` = 0 it is a linear map of the maximum over all positions: a class may show anywhere in the image.

    With `input` = position its layers see one position at a time, and the logit of a class is the maximum over
    positions, as the match of a word is in the match map. A pooled image holds the features of all its objects
    together: with a red star and a green heart it cannot be told from one with a red heart.

    Args:
        width: dimension of an embedding.
        positions: number of positions of an image, a square number.
        hidden: width of the hidden layers; 0 for none.
        classes: number of classes.
        initialization: `identity` keeps the size of activations over the hidden layers (He et al. 2015); PyTorch's own
            shrinks them to 0.4 at each ReLU.
        input: what the layers see, all positions of an image or one.
    """

    def __init__(
        self,
        width: int,
        positions: int,
        hidden: int,
        classes: int,
        initialization: Initialization = "identity",
        input: Literal["image", "position"] = "image",
    ):
        super().__init__()
        self.input = input
        self.side = round(positions**0.5)
        self.window = min(2, self.side) if hidden else self.side
        pooled = width if input == "position" else (self.side // self.window) ** 2 * width
        self.layers = (
            nn.Sequential(
                nn.Linear(pooled, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(hidden, classes),
            )
            if hidden
            else nn.Sequential(nn.Linear(pooled, classes))
        )
        for layer in self.layers[:-1] if initialization == "identity" else ():
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        last = self.layers[-1]
        if input == "position" and isinstance(last, nn.Linear):
            # a class begins at odds of 1 to the others: at even odds, the first steps teach all positions that no
            # class is there, and training then stayed where it was for 1,250 steps (Lin et al. 2017, focal loss)
            nn.init.constant_(last.bias, -math.log(max(1, classes - 1)))

    def set_dropout(self, rate: float) -> None:
        """Set the dropout rate between the layers, 0 to 1."""
        _set_dropout(self, rate)

    def forward(self, V: Float[Tensor, "image position dim"]) -> Float[Tensor, "image class"]:
        """Return the logits of the classes."""
        if self.input == "position":
            return self.layers(V).amax(dim=1)
        grid = V.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.layers(F.max_pool2d(grid, self.window).flatten(1))


class MaskedLanguageHead(nn.Module):
    """Masked language head (Devlin et al. 2019). Its output matrix is tied to the word embeddings.

    Args:
        encoder: configuration of the language stream, whose own head it is.

    Raises:
        ValueError: the encoder has no masked language head.
    """

    def __init__(self, encoder: PreTrainedConfig):
        super().__init__()
        # BERT's has the names of earlier checkpoints
        bert = isinstance(encoder, BertConfig)
        self.transform = BertPredictionHeadTransform(encoder) if bert else OwnTransform(encoder)
        self.bias = nn.Parameter(torch.zeros(encoder.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "token hidden"], embeddings: Float[Tensor, "word dim"]
    ) -> Float[Tensor, "token word"]:
        """Return the logits of all word pieces at some tokens.

        Args:
            hidden: last hidden states of the masked tokens.
            embeddings: word embeddings of the language stream.
        """
        return F.linear(self.transform(hidden), embeddings, self.bias)


class OwnTransform(nn.Module):
    """The masked language head of an encoder of `transformers`, up to its output matrix.

    It is the encoder's own code: its class for masked language modelling, with given hidden states in place of the
    encoder and nothing in place of the output matrix.

    Raises:
        ValueError: the encoder has no such class, or its head has another form.
    """

    def __init__(self, encoder: PreTrainedConfig):
        super().__init__()
        kind = masked_language_class(encoder)
        with torch.device("meta"):
            whole: Any = kind(encoder)
        setattr(whole, whole.base_model_prefix, _GivenHiddenStates())
        output = whole.get_output_embeddings()
        name = next((name for name, module in whole.named_modules() if module is output), "")
        if not name or len(output.weight) != encoder.vocab_size:
            raise ValueError(f"expected an output matrix of the word pieces in {kind.__name__}, found none")
        owner, _, last = name.rpartition(".")
        setattr(whole.get_submodule(owner), last, nn.Identity())
        if getattr(whole.get_submodule(owner), "bias", None) is not None:
            whole.get_submodule(owner).register_parameter("bias", None)  # the output's: the head has its own
        whole.to_empty(device=torch.get_default_device())
        for module in whole.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        self.own = whole

    def forward(self, hidden: Float[Tensor, "token dim"]) -> Float[Tensor, "token out"]:
        """Return what is compared with each word embedding."""
        return self.own(inputs_embeds=hidden[None]).logits[0]


class _GivenHiddenStates(nn.Module):
    """Stands for an encoder whose last hidden state is known."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def masked_language_class(encoder: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of `transformers` for masked language modelling with an encoder.

    Raises:
        ValueError: there is none, as for the text towers of CLIP and SigLIP.
    """
    if type(encoder) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise ValueError(
            f"stage language: expected an encoder with a masked language head, got {encoder.model_type}, which has "
            "none: leave the stage out (stages), or choose another encoder (model.language.name)"
        )
    found: Any = MODEL_FOR_MASKED_LM_MAPPING[type(encoder)]
    return found


class LogitParameters(nn.Module):
    """The temperature and the bias of a contrastive loss's logits, similarity / temperature + bias, if learned.

    Attributes:
        log_scale: logarithm of the inverse temperature; None if the temperature is not learned.
        bias: None if it is not learned.
    """

    log_scale: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("log_scale", None)
        self.register_parameter("bias", None)

    def learn(self, temperature: float | None, bias: float | None) -> None:
        """Learn a temperature and a bias, each from a value; None for one that is not learned.

        What is learned already keeps its value.
        """
        values = {"log_scale": None if temperature is None else -math.log(temperature), "bias": bias}
        for name, value in values.items():
            if value is None:
                self.register_parameter(name, None)
            elif getattr(self, name) is None:
                self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def forward(self, samples: int) -> tuple[Float[Tensor, " sample"] | None, Float[Tensor, " sample"] | None]:
        """Return the learned temperature and the learned bias, each once for each sample; None if not learned.

        The scale is bounded first, as CLIP does after each step: the last step may have passed the bound.
        """
        temperature, bias = self.log_scale, self.bias
        if temperature is not None:
            temperature.data.clamp_(max=math.log(MAX_SCALE))
            temperature = torch.exp(-temperature).expand(samples)
        return temperature, None if bias is None else bias.expand(samples)


class GroundingHeads(nn.Module):
    """A linear map of each stream into the space of the match map, and what the loss learns.

    Args:
        initialization: with `identity`, training starts from the pretrained streams' embeddings.
    """

    def __init__(self, width: int, initialization: Initialization = "identity"):
        super().__init__()
        self.visual = nn.Linear(width, width)
        self.language = nn.Linear(width, width)
        self.logits = LogitParameters()
        for head in (self.visual, self.language) if initialization == "identity" else ():
            nn.init.eye_(head.weight)
            nn.init.zeros_(head.bias)


class RetrievalHeads(nn.Module):
    """One unit vector for each image and each caption, for image search (paper, retrieval).

    A two-layer MLP is applied to the cross-modal attention's key at each position, another to its query at each token;
    then the mean is taken over positions, or over the counted tokens: before the second layer, which is linear, so that
    it is computed once for each image or text. A text without counted tokens is 0.
    """

    def __init__(self, width: int):
        super().__init__()
        self.image, self.text = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, width))
            for _ in range(2)
        )

    def set_dropout(self, rate: float) -> None:
        """Set the dropout rate between the layers, 0 to 1."""
        _set_dropout(self, rate)

    def images(self, keys: Float[Tensor, "image position dim"]) -> Float[Tensor, "image dim"]:
        """Return a unit vector for each image, given the attention's keys at its positions."""
        return F.normalize(self.image[-1](_hidden(self.image, keys).mean(dim=1)), dim=-1)

    def texts(
        self, queries: Float[Tensor, "text token dim"], valid: Bool[Tensor, "text token"]
    ) -> Float[Tensor, "text dim"]:
        """Return a unit vector for each text, given the attention's queries at its tokens and the counted tokens."""
        means = self.text[-1](mean_of_valid(_hidden(self.text, queries), valid))
        has_any = to_device(valid.any(dim=1, keepdim=True), means.device)
        return F.normalize(means * has_any, dim=-1)


def _hidden(mlp: nn.Sequential, x: Tensor) -> Tensor:
    """Return what the last layer of an MLP takes."""
    for layer in list(mlp)[:-1]:
        x = layer(x)
    return x


def _set_dropout(head: nn.Module, rate: float) -> None:
    for layer in head.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = rate
