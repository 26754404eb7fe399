"""Encoders of every architecture: embeddings, packing, trained parts, heads, and folders of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import encoders
import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, CLIPModel, PreTrainedModel, SiglipModel

from groundray import config
from groundray.analysis.inputs.embedding import Embedder, Options
from groundray.model import encoder_layout, export
from groundray.model.build import build_language
from groundray.model.freezing import FrozenRows, hold_rows
from groundray.model.heads import MaskedLanguageHead
from groundray.model.language_stream import LanguageStream
from groundray.model.packing import pack
from groundray.model.pretrained import load_masked_language_head, load_tokenizer
from groundray.model.weights import fill

pytestmark = pytest.mark.thorough  # encoders of many kinds

PACKED = ("bert", "roberta", "distilbert", "electra", "modernbert", "siglip_text_model")


def texts(rows: int = 12, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, 90, (rows, width), generator=generator)
    valid = torch.arange(width) < torch.randint(2, width // 2, (rows, 1), generator=generator)
    valid[0] = True
    return tokens, valid


@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_embeddings_and_gradients_are_those_of_each_text_alone(name: str) -> None:
    encoder = encoders.encoder(name).double().eval()
    stream = LanguageStream(encoder)
    tokens, valid = texts()
    assert pack(tokens, valid) is not None
    assert (encoder_layout.packed_width(encoder) >= 12) == (name in PACKED)
    weights = torch.randn(12, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [p for part in encoder_layout.used(encoder) for p in part.parameters()]

    def results(embeddings: list[torch.Tensor]) -> list[torch.Tensor]:
        total = sum(((one * weight[: len(one)]).sum() for one, weight in zip(embeddings, weights, strict=True)))
        return [*embeddings, *torch.autograd.grad(total, parameters, materialize_grads=True)]

    found = stream(tokens, valid)
    ours = results([row[mask] for row, mask in zip(found, valid, strict=True)])
    alone = results(
        [encoder(input_ids=row[mask][None]).last_hidden_state[0] for row, mask in zip(tokens, valid, strict=True)]
    )
    for one, other in zip(ours, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_local_attention_is_packed_only_where_it_reaches_the_whole_text() -> None:
    encoder = encoders.encoder("modernbert", local_attention=8).double().eval()
    assert encoder_layout.packed_width(encoder) == 5
    stream = LanguageStream(encoder)
    tokens, valid = texts()
    with torch.no_grad():
        found = stream(tokens, valid)
        for row, mask, embeddings in zip(tokens, valid, found, strict=True):
            alone = encoder(input_ids=row[mask][None]).last_hidden_state[0]
            torch.testing.assert_close(embeddings[mask], alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_top_layers_are_found_with_the_norm_of_their_output(name: str) -> None:
    encoder = encoders.encoder(name)
    trained = {id(p) for part in encoder_layout.top(encoder, 1) for p in part.parameters()}
    names = {n for n, p in encoder.named_parameters() if id(p) in trained}
    layer = next(n for n, module in encoder.named_modules() if isinstance(module, torch.nn.ModuleList)) + ".1."
    norm = {
        "modernbert": "final_norm.",
        "clip_text_model": "final_layer_norm.",
        "siglip_text_model": "final_layer_norm.",
    }
    assert names == {n for n, _ in encoder.named_parameters() if n.startswith((layer, norm.get(name, layer)))}
    assert encoder_layout.top(encoder, 0) == []
    with pytest.raises(ValueError, match=r"trains\.language_layers: expected at most 2, got 3"):
        encoder_layout.top(encoder, 3)


@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_attention_depends_on_query_and_key_alone(name: str) -> None:
    """With the queries and keys of another model of equal weights otherwise, attention is the other model's."""
    first, second = (encoders.encoder(name, seed=seed, attn_implementation="eager").eval() for seed in (0, 1))
    tokens = torch.arange(5, 13)[None]
    with torch.no_grad():
        for (_, ours), (path, theirs) in zip(first.named_parameters(), second.named_parameters(), strict=True):
            if ".1." not in path:
                ours.copy_(theirs)  # the last layer's input is the same
        layers = [encoder_layout.layers(model)[1] for model in (first, second)]
        found = [encoder_layout.query_key(layer, 2) for layer in layers]
        before = [attention(model, tokens) for model in (first, second)]
        assert not torch.allclose(*before, atol=1e-3)
        for ours, theirs in zip(found[0].whole, found[1].whole, strict=True):
            ours.copy_(theirs)
        for ours, theirs in zip(found[0].rows, found[1].rows, strict=True):
            ours.parameter[ours.selected] = theirs.parameter[theirs.selected]
        norms = [m for n, m in layers[0].named_modules() if isinstance(m, torch.nn.LayerNorm)]
        theirs = [m for n, m in layers[1].named_modules() if isinstance(m, torch.nn.LayerNorm)]
        for one, other in zip(norms, theirs, strict=True):
            one.load_state_dict(other.state_dict())  # those before attention come first, and are no projection
        torch.testing.assert_close(attention(first, tokens), attention(second, tokens))
        values = [p for p in layers[0].parameters() if p.ndim == 2]
        assert len(found[0].whole) + len(found[0].rows) < len(values) + 12


def attention(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True).attentions[-1]


@pytest.mark.parametrize("name", ["modernbert", "deberta"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_frozen_rows_of_a_fused_projection_stay_to_the_bit(name: str, kind: str) -> None:
    encoder = encoders.encoder(name, **({"attention_bias": True} if name == "modernbert" else {}))
    layer = encoder_layout.layers(encoder)[1]
    found = encoder_layout.query_key(layer, 2)
    assert found.rows
    rows = [FrozenRows(one) for one in found.rows]
    parameters = [one.parameter for one in rows]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizers = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.3),
        "adam": lambda: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.3),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.3),
    }
    optimizer = optimizers[kind]()
    hold_rows(optimizer, rows)
    for _ in range(3):
        optimizer.zero_grad()
        sum(parameter.square().sum() + parameter.sum() for parameter in parameters).backward()
        for one, parameter in zip(found.rows, parameters, strict=True):
            assert parameter.grad is not None
            assert not parameter.grad[one.selected].any()
            assert parameter.grad[~one.selected].all()
        optimizer.step()
    for one, parameter, old in zip(found.rows, parameters, before, strict=True):
        assert 0 < one.selected.sum() < len(one.selected)
        assert torch.equal(parameter[one.selected], old[one.selected])
        assert not torch.isclose(parameter[~one.selected], old[~one.selected]).any()
    for one in rows:
        one.release()
    optimizer.zero_grad()
    sum(parameter.sum() for parameter in parameters).backward()
    assert all(parameter.grad is not None and parameter.grad.all() for parameter in parameters)


@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_dropout_covers_the_whole_encoder_and_is_put_back(name: str) -> None:
    encoder = encoders.encoder(name)
    stream = LanguageStream(encoder)
    before = [one.rate for one in encoder_layout.dropouts(encoder)]
    assert before
    for one in encoder_layout.dropouts(encoder):
        setattr(one.module, one.attribute, 0.7)
    tokens = torch.arange(5, 13)[None]
    encoder.train()
    assert not torch.equal(*(encoder(input_ids=tokens).last_hidden_state for _ in range(2)))
    for one in encoder_layout.dropouts(encoder):
        setattr(one.module, one.attribute, 0.0)
    assert torch.equal(*(encoder(input_ids=tokens).last_hidden_state for _ in range(2)))
    for one in encoder_layout.dropouts(encoder):
        setattr(one.module, one.attribute, stream.dropout_rates[one.name, one.attribute])
    assert [one.rate for one in encoder_layout.dropouts(encoder)] == before


@pytest.mark.parametrize("name", ["roberta", "mpnet", "bert", "clip_text_model"])
def test_the_longest_text_has_a_position_for_each_token(name: str) -> None:
    encoder = encoders.encoder(name, max_position_embeddings=42).eval()
    longest = {"roberta": 40, "mpnet": 40}.get(name, 42)
    assert encoder_layout.max_tokens(encoder) == longest
    tokens = torch.full((2, longest), 7)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 3:] = False
    with torch.no_grad():
        assert LanguageStream(encoder)(tokens, mask).isfinite().all()


@pytest.mark.parametrize("name", encoders.MASKED)
def test_masked_language_head_is_the_encoders_own(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    published = AutoModelForMaskedLM.from_config(encoders.configuration(name, 90)).eval()
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    published.save_pretrained(tmp_path / "masked")
    settings = config.Language(name=str(tmp_path / "masked"))
    language = build_language(settings).eval()
    head = MaskedLanguageHead(language.encoder.config)
    fill(head, load_masked_language_head(settings), "the test")
    tokens = torch.arange(5, 13)[None]
    embeddings = language.encoder.get_input_embeddings().weight
    with torch.no_grad():
        ours = head(language(tokens, tokens > 0)[0], embeddings)
        torch.testing.assert_close(ours, published(tokens).logits[0], rtol=1e-5, atol=1e-5)
    names = {n for n, p in published.named_parameters()} - {
        f"{published.base_model_prefix}.{n}" for n, _ in published.base_model.named_parameters()
    }
    assert len(list(head.parameters())) == len(names)
    language.encoder.save_pretrained(tmp_path / "alone")
    assert load_masked_language_head(config.Language(name=str(tmp_path / "alone"))) == {}


@pytest.mark.parametrize("name", ["clip_text_model", "siglip_text_model"])
def test_text_towers_have_no_masked_language_head(name: str) -> None:
    with pytest.raises(ValueError, match=f"a masked language head, got {name}, which has none: leave the stage out"):
        MaskedLanguageHead(encoders.configuration(name, 90))


@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_a_folder_gives_the_encoder_that_was_saved(tmp_path: Path, name: str) -> None:
    folder = encoders.write(tmp_path / name, name)
    settings = config.Language(name=str(folder))
    tokenizer = load_tokenizer(settings)
    saved = encoders.encoder(name, len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    loaded = build_language(settings).encoder
    assert all(torch.equal(loaded.state_dict()[n], t) for n, t in saved.state_dict().items())
    if name != "siglip_text_model":  # AutoModel lists none; what an export writes is another matter
        assert type(AutoModel.from_pretrained(folder)) is type(loaded)
    assert AutoTokenizer.from_pretrained(folder)("a red circle").input_ids == tokenizer("a red circle").input_ids


@pytest.mark.parametrize("name", encoders.ARCHITECTURES)
def test_other_libraries_open_an_export(tmp_path: Path, name: str) -> None:
    """transformers.AutoModel has the same hidden states, sentence-transformers their means, special tokens counted."""
    library = pytest.importorskip("sentence_transformers", reason="extra `pretrained` is not installed")
    folder = encoders.write(tmp_path / name, name)
    encoders.edit(folder, "tokenizer_config.json", model_input_names=["input_ids"])  # as SigLIP's: no mask
    settings = config.Language(name=str(folder))
    tokenizer, stream = load_tokenizer(settings), build_language(settings).eval()
    export.save_language(stream.encoder, tokenizer, tmp_path / "export", stream.state_dict())

    texts = [*encoders.TEXTS, "red"]
    opened = AutoModel.from_pretrained(tmp_path / "export")
    encoded = AutoTokenizer.from_pretrained(tmp_path / "export")(texts, padding=True, return_tensors="pt")
    mask = encoded.attention_mask.bool()
    assert not mask.all()
    with torch.no_grad():
        hidden = opened(**encoded).last_hidden_state
        alone = [
            stream(ids[kept][None], kept[kept][None])[0] for ids, kept in zip(encoded.input_ids, mask, strict=True)
        ]
    for row, kept, own in zip(hidden, mask, alone, strict=True):
        torch.testing.assert_close(row[kept], own, rtol=1e-4, atol=1e-5)
    if name != "siglip_text_model":
        assert all(torch.equal(opened.state_dict()[key], weight) for key, weight in stream.encoder.state_dict().items())

    vectors = torch.from_numpy(library.SentenceTransformer(str(tmp_path / "export"), device="cpu").encode(texts))
    torch.testing.assert_close(vectors, torch.stack([own.mean(dim=0) for own in alone]), rtol=1e-4, atol=1e-5)
    for counted in (True, False):
        embedder = Embedder.load(tmp_path / "export", Options(special_tokens=counted))
        assert torch.allclose(vectors, torch.from_numpy(embedder.embed(texts)), rtol=1e-4, atol=1e-5) == counted


@pytest.mark.parametrize(("kind", "tower"), [(CLIPModel, "clip_text_model"), (SiglipModel, "siglip_text_model")])
def test_a_whole_clip_gives_its_text_tower(tmp_path: Path, kind: Any, tower: str) -> None:
    text = encoders.configuration(tower, 90)
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    whole = kind(kind.config_class(text_config=text.to_dict(), vision_config=vision))
    whole.save_pretrained(tmp_path)
    for weights in ("published", "none"):
        encoder = build_language(config.Language(name=str(tmp_path), weights=weights)).encoder
        assert encoder.config.model_type == tower
        same = [torch.equal(t, whole.text_model.state_dict()[n]) for n, t in encoder.state_dict().items()]
        assert all(same) == (weights == "published")
