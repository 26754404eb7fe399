"""An image that a command names: the id of an image of the pool, or a picture file."""

from __future__ import annotations

from dataclasses import dataclass

from groundray.data.image_decoder import UnusableImage
from groundray.data.row_groups import read_group
from groundray.image_search.index import Index, open_pool, thumbnail
from groundray.image_search.upload_limits import MAX_BYTES
from groundray.image_search.uploads import checked
from groundray.storage.local_path import expanded


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
    def read(name: str, images: str | None = None) -> NamedImage:
        """Read the file of a name, if there is one, and decode it once.

        Args:
            images: folder or URL of the pool's shards, if they are at hand: where the pool has an image of this name,
                a file that cannot be used is not needed.

        Raises:
            UnusableImage: the file is no picture, damaged or too large; the message names it.
            OSError, ValueError: it cannot be read.
        """
        try:
            path = expanded(name)
            if not path.is_file():
                return NamedImage(name)
            with path.open("rb") as file:
                encoded = file.read(MAX_BYTES + 1)
            return NamedImage(name, checked(encoded), thumbnail(encoded))
        except (OSError, ValueError) as problem:
            if images is not None and _has(images, name):
                return NamedImage(name)
            if isinstance(problem, UnusableImage):
                raise problem.of(f"image {name}") from None
            raise

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


def _has(images: str, id: str) -> bool:
    """Return whether a pool that can be read has an image. Its ids alone are read."""
    try:
        pool = open_pool(images)
        groups = range(len(pool.groups))
        return any(id in read_group(pool, group, ["id"])["id"].to_pylist() for group in groups)
    except (OSError, ValueError):
        return False
