"""What `mlflow.pyfunc.load_model` loads: an exported model that answers queries of text, image, or both.

    model = mlflow.pyfunc.load_model("models:/groundray@best")
    model.predict(pandas.DataFrame({"text": ["a red heart"], "image": [picture], "alpha": [0.5]}))
    model.predict(queries, params={"images": "data/scenes/captions/val", "k": 10})

MLflow imports this module by its name, which the file `MLmodel` has; nothing here imports MLflow. groundray must be
installed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from groundray.analysis.inputs.embedding import Embedder
from groundray.credentials import redacted
from groundray.data.image_decoder import UnusableImage
from groundray.image_search.errors import BadQuery
from groundray.image_search.index import FOLDER, Index
from groundray.image_search.query import DEFAULT_ALPHA, PreparedQuery, Query, Search, embed, prepare
from groundray.image_search.towers import STAGE, RetrievalTowers, Towers
from groundray.image_search.upload_limits import MAX_BYTES
from groundray.image_search.uploads import checked
from groundray.image_search.uses import keep_marked
from groundray.model import export
from groundray.storage.folder import open_file
from groundray.storage.user_cache import user_cache

if TYPE_CHECKING:
    import pandas as pd

COLUMNS: dict[str, tuple[Any, str]] = {  # with the types of a cell, and what to call them
    "text": (str, "a text"),
    "image": (bytes | bytearray | memoryview | str, "bytes, base64 of a picture, or the path of one"),
    "alpha": (Real, "a number"),
}
ROWS = 64  # that are embedded at once


def _load_pyfunc(path: str) -> QueryModel | TextModel:
    """Load the model in a folder; MLflow calls it.

    Raises:
        FileNotFoundError, ValueError: the folder holds no exported model that can be read.
    """
    about = export.about(path)
    stages = [stage.name for stage in about.stages]
    return QueryModel(RetrievalTowers.load(path)) if STAGE in stages else TextModel(Embedder.load(path), stages)


@dataclass(frozen=True)
class QueryModel:
    """A model with stage retrieval: texts and images have vectors in one space.

    Attributes:
        towers: the model.
    """

    towers: Towers
    _searches: dict[tuple[str, str], Search] = field(default_factory=dict)

    def predict(
        self, queries: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> Float32[np.ndarray, "query dim"] | pd.DataFrame:
        """Return the vector of each query, or the images nearest to it.

        Args:
            queries: a row for each query, with columns `text`, `image` and `alpha`, each of which may be left out or
                empty. An image is an encoded picture, as bytes or in base64, or its path or URL; of a pool also an id.
                Alpha is the weight of the text, 0 to 1, by default 0.5; it is used if a query has both.
            params: `images`, shards to search in, and `index`, the folder of their index, by default
                `~/.cache/groundray/index`, where a missing index is built; `k`, the number of images, by default 10.

        Returns:
            Vectors of length 1, whose products with those of images are the scores of `groundray search`. With
            `images`, a table with the columns `ids` and `scores`, best first.

        Raises:
            BadQuery, UnknownImage, UnusableImage: a query is invalid; the message names its row.
        """
        params = params or {}
        search = self._search(params["images"], params.get("index")) if params.get("images") else None
        index = search.index if search else None
        k = 10 if params.get("k") is None else int(params["k"])
        rows = list(enumerate(_records(queries)))
        blocks = (  # the pixels of one block at a time are in memory
            [_prepared(number, row, k, self.towers, index) for number, row in rows[first : first + ROWS]]
            for first in range(0, len(rows), ROWS)
        )
        if search is None:
            return np.concatenate([embed(block, self.towers) for block in blocks])
        answers = [answer for block in blocks for (answer,) in search.answer(block)]
        found = {
            "ids": [[hit.id for hit in answer.hits] for answer in answers],
            "scores": [[hit.score for hit in answer.hits] for answer in answers],
        }
        import pandas as pd  # MLflow has it

        return pd.DataFrame(found)

    def _search(self, images: str, index: str | None) -> Search:
        """Return the search in a pool of images, which stays open for the next queries."""
        place = images, index or str(user_cache() / FOLDER)  # as commands do for a model in MLflow
        if place not in self._searches:
            self._searches[place] = search = Search.of(self.towers, *place)
            keep_marked(search.folders, search)
        return self._searches[place]


@dataclass(frozen=True)
class TextModel:
    """A model without stage retrieval: texts alone have vectors, those of `groundray.embed`, scaled to length 1."""

    embedder: Embedder
    stages: Sequence[str]

    def predict(
        self, queries: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> Float32[np.ndarray, "query dim"]:
        """Return the vector of each row's `text`.

        Raises:
            ValueError: a row has an image or no text, the model does not know a text, or there are images to search.
        """
        rows = _records(queries)
        if (params or {}).get("images") or any("image" in row for row in rows):
            raise ValueError(
                f"expected queries of text alone, got images: the model was trained in {', '.join(self.stages)}, and "
                f"vectors of images need stage {STAGE}"
            )
        for number, row in enumerate(rows):
            if not row.get("text", "").strip():
                raise BadQuery(f"row {number}: expected a text, got none")
        vectors = self.embedder.embed([row["text"] for row in rows])
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _records(queries: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the filled cells of each row.

    Raises:
        BadQuery: there is no row, a column of another name, or a cell of another type.
    """
    import pandas as pd

    if not len(queries) or not set(queries.columns) <= COLUMNS.keys():
        got = f"columns {', '.join(map(str, queries.columns))}" if len(queries) else "none"
        raise BadQuery(f"expected rows with columns {', '.join(COLUMNS)}, got {got}")
    records = []
    for number, row in enumerate(queries.to_dict("records")):
        filled = {str(name): cell for name, cell in row.items() if not (pd.api.types.is_scalar(cell) and pd.isna(cell))}
        for name, cell in filled.items():
            kinds, what = COLUMNS[name]
            if not isinstance(cell, kinds):
                raise BadQuery(f"row {number}: {name}: expected {what}, got {type(cell).__name__}")
        records.append(filled)
    return records


def _prepared(number: int, row: Mapping[str, Any], k: int, towers: Towers, index: Index | None) -> PreparedQuery:
    try:
        image = row.get("image")
        if image is not None and not (isinstance(image, str) and index is not None and image in index):
            image = picture(image)
        query = Query(row.get("text"), image, (float(row.get("alpha", DEFAULT_ALPHA)),), k)
        return prepare(query, towers, index)
    except (BadQuery, UnusableImage, OSError) as error:
        raise BadQuery(f"row {number}: {error}") from None


def picture(image: bytes | str) -> bytes:
    """Return an encoded picture that is given as bytes, in base64 (with or without `data:...;base64,`), or by its path
    or URL.

    Raises:
        BadQuery: there is no such file.
    """
    if not isinstance(image, str):
        return bytes(image)
    try:
        decoded = base64.b64decode(image.partition(";base64,")[2] or image, validate=True)
        return checked(decoded)
    except (binascii.Error, ValueError):  # a path may look like base64, which then is no picture
        pass
    try:
        with open_file(image) as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError):
        shown = redacted(image)
        short = shown if len(shown) <= 80 else f"{shown[:80]}..."
        raise BadQuery(f"image: expected {COLUMNS['image'][1]}, got {short!r}") from None
