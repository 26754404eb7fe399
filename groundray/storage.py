"""A folder on a local path or a URL: the one way groundray reads and writes files that a cluster shares."""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

SEAL = "sha256"  # of everything else that a sealed file says


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def size_of(count: int) -> str:
    """Bytes in the unit that suits them."""
    power = min(3, int(math.log10(max(1, count)) // 3))
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem that pyarrow knows (local path, `s3://`, `gs://`).

    Names inside it are relative, with forward slashes. A name that would leave the folder is refused.
    """

    filesystem: pafs.FileSystem
    path: str

    @staticmethod
    def at(url: str | Path) -> Folder:
        """The folder at a local path (made absolute, `~` expanded) or at a URL; it need not exist yet."""
        text = str(url)
        if "://" in text:
            filesystem, path = pafs.FileSystem.from_uri(text)
            return Folder(filesystem, path.rstrip("/"))
        return Folder(pafs.LocalFileSystem(), Path(text).expanduser().absolute().as_posix())

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.filesystem, self.locate(name))

    def __str__(self) -> str:
        return self.path if self.local else f"{self.filesystem.type_name}://{self.path}"

    @property
    def local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def locate(self, name: str) -> str:
        """The path of `name` on this folder's filesystem.

        Raises:
            ValueError: the name is absolute or climbs out of the folder.
        """
        clean = posixpath.normpath(name)
        if name.startswith("/") or clean == ".." or clean.startswith("../") or "\0" in name:
            raise ValueError(f"expected a name inside {self}, got {name!r}")
        return posixpath.join(self.path, clean)

    def exists(self, name: str = ".") -> bool:
        return self.filesystem.get_file_info(self.locate(name)).type != pafs.FileType.NotFound

    def names(self) -> list[str]:
        """The sorted names of what lies directly in the folder; empty if there is no folder."""
        found = self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def make(self) -> Folder:
        self.filesystem.create_dir(self.path, recursive=True)
        return self

    def read_bytes(self, name: str) -> bytes:
        with self.filesystem.open_input_stream(self.locate(name)) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all: aside first and then renamed (object stores put whole objects)."""
        path = self.locate(name)
        if not self.local:
            with self.filesystem.open_output_stream(path) as file:
                file.write(content)
            return
        aside = f"{path}.{uuid.uuid4().hex[:8]}.writing"  # its own: another process may write the same file
        with self.filesystem.open_output_stream(aside) as file:
            file.write(content)
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

    def create_json(self, name: str, content: Any) -> bool:
        """Write a file that is not there yet; whether this call made it, of all that try at once."""
        text = json.dumps(content) + "\n"
        if self.local:
            try:
                with Path(self.locate(name)).open("x", encoding="utf-8") as file:
                    file.write(text)
            except FileExistsError:
                return False
            return True
        if self.exists(name):
            return False
        self.write_bytes(
            name, text.encode()
        )  # of those who try at once, a store that lacks a way to create keeps the last
        return self.read_bytes(name) == text.encode()

    def delete(self, name: str) -> None:
        """Delete a file or a folder with all that is in it; nothing happens if there is none."""
        path = self.locate(name)
        kind = self.filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            self.filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            self.filesystem.delete_file(path)

    def upload(self, local: Path, name: str = ".") -> None:
        """Copy a local folder with all that is in it to `name` here."""
        pafs.copy_files(
            str(local),
            self.locate(name),
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=self.filesystem,
        )

    def download(self, local: Path, name: str = ".") -> None:
        """Copy `name` from here, with all that is in it, to a local folder."""
        pafs.copy_files(
            self.locate(name),
            str(local),
            source_filesystem=self.filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )
