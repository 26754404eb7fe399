"""What reads a part: the checks of its images on threads, and the log of what cannot be used."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol, TypeVar

from groundray.data.image_decoder import UnusableImage
from groundray.data.sources.image_files import CheckedImage, EncodedImage, ImageRules, check_encoded, read_image
from groundray.data.sources.rejected import Rejected, RejectedLog, Rejections
from groundray.storage.folder import Folder

IMAGES_PER_CALL = 8  # checked in one call of a thread
CALLS_AHEAD = 2  # for each thread: one that it works on, and one that waits


class Item(Protocol):
    """A sample of a source whose image is not read yet."""

    @property
    def id(self) -> str: ...


class FileItem(Item, Protocol):
    """A sample whose image is a file, which may have one of several names."""

    @property
    def file_names(self) -> tuple[str, ...]: ...


AnyItem = TypeVar("AnyItem", bound=Item)
AnyFileItem = TypeVar("AnyFileItem", bound=FileItem)


@dataclass(frozen=True)
class Reading:
    """Reads the images of a part.

    Attributes:
        rejected: what of the part cannot be used.
        threads: number of threads that read and decode images.
        rules: which images are used, and how they are stored.
        left_out: numbers of what else of the part is not in the rows, by a few words; for `counts` in `dataset.json`.
    """

    rejected: Rejections = field(default_factory=RejectedLog)
    threads: int = 1
    rules: ImageRules = field(default_factory=ImageRules)
    left_out: Counter[str] = field(default_factory=Counter)

    def files(self, folder: Folder, items: Iterable[AnyFileItem]) -> Iterator[tuple[AnyFileItem, CheckedImage]]:
        """Yield each item whose image file in `folder` can be used, with the image; reject the others."""
        return self.images(items, lambda item: read_image(folder, item.file_names))

    def images(
        self, items: Iterable[AnyItem], read: Callable[[AnyItem], EncodedImage]
    ) -> Iterator[tuple[AnyItem, CheckedImage]]:
        """Yield each item whose image can be used, with the image, in the order of the items; reject the others.

        At most `IMAGES_PER_CALL * CALLS_AHEAD * threads` images are in memory.

        Args:
            read: returns the encoded image of an item, or raises UnusableImage. It is called on many threads.
        """

        def check(some: list[AnyItem]) -> list[tuple[AnyItem, CheckedImage | UnusableImage]]:
            return [(item, self._check(item, read)) for item in some]

        for item, image in self._in_order(iter(items), check):
            if isinstance(image, CheckedImage):
                yield item, image
            else:
                self.rejected.append(Rejected("image", item.id, image.reason, str(image)))

    def _check(self, item: AnyItem, read: Callable[[AnyItem], EncodedImage]) -> CheckedImage | UnusableImage:
        try:
            return check_encoded(read(item), self.rules)
        except UnusableImage as problem:
            return problem

    def _in_order(
        self,
        items: Iterator[AnyItem],
        check: Callable[[list[AnyItem]], list[tuple[AnyItem, CheckedImage | UnusableImage]]],
    ) -> Iterator[tuple[AnyItem, CheckedImage | UnusableImage]]:
        if self.threads < 2:
            for item in items:
                yield from check([item])
            return
        pending: deque[Future[list[tuple[AnyItem, CheckedImage | UnusableImage]]]] = deque()
        threads = ThreadPoolExecutor(self.threads, thread_name_prefix="groundray-images")
        try:
            while some := list(islice(items, IMAGES_PER_CALL)):
                pending.append(threads.submit(check, some))
                if len(pending) == self.threads * CALLS_AHEAD:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
