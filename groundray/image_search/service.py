"""Everything that a search service answers from: a searchable pool, match maps and the word space."""

from __future__ import annotations

from dataclasses import dataclass

from groundray.image_search.explain import Matcher
from groundray.image_search.query import Search
from groundray.image_search.word_space import WordSpace


@dataclass(frozen=True)
class Service:
    """A model and a pool of images, opened.

    Attributes:
        matcher: None if the model has no grounding stage.
    """

    search: Search
    matcher: Matcher | None
    space: WordSpace

    @staticmethod
    def open(checkpoint: str, images: str, index: str | None = None, norms: str | None = None) -> Service:
        """Open an exported model and a pool of images. A missing index is built in this process.

        Args:
            checkpoint: a run's `model/` folder.
            images: folder or URL of shards with images.
            index: folder of the indexes (default: beside the model).
            norms: folder of `categories.csv` and `concreteness.csv` (default: the words of the model's tokenizer).

        Raises:
            FileNotFoundError, ValueError: the model, the images or the norms cannot be used.
        """
        search = Search.open(checkpoint, images, index)
        space = WordSpace.open(checkpoint, norms, search.towers.tokenizer.backend)
        return Service(search, Matcher.load(checkpoint), space)
