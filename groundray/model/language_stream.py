"""The language stream: an encoder of `transformers` and its last hidden state."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from groundray.device_copy import to_device
from groundray.model import encoder_layout
from groundray.model.packing import pack
from groundray.special_tokens import BERT, SpecialTokens


class LanguageStream(nn.Module):
    """An embedding for each token: the encoder's last hidden state.

    Attributes:
        width: dimension of an embedding.
        special_tokens: how many special tokens its tokenizer adds at each end of a text.
        dropout_rates: the encoder's own dropout rates, in [0, 1), by module and attribute.
        frozen_rows: rows of trained parameters that the stage freezes (`freezing.FrozenRows`).
    """

    def __init__(self, encoder: PreTrainedModel, special_tokens: SpecialTokens = BERT):
        super().__init__()
        self.bert: Any = encoder  # whatever its kind: the name is in all checkpoints
        self.width = int(encoder.config.hidden_size)
        self.special_tokens = special_tokens
        self.dropout_rates = {(one.name, one.attribute): one.rate for one in encoder_layout.dropouts(encoder)}
        self.frozen_rows: list[Any] = []
        self._packed_width = encoder_layout.packed_width(encoder)
        self._first_position = encoder_layout.first_position(encoder)

    @property
    def encoder(self) -> Any:
        """The encoder, a model of `transformers` without a pooled output."""
        return self.bert

    def forward(
        self, tokens: Int[Tensor, "sample token"], attention_mask: Bool[Tensor, "sample token"]
    ) -> Float[Tensor, "sample token dim"]:
        """Return the embeddings of texts. Values at padding are undefined.

        Args:
            tokens: ids of tokens.
            attention_mask: True for the tokens of the text, False for padding. Read on the host: a mask on a GPU makes
                it wait.
        """
        attention_mask = attention_mask.cpu()
        if tokens.shape[1] > self._packed_width:
            mask = None if attention_mask.all() else to_device(attention_mask, tokens.device)
            return self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        packed = pack(tokens, attention_mask)
        if packed is None:
            keys = _mask_of_keys(attention_mask, tokens.device)
            return self.encoder(input_ids=tokens, attention_mask=keys).last_hidden_state
        positions = packed.positions + self._first_position if self._first_position else packed.positions
        hidden = self.encoder(
            input_ids=packed.tokens, attention_mask=packed.same_text, position_ids=positions
        ).last_hidden_state
        rows = hidden.flatten(0, 1).index_select(0, packed.flat_index)
        return (
            hidden.new_zeros(tokens.numel(), self.width).index_copy(0, packed.source, rows).unflatten(0, tokens.shape)
        )


def _mask_of_keys(
    attention_mask: Bool[Tensor, "sample token"], device: torch.device
) -> Bool[Tensor, "sample 1 token token"] | None:
    """Return the mask as transformers makes it, which waits for a GPU to do so; None where every token is valid."""
    if attention_mask.all():
        return None
    samples, tokens = attention_mask.shape
    return to_device(attention_mask, device)[:, None, None, :].expand(samples, 1, tokens, tokens)
