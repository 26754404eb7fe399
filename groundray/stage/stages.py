"""The stages by name, in the order of the paper's method. A new stage is a line here, a file and a config section."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from groundray.config import Settings
from groundray.stage.grounding import GroundingStage
from groundray.stage.language import LanguageStage
from groundray.stage.protocol import Stage
from groundray.stage.relational import RelationalStage
from groundray.stage.retrieval import RetrievalStage
from groundray.stage.visual import VisualStage

STAGES: dict[str, Callable[[Settings, PreTrainedTokenizerFast], Stage]] = {
    "visual": VisualStage.open,
    "language": LanguageStage.open,
    "grounding": GroundingStage.open,
    "relational": RelationalStage.open,
    "retrieval": RetrievalStage.open,
}

# The stages whose heads a stage uses, and which must be trained before it.
NEEDS: dict[str, tuple[str, ...]] = {"retrieval": ("relational",)}
