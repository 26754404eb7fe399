"""An exported model: a folder that stands on its own.

groundray.json           format, the settings it was trained with, its metrics
visual.safetensors       the visual stream
heads.safetensors        what brings both streams into one space
language/                the language stream and its tokenizer, for transformers.AutoModel and AutoTokenizer
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedTokenizerFast

from groundray import config
from groundray.model.grounded import GroundedModel
from groundray.model.language import LanguageStream, load_tokenizer, quiet
from groundray.model.visual import build_visual

FORMAT = 1
ABOUT, VISUAL, HEADS, LANGUAGE = "groundray.json", "visual.safetensors", "heads.safetensors", "language"


@dataclass(frozen=True)
class Exported:
    """A loaded export: the model, its tokenizer, and what `groundray.json` says of it."""

    model: GroundedModel
    tokenizer: PreTrainedTokenizerFast
    details: dict[str, Any]


def save(model: GroundedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, details: dict[str, Any]) -> None:
    """Write a model to a folder; `details` must hold its run's `settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(_state(model.visual), folder / VISUAL)
    heads = nn.ModuleDict({"visual": model.visual_head, "language": model.language_head})
    safetensors.torch.save_file(_state(heads), folder / HEADS)
    with quiet():
        model.language.bert.save_pretrained(folder / LANGUAGE)
        tokenizer.save_pretrained(folder / LANGUAGE)
    about = {"format": FORMAT, **details}
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Exported:
    """The model of an exported folder, in eval mode.

    Raises:
        FileNotFoundError: it is no export.
        ValueError: of another format, or its weights are not those of its settings.
    """
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(
            f"expected an exported model at {folder}, found no {ABOUT}: give a finished run's model/ folder"
        )
    details = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if details.pop("format") != FORMAT:
        raise ValueError(f"the model at {folder} is of another format than {FORMAT}: export it again")
    settings = config.Model(**details["settings"]["model"])
    with quiet():
        language = LanguageStream(BertModel.from_pretrained(folder / LANGUAGE, add_pooling_layer=False))
    model = GroundedModel(build_visual(settings, language.width, weights=False), language)
    _fill(model.visual, folder / VISUAL)
    heads = nn.ModuleDict({"visual": model.visual_head, "language": model.language_head})
    _fill(heads, folder / HEADS)
    model.to(next(language.parameters()).dtype)
    tokenizer = load_tokenizer(config.Language(name=str(folder / LANGUAGE)))
    return Exported(model.eval(), tokenizer, details)


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}


def _fill(module: nn.Module, file: Path) -> None:
    state = safetensors.torch.load_file(file)
    module.to(next(tensor.dtype for tensor in state.values() if tensor.is_floating_point()))  # counters are not
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the settings beside it: {error}") from None
