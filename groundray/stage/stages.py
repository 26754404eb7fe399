"""The stages there are, by name, in the order of the method."""

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

# The heads of other stages that a stage works with: it cannot run before they are trained.
NEEDS: dict[str, tuple[str, ...]] = {"retrieval": ("relational",)}
