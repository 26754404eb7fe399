"""Loads a model of texts from where it is: a language model, or a file of word vectors."""

from __future__ import annotations

from pathlib import Path

from groundray.analysis.inputs.embedding import IN_ISOLATION, Embedder, Options
from groundray.analysis.inputs.text_model import TextModel
from groundray.analysis.inputs.word_vectors import WordVectors
from groundray.model.pretrained import is_nowhere
from groundray.storage.folder import Folder

VECTORS = "vectors.parquet"  # of a folder with one file of word vectors, and what is said of it


def load_text_model(place: str | Path, options: Options = IN_ISOLATION) -> TextModel:
    """Load a model of texts.

    Args:
        place: path or URL of a file of word vectors, or of a folder that holds `vectors.parquet`; or of a language
            model, as `Embedder.load` takes it.

    Raises:
        FileNotFoundError: the place is a path, and nothing is there.
        ValueError: there is no model, or it cannot be used.
    """
    if is_nowhere(str(place)):
        raise FileNotFoundError(f"expected a language model or a file of word vectors at {place}, found nothing there")
    file = vector_file(place)
    return Embedder.load(place, options) if file is None else WordVectors(file, options.of_sentences)


def vector_file(place: str | Path) -> str | None:
    """Return the path or URL of the file of word vectors at a place; None if a language model may be there."""
    folder = Folder.at(place)
    if folder.filesystem.get_file_info(folder.path).is_file:
        return str(place)
    return f"{str(place).rstrip('/')}/{VECTORS}" if folder.exists(VECTORS) else None
