"""Opens what can be searched with. The only place that decides, by a folder's content, what model it holds.

groundray.json     a model that groundray exported: its stages `retrieval` and `grounding`
config.json        a model of two towers as transformers has it, such as CLIP or SigLIP; or its name on a model hub
"""

from __future__ import annotations

from groundray.image_search.dual_encoder import DualEncoderMatcher, DualEncoderTowers
from groundray.image_search.explain import GroundingMatcher, Matcher
from groundray.image_search.towers import RetrievalTowers, Towers
from groundray.image_search.towers import check_searchable as check_stages
from groundray.model import export, two_towers
from groundray.storage.folder import Folder


def check_searchable(checkpoint: str) -> None:
    """Check that a model can search. Of an exported model, no weights are read; another is loaded.

    Raises:
        FileNotFoundError, ValueError: there is no model that can; the message says what to give.
    """
    if is_dual_encoder(checkpoint):
        DualEncoderTowers.load(checkpoint)
    else:
        check_stages(checkpoint)


def open_towers(checkpoint: str) -> Towers:
    """Load the towers of a model.

    Raises:
        FileNotFoundError, ValueError: there is no model that can search; the message says what to give.
    """
    return DualEncoderTowers.load(checkpoint) if is_dual_encoder(checkpoint) else RetrievalTowers.load(checkpoint)


def open_matcher(checkpoint: str, towers: Towers) -> Matcher | None:
    """Load the matcher of a model whose towers are loaded; None if it has none.

    Raises:
        FileNotFoundError, ValueError: as `open_towers`.
    """
    return DualEncoderMatcher(towers) if isinstance(towers, DualEncoderTowers) else GroundingMatcher.load(checkpoint)


def open_reranking_matcher(checkpoint: str, towers: Towers) -> GroundingMatcher | None:
    """Load the matcher with which found images are ranked again; None for a model whose positions were not trained to
    match words, such as a CLIP's patches.

    Raises:
        FileNotFoundError, ValueError: as `open_towers`.
    """
    return None if isinstance(towers, DualEncoderTowers) else GroundingMatcher.load(checkpoint)


def is_dual_encoder(checkpoint: str) -> bool:
    """Return whether a folder, URL or name holds a model of transformers, False for an exported model.

    Raises:
        FileNotFoundError: it holds neither.
    """
    folder = Folder.at(checkpoint)
    if folder.exists(export.ABOUT):
        return False
    if folder.exists(two_towers.CONFIG) or (two_towers.is_hub_name(checkpoint) and two_towers.type_at(checkpoint)):
        return True
    raise FileNotFoundError(
        f"expected an exported model at {folder}, found no {export.ABOUT}: give a finished run's model/ folder; or a "
        f"CLIP, SigLIP or ALIGN as transformers writes it, with {two_towers.CONFIG}, which is not there either"
    )
