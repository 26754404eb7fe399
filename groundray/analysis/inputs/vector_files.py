"""Files of words and their vectors, by their content: GloVe, word2vec and fastText, plain or in gzip, and Parquet.

Parquet is groundray's own format, and that of other programs. A row is a word: column `word` (string), column `vector`
(fixed-size list of float32; lists of other floats are read too). What the vectors are is JSON in the schema's metadata,
under the key `groundray`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from groundray.analysis.inputs.found_vectors import VECTORLESS, WORDLESS, FoundVectors, Gathering, Vectors
from groundray.analysis.inputs.vector_text import read_vector_text
from groundray.storage.folder import Folder

WORD, VECTOR = "word", "vector"  # columns
METADATA = b"groundray"  # key of the schema's metadata
MAGIC = b"PAR1"  # of Parquet
GROUP_ROWS = 2**16
BATCH_ROWS = 2**13
BUFFER_BYTES = 2**20
SHOWN = 5


def write_vectors(url: str | Path, words: Sequence[str], vectors: Vectors, metadata: Mapping[str, Any]) -> None:
    """Write words with their vectors to a Parquet file, whole or not at all.

    Args:
        url: path or URL of the file; its folder is created.
        metadata: what the vectors are, as JSON can hold it; `about` is one line for readers.

    Raises:
        ValueError: a word is empty or repeated, there are not as many vectors as words, or a number is not finite.
    """
    if len(words) != len(vectors) or vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"expected a vector for each of {len(words)} words, got an array of shape {vectors.shape}")
    repeated = len(words) - len(set(words))
    if repeated or not all(words):
        raise ValueError(f"expected distinct words, got {repeated} repeated ones" if repeated else "got an empty word")
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        infinite = [repr(words[row]) for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1))[:SHOWN].tolist()]
        raise ValueError(f"expected finite vectors, got others for {', '.join(infinite)}")
    width = vectors.shape[1]
    columns = {
        WORD: pa.array(words, pa.string()),
        VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), width),
    }
    content = {METADATA: json.dumps(dict(metadata), ensure_ascii=False)}
    file = Folder.at(url)
    with file.parent.make().open_output(file.name) as sink:
        table = pa.table(columns, metadata=content)
        pq.write_table(table, sink, row_group_size=GROUP_ROWS, use_dictionary=False, write_page_checksum=True)


def read_vectors(url: str | Path, wanted: Collection[str] | None = None) -> FoundVectors:
    """Read the vectors of words from a file. Only those of `wanted` words are kept in memory.

    Args:
        url: path or URL.
        wanted: None for all words.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: it has another format, is damaged, or has vectors of several lengths; the message names the line.
    """
    file = Folder.at(url)
    if not file.filesystem.get_file_info(file.path).is_file:
        raise FileNotFoundError(f"expected a file of word vectors at {url}, found {_instead(file)}")
    asked = None if wanted is None else frozenset(wanted)
    with file.open_input() as source:
        if source.read(len(MAGIC)) != MAGIC:
            source.seek(0)
            return read_vector_text(str(url), source, asked)
        source.seek(0)
        try:
            # by buffers, a file of 400,000 x 300 numbers takes 240 MB, and 690 MB without
            with pq.ParquetFile(source, buffer_size=BUFFER_BYTES, page_checksum_verification=True) as parquet:
                return _read_parquet(str(url), parquet, asked)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and not file.local:
                raise
            raise ValueError(f"{url} is cut off or damaged ({error}): restore the file") from None


def _instead(file: Folder) -> str:
    return "a folder" if file.exists() else "none"


def _read_parquet(url: str, parquet: pq.ParquetFile, asked: frozenset[str] | None) -> FoundVectors:
    schema = parquet.schema_arrow
    width = _check_columns(url, schema)
    gathering, rows = Gathering(), 0
    for batch in parquet.iter_batches(BATCH_ROWS, columns=[WORD, VECTOR]):
        words: list[str | None] = batch.column(WORD).to_pylist()
        vectors = batch.column(VECTOR)
        has_vector = vectors.is_valid().to_pylist()
        kept: dict[int, str] = {}
        for row, word in enumerate(words):
            if not word:
                gathering.leave_out(WORDLESS, f"row {rows + row + 1}")
            elif asked is None or word in asked:
                if has_vector[row]:
                    kept[row] = word
                else:
                    gathering.leave_out(VECTORLESS, f"row {rows + row + 1}")
        chosen = vectors.take(pa.array(kept, pa.int64()))
        for row, vector in zip(kept, chosen, strict=True):
            width = width or len(vector)
            if len(vector) != width:
                raise ValueError(
                    f"{url} row {rows + row + 1}: expected a vector of {width} numbers as in the rows before, "
                    f"got {len(vector)}"
                )
        with np.errstate(over="ignore"):  # of a double, which becomes infinite
            numbers = chosen.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        numbers = numbers.reshape(len(kept), width or 0)
        gathering.add(list(kept.values()), numbers, [f"row {rows + row + 1}" for row in kept])
        rows += len(batch)
    if not rows:
        raise ValueError(f"{url}: expected words and vectors, got no row")
    return gathering.found(width or 0, rows, "Parquet", _metadata(url, schema))


def _metadata(url: str, schema: pa.Schema) -> dict[str, Any]:
    """Return what the writer says of the vectors; empty if it says nothing."""
    try:
        return dict(json.loads((schema.metadata or {}).get(METADATA, b"{}")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{url}: expected a JSON object as metadata {METADATA.decode()}, got another ({error})"
        ) from None


def _check_columns(url: str, schema: pa.Schema) -> int | None:
    """Return the length of vectors; None if the schema does not say it.

    Raises:
        ValueError: a column is missing, or has another type.
    """
    listed = ", ".join(f"{column.name} ({column.type})" for column in schema) or "none"
    expected = f"expected columns {WORD} (string) and {VECTOR} (list of floats), got {listed}"
    if WORD not in schema.names or VECTOR not in schema.names:
        raise ValueError(f"{url}: {expected}")
    word, vector = schema.field(WORD).type, schema.field(VECTOR).type
    lists = pa.types.is_list(vector) or pa.types.is_large_list(vector) or pa.types.is_fixed_size_list(vector)
    if pa.types.is_dictionary(word):
        word = word.value_type
    texts = pa.types.is_string(word) or pa.types.is_large_string(word)
    if not texts or not lists or not pa.types.is_floating(vector.value_type):
        raise ValueError(f"{url}: {expected}")
    return vector.list_size if pa.types.is_fixed_size_list(vector) else None
