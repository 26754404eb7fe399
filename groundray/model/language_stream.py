"""The language stream: a BERT and its last hidden state."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertModel

from groundray.device_copy import to_device
from groundray.model.packing import pack


class LanguageStream(nn.Module):
    """An embedding for each word piece: BERT's last hidden state.

    Attributes:
        width: dimension of an embedding.
    """

    def __init__(self, bert: BertModel):
        super().__init__()
        self.bert = bert
        self.width = int(bert.config.hidden_size)

    def forward(
        self, tokens: Int[Tensor, "sample token"], attention_mask: Bool[Tensor, "sample token"]
    ) -> Float[Tensor, "sample token dim"]:
        """Return the embeddings of texts. Values at padding are undefined.

        Args:
            tokens: ids of word pieces.
            attention_mask: True for the tokens of the text, False for padding. Read on the host: a mask on a GPU makes
                it wait.
        """
        attention_mask = attention_mask.cpu()
        packed = pack(tokens, attention_mask)
        if packed is None:
            keys = _mask_of_keys(attention_mask, tokens.device)
            return self.bert(input_ids=tokens, attention_mask=keys).last_hidden_state
        hidden = self.bert(
            input_ids=packed.tokens, attention_mask=packed.same_text, position_ids=packed.positions
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
