"""The stages there are, by name, in the order of the method."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerFast

from groundray.config import Settings
from groundray.stage.grounding import GroundingStage
from groundray.stage.protocol import Stage

STAGES: dict[str, Callable[[Settings, PreTrainedTokenizerFast], Stage]] = {
    "grounding": GroundingStage.open,
}
