"""Everything that a search service answers from: a searchable pool, match maps and the word space."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from groundray.data.schema import INDEX
from groundray.image_search.calibration import Calibration
from groundray.image_search.checkpoint import open_matcher, open_reranking_matcher, open_towers
from groundray.image_search.explain import Matcher
from groundray.image_search.index import default_folder, log
from groundray.image_search.query import RERANK, Search
from groundray.image_search.suggestions import suggested_words
from groundray.image_search.word_space import WordSpace
from groundray.model import export
from groundray.storage.folder import Folder


@dataclass(frozen=True)
class Service:
    """A model and a pool of images, opened.

    Attributes:
        matcher: None if the model has no grounding stage.
        calibration: usual matches in the pool; None without a matcher.
        suggested: words to try.
    """

    search: Search
    matcher: Matcher | None
    space: WordSpace
    calibration: Calibration | None = None
    suggested: tuple[str, ...] = ()

    @staticmethod
    def open(
        checkpoint: str,
        images: str,
        index: str | None = None,
        norms: str | None = None,
        rerank: int = RERANK,
    ) -> Service:
        """Open an exported model and a pool of images. A missing index, and missing position features, are made in this
        process.

        Args:
            checkpoint: a run's `model/` folder.
            images: folder or URL of shards with images.
            index: folder of the indexes (default: beside the model).
            norms: folder of `categories.csv` and `concreteness.csv` (default: the words of the model's tokenizer).
            rerank: number of the nearest images that the match map ranks again, as of `Search.open`.

        Raises:
            FileNotFoundError, ValueError: the model, the images or the norms cannot be used.
        """
        towers = open_towers(checkpoint)
        again = open_reranking_matcher(checkpoint, towers) if rerank else None
        search = Search.of(towers, images, index or default_folder(checkpoint), log, again, rerank)
        matcher = again or open_matcher(checkpoint, towers)
        calibration = Calibration.open(matcher, towers, search.index, log) if matcher else None
        space = WordSpace.open(checkpoint, norms, towers.backend)
        suggested = suggested_words(space.words.shown, search.index.images)
        return Service(search, matcher, space, calibration, suggested)


def state_of(checkpoint: str | None, images: str) -> str:
    """Return a hash that changes when another model or other images are at these paths or URLs. Reads no weights and no
    images. A model's name on a hub does not change.

    Args:
        checkpoint: path or URL of the model; None for the images alone.

    Raises:
        OSError: the images are not there, or something cannot be reached.
    """
    model = None if checkpoint is None else Folder.at(checkpoint)
    files = model and (model.read_bytes(export.ABOUT) if model.exists(export.ABOUT) else model.states())
    return hashlib.sha256(repr((files, Folder.at(images).read_bytes(INDEX))).encode()).hexdigest()
