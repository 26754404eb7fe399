"""Tokenizers of every kind: special tokens, words of a text, and whole words of a vocabulary."""

from __future__ import annotations

import encoders
import numpy as np
import pytest

from groundray.data.tokenization import WordPieceTokenizer, whole_words, words_of

TEXT = "A red  circle, above blue squares."
KINDS = ("wordpiece", "bytes", "unigram", "clip", "sentence_end")


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_those_that_the_tokenizer_adds(kind: str) -> None:
    tokenizer = encoders.tokenizer(kind)
    pieces = WordPieceTokenizer.of(tokenizer, 12)
    assert pieces.special_tokens == ((0, 1) if kind == "sentence_end" else (1, 1))
    assert pieces.mask_id == (None if kind in ("clip", "sentence_end") else tokenizer.mask_token_id)
    for spaces in ("", " ", "\u3000", "\x1f"):  # some tokenizers have pieces for spaces
        assert pieces.is_empty(spaces)
    assert not pieces.is_empty("red")


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_lose_words_and_never_special_tokens(kind: str) -> None:
    tokenizer = encoders.tokenizer(kind)
    pieces = WordPieceTokenizer.of(tokenizer, 6)
    ids, lengths = pieces.encode([TEXT * 3, "red"])
    _, after = pieces.special_tokens
    whole = tokenizer(TEXT * 3).input_ids
    assert ids.shape == (2, 6)
    assert ids[0].tolist() == whole[: 6 - after] + whole[-after:]
    assert lengths[0] == 6
    assert ids[1, : lengths[1]].tolist() == tokenizer("red").input_ids
    assert not np.any(ids[1, lengths[1] :])


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_ranges_of_the_text_and_have_each_piece_once(kind: str) -> None:
    encoding = WordPieceTokenizer.of(encoders.tokenizer(kind), 60).backend.encode(TEXT)
    words = words_of(TEXT, encoding)
    texts = [TEXT[start:end] for start, end, _ in words]
    assert "".join(texts) == TEXT.replace(" ", "")
    assert {"A", "red", "above", "blue"} <= set(texts)
    if kind in ("wordpiece", "bytes", "clip"):  # these split punctuation from words
        assert {"circle", ",", "squares", "."} <= set(texts)
    tokens = [token for _, _, own in words for token in own]
    assert tokens == sorted(set(tokens))
    letters = [at for at, special in enumerate(encoding.special_tokens_mask) if not special]
    spaces = [at for at in letters if not TEXT[slice(*encoding.offsets[at])].strip()]
    assert sorted([*tokens, *spaces]) == letters


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_are_single_pieces(kind: str) -> None:
    tokenizer = encoders.tokenizer(kind, ("red circle red blue",) * 50)
    words = whole_words(tokenizer.backend_tokenizer)
    assert {"red", "circle", "blue"} <= set(words)
    assert len(set(words)) == len(words)
    assert all(word.isalpha() and len(word) > 1 for word in words)
