"""A folder on a local path or a URL: the one way groundray reads and writes files that a cluster shares.

`s3://BUCKET/FOLDER` is S3, or whatever speaks its protocol at `AWS_ENDPOINT_URL`, and `gs://BUCKET/FOLDER` Google Cloud
Storage. Of a store, nothing is asked but what both give: an object is there whole or not at all, and whoever lists a
folder after that finds it. They have no renaming, and pyarrow no way to create what only one may create.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from groundray.storage import object_store

COPIES = 16  # at a time
BLOCK_BYTES = 2**22
SCHEMES = {"gcs": "gs"}  # that pyarrow calls otherwise
SEAL = "sha256"  # of everything else that a sealed file says


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def format_bytes(count: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(3, int(math.log10(max(1, count)) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem that pyarrow knows (local path, `s3://`, `gs://`).

    Names inside it are relative, with forward slashes. A name that would leave the folder is refused. What a store
    refuses is an OSError of one line that says what to do.
    """

    filesystem: pafs.FileSystem
    path: str

    @staticmethod
    def at(url: str | Path) -> Folder:
        """The folder at a local path (made absolute, `~` expanded) or at a URL; it need not exist yet.

        Raises:
            ValueError: it is no URL that can be used.
        """
        text = str(url)
        if "://" not in text:
            return Folder(pafs.LocalFileSystem(), Path(text).expanduser().absolute().as_posix())
        filesystem, path = (
            object_store.open_store(text) if object_store.is_store(text) else pafs.FileSystem.from_uri(text)
        )
        return Folder(filesystem, posixpath.normpath(path))

    @staticmethod
    def connect(url: str | Path) -> Folder:
        """The folder at a path or URL, whose store has answered within seconds.

        Raises:
            OSError: the store is not there, has no such bucket, or refuses the credentials.
        """
        if object_store.is_store(str(url)):
            object_store.probe(str(url))
        return Folder.at(url)

    def __reduce__(self) -> tuple[Callable[[str], Folder], tuple[str]]:
        return Folder.at, (
            str(self),
        )  # opened there, with that machine's credentials: pyarrow's pickle has no patience

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.filesystem, self.locate(name))

    def __str__(self) -> str:
        kind = self.filesystem.type_name
        return self.path if self.local else f"{SCHEMES.get(kind, kind)}://{self.path}"

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> Folder:
        return Folder(self.filesystem, posixpath.dirname(self.path))

    def locate(self, name: str) -> str:
        """The path of `name` on this folder's filesystem.

        Raises:
            ValueError: the name is absolute or climbs out of the folder.
        """
        clean = posixpath.normpath(name)
        if name.startswith("/") or clean == ".." or clean.startswith("../") or "\0" in name:
            raise ValueError(f"expected a name inside {self}, got {name!r}")
        return posixpath.normpath(posixpath.join(self.path, clean))

    def exists(self, name: str = ".") -> bool:
        with self._speaking():
            return self.filesystem.get_file_info(self.locate(name)).type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """The sorted names of what lies directly in the folder; empty if there is no folder."""
        if not self.local:  # of folders in a folder, pyarrow lists those in Google's store that somebody has made
            return sorted({name.partition("/")[0] for name in self.files()})
        found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def files(self) -> list[str]:
        """The sorted names of all files in the folder and in those inside it; empty if there is no folder."""
        with self._speaking():
            found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=True))
        return sorted(posixpath.relpath(info.path, self.path) for info in found if info.is_file)

    def make(self) -> Folder:
        """The folder, made where there are such things as folders."""
        if self.local:
            self.filesystem.create_dir(self.path, recursive=True)
        return self

    def read_bytes(self, name: str) -> bytes:
        with self._speaking(), self.filesystem.open_input_stream(self.locate(name)) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all: aside first and then renamed (object stores put whole objects)."""
        path = self.locate(name)
        # its own: another process may write the same file
        aside = f"{path}.{uuid.uuid4().hex[:8]}.writing" if self.local else path
        with self._speaking(writes=True), self.filesystem.open_output_stream(aside) as file:
            file.write(content)
        if self.local:
            self.filesystem.move(aside, path)

    def write_json(self, name: str, content: Any) -> None:
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def write_sealed(self, name: str, content: dict[str, Any]) -> None:
        """Write JSON with a checksum of what it says."""
        self.write_json(name, {**content, SEAL: _checksum(content)})

    def read_sealed(self, name: str) -> dict[str, Any]:
        """What `write_sealed` wrote.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        try:
            content = self.read_json(name)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self}/{name} is damaged: {error}") from None
        if not isinstance(content, dict) or content.pop(SEAL, None) != _checksum(content):
            raise ValueError(f"{self}/{name} is damaged: it does not say what its checksum was made of")
        return content

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all that is in it; nothing happens if there is none."""
        path = self.locate(name)
        # Google's store misses the folder itself when all that was in it is gone
        with self._speaking(), contextlib.suppress(FileNotFoundError):
            kind = self.filesystem.get_file_info(path).type
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(path)

    def upload(self, local: Path, name: str = ".") -> None:
        """Copy a local folder with all that is in it to `name` here."""
        there = Folder.at(local)
        there.copy(there.files(), self / name)

    def download(self, local: Path, name: str = ".") -> None:
        """Copy `name` from here, with all that is in it, to a local folder."""
        there = self / name
        there.copy(there.files(), Folder.at(local))

    def copy(self, names: Sequence[str], other: Folder) -> None:
        """Copy files to another folder; within a store they do not pass through this machine."""
        for folder in {posixpath.dirname(name) for name in names}:
            (other / folder).make()
        with ThreadPoolExecutor(COPIES) as pool:
            for _ in pool.map(lambda name: self._copy(name, other), names):
                pass

    def _copy(self, name: str, other: Folder) -> None:
        source, target = self.locate(name), other.locate(name)
        if self.filesystem == other.filesystem:
            with self._speaking(writes=True):
                self.filesystem.copy_file(source, target)
            return
        with self._speaking():
            reading = self.filesystem.open_input_stream(source)
        with reading, other._speaking(writes=True), other.filesystem.open_output_stream(target) as writing:
            while block := reading.read(BLOCK_BYTES):
                writing.write(block)

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """The folder as one of this machine: itself, or a copy that goes afterwards."""
        if self.local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as local:
            self.download(Path(local))
            yield Path(local)

    @contextlib.contextmanager
    def _speaking(self, writes: bool = False) -> Iterator[None]:
        """Meanwhile, what a store says is said in words for a person."""
        try:
            yield
        except OSError as error:
            missing = isinstance(error, FileNotFoundError) and not writes
            if missing or not object_store.is_store(str(self)):
                raise
            raise object_store.readable_error(error, str(self)) from None
