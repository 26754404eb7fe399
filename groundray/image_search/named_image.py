"""An image that a command names: the id of an image of the pool, or a picture file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from groundray.data.image_decoder import UnusableImage
from groundray.image_search.index import Index, thumbnail
from groundray.image_search.upload_limits import MAX_BYTES
from groundray.image_search.uploads import checked


@dataclass(frozen=True)
class NamedImage:
    """An image by its name, read before a pool is open. An image of the pool comes before a file of the same name.

    Attributes:
        name: id of an image of the pool, or path of a picture file.
        encoded: content of the file of this name, None if there is none.
        small: JPEG thumbnail of the file.
    """

    name: str
    encoded: bytes | None = None
    small: bytes | None = None

    @staticmethod
    def read(name: str) -> NamedImage:
        """Read the file of a name, if there is one, and decode it once.

        Raises:
            UnusableImage: the file is no picture, damaged or too large; the message names it.
            OSError: it cannot be read.
        """
        path = Path(name).expanduser()
        if not path.is_file():
            return NamedImage(name)
        with path.open("rb") as file:
            encoded = file.read(MAX_BYTES + 1)
        try:
            return NamedImage(name, checked(encoded), thumbnail(encoded))
        except UnusableImage as problem:
            raise problem.of(f"image {name}") from None

    def query(self, index: Index) -> str | bytes:
        """Return what a query takes: the id if the pool has it, or the content of the file; the name if neither."""
        return self.name if self.encoded is None or self.name in index else self.encoded

    def thumbnail(self, index: Index) -> bytes:
        """Return a small JPEG of the image.

        Raises:
            UnknownImage: it is neither in the pool nor a file.
        """
        if self.small is None or self.name in index:
            return index.thumbnails[index.row(self.name)]
        return self.small
