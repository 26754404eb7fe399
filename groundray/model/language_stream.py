"""The language stream: a BERT and its last hidden state."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertModel

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
            attention_mask: True for the tokens of the text, False for padding.
        """
        packed = pack(tokens, attention_mask)
        if packed is None:
            return self.bert(input_ids=tokens, attention_mask=attention_mask).last_hidden_state
        hidden = self.bert(
            input_ids=packed.tokens, attention_mask=packed.same_text, position_ids=packed.positions
        ).last_hidden_state
        valid = attention_mask.flatten().nonzero().squeeze(1)
        rows = hidden.flatten(0, 1).index_select(0, packed.flat_index)
        return (
            hidden.new_zeros(attention_mask.numel(), self.width).index_copy(0, valid, rows).unflatten(0, tokens.shape)
        )
