"""Folders on local paths and URLs: all files that a cluster shares are read and written through this module.

`s3://BUCKET/FOLDER` is S3, or a server of its protocol at `AWS_ENDPOINT_URL`; `gs://BUCKET/FOLDER` is Google Cloud
Storage. Two guarantees are assumed of a store: an object is written completely or not at all, and a listing shows the
objects that were written before. Stores cannot rename, and pyarrow cannot create a file only if it does not exist.
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

COPIES = 16  # concurrent copies
BLOCK_BYTES = 2**22
SCHEMES = {"gcs": "gs"}  # by pyarrow's name of the filesystem, where the two differ
SEAL = "sha256"  # key of a sealed file: the checksum of all other keys


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def format_bytes(count: int) -> str:
    """Return a number of bytes with three digits and a unit, such as `158 MB`."""
    power = min(3, int(math.log10(max(1, count)) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


@dataclass(frozen=True)
class Folder:
    """A folder on any of pyarrow's filesystems (local path, `s3://`, `gs://`).

    Names inside it are relative, with forward slashes. A name that would leave the folder is a ValueError. A failed
    request to a store is an OSError whose message is one line with the repair.
    """

    filesystem: pafs.FileSystem
    path: str

    @staticmethod
    def at(url: str | Path) -> Folder:
        """Return the folder at a local path (made absolute, `~` expanded) or at a URL. It need not exist.

        Raises:
            ValueError: the URL has an unknown scheme, or parts other than bucket and folder.
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
        """Return the folder at a path or URL after checking, within seconds, that its store can be used.

        Raises:
            OSError: the store does not answer, has no such bucket, or rejects the credentials.
        """
        if object_store.is_store(str(url)):
            object_store.probe(str(url))
        return Folder.at(url)

    def __reduce__(self) -> tuple[Callable[[str], Folder], tuple[str]]:
        # reopened with the other machine's credentials; pickled pyarrow filesystems lose timeouts and retries
        return Folder.at, (str(self),)

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
        """Return the path of `name` on this folder's filesystem.

        Raises:
            ValueError: the name is absolute or leads out of the folder.
        """
        clean = posixpath.normpath(name)
        if name.startswith("/") or clean == ".." or clean.startswith("../") or "\0" in name:
            raise ValueError(f"expected a name inside {self}, got {name!r}")
        return posixpath.normpath(posixpath.join(self.path, clean))

    def exists(self, name: str = ".") -> bool:
        with self._readable_errors():
            return self.filesystem.get_file_info(self.locate(name)).type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders directly inside; empty if the folder does not exist."""
        if not self.local:  # on Google's store, pyarrow lists only those inner folders that were created explicitly
            return sorted({name.partition("/")[0] for name in self.files()})
        infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def files(self) -> list[str]:
        """Return the sorted names of all files at any depth; empty if the folder does not exist."""
        with self._readable_errors():
            infos = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True, recursive=True))
        return sorted(posixpath.relpath(info.path, self.path) for info in infos if info.is_file)

    def make(self) -> Folder:
        """Create the folder if it is local, and return it. Stores have no empty folders."""
        if self.local:
            self.filesystem.create_dir(self.path, recursive=True)
        return self

    def read_bytes(self, name: str) -> bytes:
        with self._readable_errors(), self.filesystem.open_input_stream(self.locate(name)) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically: locally under a temporary name and then renamed; a store puts whole objects."""
        path = self.locate(name)
        # a unique name: another process may write the same file
        temporary = f"{path}.{uuid.uuid4().hex[:8]}.writing" if self.local else path
        with self._readable_errors(writes=True), self.filesystem.open_output_stream(temporary) as file:
            file.write(content)
        if self.local:
            self.filesystem.move(temporary, path)

    def write_json(self, name: str, content: Any) -> None:
        self.write_bytes(name, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def write_sealed(self, name: str, content: dict[str, Any]) -> None:
        """Write JSON with a checksum of its content."""
        self.write_json(name, {**content, SEAL: _checksum(content)})

    def read_sealed(self, name: str) -> dict[str, Any]:
        """Return the content that `write_sealed` wrote.

        Raises:
            ValueError: the file is damaged; the message names it.
        """
        try:
            content = self.read_json(name)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self}/{name} is damaged: {error}") from None
        if not isinstance(content, dict) or content.pop(SEAL, None) != _checksum(content):
            raise ValueError(f"{self}/{name} is damaged: its checksum does not match its content")
        return content

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with its content. Do nothing if it does not exist."""
        path = self.locate(name)
        # on Google's store, deleting the content of a folder deletes the folder too
        with self._readable_errors(), contextlib.suppress(FileNotFoundError):
            kind = self.filesystem.get_file_info(path).type
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(path)

    def upload(self, local: Path, name: str = ".") -> None:
        """Copy the content of a local folder to `name` in this folder."""
        source = Folder.at(local)
        source.copy(source.files(), self / name)

    def download(self, local: Path, name: str = ".") -> None:
        """Copy the content of `name` in this folder to a local folder."""
        source = self / name
        source.copy(source.files(), Folder.at(local))

    def copy(self, names: Sequence[str], other: Folder) -> None:
        """Copy files to another folder. Copies within a store do not pass through this machine."""
        for folder in {posixpath.dirname(name) for name in names}:
            (other / folder).make()
        with ThreadPoolExecutor(COPIES) as pool:
            for _ in pool.map(lambda name: self._copy(name, other), names):
                pass

    def _copy(self, name: str, other: Folder) -> None:
        source, target = self.locate(name), other.locate(name)
        if self.filesystem == other.filesystem:
            with self._readable_errors(writes=True):
                self.filesystem.copy_file(source, target)
            return
        with self._readable_errors():
            reading = self.filesystem.open_input_stream(source)
        with reading, other._readable_errors(writes=True), other.filesystem.open_output_stream(target) as writing:
            while block := reading.read(BLOCK_BYTES):
                writing.write(block)

    @contextlib.contextmanager
    def local_copy(self) -> Iterator[Path]:
        """Yield a local path with the folder's content: the folder itself, or a temporary copy."""
        if self.local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as local:
            self.download(Path(local))
            yield Path(local)

    @contextlib.contextmanager
    def _readable_errors(self, writes: bool = False) -> Iterator[None]:
        """Replace errors of a store by readable ones. A missing file that was to be read stays FileNotFoundError."""
        try:
            yield
        except OSError as error:
            missing = isinstance(error, FileNotFoundError) and not writes
            if missing or not object_store.is_store(str(self)):
                raise
            raise object_store.readable_error(error, str(self)) from None
