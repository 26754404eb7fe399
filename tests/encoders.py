"""Small encoders of every architecture with random weights, and small tokenizers as their families have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from groundray.model.pretrained import _text_class, _without_pooler

TEXTS = ("a red circle above a small blue square", "the large green triangle, left of it", "two circles and a square.")
# name of a tokenizer's kind, by architecture
TOKENIZERS = {
    "bert": "wordpiece",
    "distilbert": "wordpiece",
    "electra": "wordpiece",
    "mpnet": "wordpiece",
    "roberta": "bytes",
    "modernbert": "bytes",
    "deberta": "bytes",
    "deberta-v2": "unigram",
    "clip_text_model": "clip",
    "siglip_text_model": "sentence_end",
}
ARCHITECTURES = tuple(TOKENIZERS)
MASKED = tuple(name for name in ARCHITECTURES if not name.endswith("text_model"))  # have a masked language head


def tokenizer(kind: str, texts: tuple[str, ...] = TEXTS, cased: bool = False) -> PreTrainedTokenizerFast:
    """Make a tokenizer: BERT's, RoBERTa's, DeBERTa-v2's, CLIP's, or SigLIP's, which adds an end alone."""
    bytes_alphabet = pre_tokenizers.ByteLevel.alphabet()
    named: dict[str, Any]
    if kind == "wordpiece":
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=not cased)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=60, special_tokens=special, show_progress=False)
        named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        ends = ("[CLS]", "[SEP]")
    elif kind in ("bytes", "clip"):
        clip = kind == "clip"
        ending: Any = {"end_of_word_suffix": "</w>"} if clip else {}
        special = ["<|startoftext|>", "<|endoftext|>"] if clip else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        made = Tokenizer(models.BPE(**ending))
        if clip:
            made.normalizer = normalizers.Lowercase()
            made.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        else:
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=special,
            initial_alphabet=bytes_alphabet,
            **ending,
            show_progress=False,
        )
        if clip:
            named = {"bos_token": special[0], "eos_token": special[1], "pad_token": special[1], "unk_token": special[1]}
        else:
            named = dict(
                zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), special, strict=True)
            ) | {"cls_token": "<s>", "sep_token": "</s>"}
        ends = (special[0], special[1]) if clip else ("<s>", "</s>")
    else:
        v2 = kind == "unigram"
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"] if v2 else ["<pad>", "</s>", "<unk>"]
        words = dict.fromkeys(f"▁{word}" for text in texts for word in text.split())
        letters = dict.fromkeys("▁" + "".join(texts).replace(" ", ""))
        made = Tokenizer(
            models.Unigram(
                [
                    *((piece, 0.0) for piece in special),
                    *((word, -2.0) for word in words),
                    *((one, -9.0) for one in letters),
                ],
                unk_id=special.index("[UNK]" if v2 else "<unk>"),
            )
        )
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = None
        keys = (
            ("pad_token", "cls_token", "sep_token", "unk_token", "mask_token")
            if v2
            else (
                "pad_token",
                "eos_token",
                "unk_token",
            )
        )
        named = dict(zip(keys, special, strict=True))
        ends = ("[CLS]", "[SEP]") if v2 else ("", "</s>")
    if trainer:
        made.train_from_iterator(texts * 3, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=" ".join(part for part in (ends[0], "$A", ends[1]) if part),
        special_tokens=[(end, made.token_to_id(end)) for end in ends if end],
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=40, **named)


def configuration(name: str, vocab_size: int, **changes: Any) -> PreTrainedConfig:
    """Return a configuration of two narrow layers."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
    own: dict[str, dict[str, Any]] = {
        "roberta": {"pad_token_id": 1, "max_position_embeddings": 42},
        "mpnet": {"pad_token_id": 1, "max_position_embeddings": 42},
        "distilbert": {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2},
        "electra": {"embedding_size": 8},
        "modernbert": {**ids, "pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 24},
        "deberta": relative,
        "deberta-v2": {**relative, "position_buckets": 8, "share_att_key": True},
        "clip_text_model": {"max_position_embeddings": 40, **ids},
        "siglip_text_model": {"max_position_embeddings": 40, **ids},
        "siglip2_text_model": {"max_position_embeddings": 40, **ids},
    }
    given = {**({} if name == "distilbert" else shape), **own.get(name, {}), **changes}
    return CONFIG_MAPPING[name](vocab_size=vocab_size, **given)


def encoder(name: str, vocab_size: int = 90, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return an encoder with random weights that are large enough for all parts to matter."""
    torch.manual_seed(seed)
    kind = _text_class(configuration(name, vocab_size))
    made = kind(configuration(name, vocab_size, **changes), **_without_pooler(kind))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return made


def write(folder: Path, name: str, weights: bool = True, texts: tuple[str, ...] = TEXTS, **changes: Any) -> Path:
    """Write an encoder and its tokenizer as a folder of transformers; without weights, its configuration alone."""
    pieces = tokenizer(TOKENIZERS.get(name, "sentence_end"), texts)
    made = encoder(name, len(pieces), pad_token_id=pieces.pad_token_id, **changes)
    (made if weights else made.config).save_pretrained(folder)
    pieces.save_pretrained(folder)
    return folder


def edit(folder: Path, file: str, **changes: object) -> None:
    """Change values of a JSON file in a folder; None removes one."""
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
