"""Small language models with random weights, written to folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from groundray.model.export import save_language

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "photo", "of", "the", "striped", "horse", "red", "fruit", "black", "and", "white", "bear", "zebra", ",")
PIECES = ("straw", "##berry", "##s", "##ful")


def word_pieces(words: Sequence[str] = (*WORDS, *PIECES)) -> PreTrainedTokenizerFast:
    """BERT's tokenizer with these word pieces; what they do not spell is unknown."""
    vocabulary = {piece: place for place, piece in enumerate((*SPECIAL, *words))}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=40, **names)


def bert(seed: int = 0, size: int = len(SPECIAL) + len(WORDS) + len(PIECES)) -> BertModel:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=size, initializer_range=0.5, **shape), add_pooling_layer=False)


def write(folder: Path, model: BertModel, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """A language stream as exports hold it."""
    weights = {f"bert.{name}": tensor for name, tensor in model.state_dict().items()}
    save_language(model, tokenizer or word_pieces(), folder, weights)
    return folder
