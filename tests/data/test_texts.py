"""Masked language modelling: which word pieces are masked, and their replacements."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from conftest import SmallWorld

from groundray.data.texts import IGNORE_INDEX, TextSamples
from groundray.data.tokenization import WordPieceTokenizer

WORDS = ["a striped square", "perhaps a red circle above a small blue star", "a", ""]


@pytest.fixture(scope="module")
def samples(world: SmallWorld) -> TextSamples:
    return TextSamples(
        "text", WordPieceTokenizer((world.source / "tokenizer" / "tokenizer.json").read_text(), 16), 0.15, seed=3
    )


def texts(count: int) -> pa.Table:
    return pa.table({"id": [f"captions.txt:{n}" for n in range(count)], "text": (WORDS * count)[:count]})


def test_mask_is_fixed_by_epoch_and_sample(samples: TextSamples) -> None:
    table = texts(40)
    first = samples.decode(samples.draw(table, 0))
    assert np.array_equal(first["tokens"], samples.decode(samples.draw(table, 0))["tokens"])
    turned = samples.decode(samples.draw(table.take(list(range(39, -1, -1))), 0))
    assert np.array_equal(first["target"], turned["target"][::-1])  # independent of the other rows
    assert not np.array_equal(first["target"], samples.decode(samples.draw(table, 1))["target"])
    still = replace(samples, seed=None)
    assert np.array_equal(still.decode(still.draw(table, 0))["target"], still.decode(still.draw(table, 5))["target"])


def test_fractions_are_those_of_bert(samples: TextSamples) -> None:
    arrays = samples.decode(samples.draw(texts(4000), 0))
    tokens, target = arrays["tokens"], arrays["target"]
    plain, lengths = samples.tokenizer.encode((WORDS * 1000)[:4000])
    drawn = target != IGNORE_INDEX
    inner = (np.arange(16) > 0) & (np.arange(16) < lengths[:, None] - 1)
    assert not (drawn & ~inner).any()  # never [CLS], [SEP] or padding
    assert np.array_equal(target[drawn], plain[drawn])
    assert np.array_equal(tokens[~drawn], plain[~drawn])
    assert drawn.sum() / inner.sum() == pytest.approx(0.15, abs=0.01)
    mask = samples.tokenizer.backend.token_to_id("[MASK]")
    assert (tokens[drawn] == mask).mean() == pytest.approx(0.8, abs=0.03)
    other = (tokens != plain)[drawn] & (tokens[drawn] != mask)
    assert other.mean() == pytest.approx(0.1, abs=0.03)
    assert (
        tokens[drawn][other].min() > mask
    )  # special tokens come first in the vocabulary, and never replace a word piece


def test_captions_give_one_text_per_image(samples: TextSamples) -> None:
    captioned = replace(samples, kind="captions")
    assert captioned.columns == ("id", "captions")  # images are not read
    table = pa.table({"id": ["7"], "captions": [["a red circle", "a blue star"]]})
    drawn = {captioned.draw(table, epoch)["text"][0].as_py() for epoch in range(20)}
    assert drawn == {"a red circle", "a blue star"}
    still = replace(captioned, seed=None)
    assert {still.draw(table, epoch)["text"][0].as_py() for epoch in range(20)} == {"a red circle"}


def test_batch_is_truncated_to_its_longest_text(samples: TextSamples) -> None:
    batch = samples.collate(samples.decode(samples.draw(texts(1), 0)))
    assert batch.tokens.shape == batch.targets.shape == batch.attention_mask.shape == (1, 5)
    nothing = samples.collate(samples.decode(samples.draw(texts(0), 0)))
    assert nothing.tokens.shape == (0, 0)


def test_samples_can_be_pickled(samples: TextSamples) -> None:
    samples.decode(samples.draw(texts(1), 0))
    assert pickle.loads(pickle.dumps(samples)) == samples  # noqa: S301
