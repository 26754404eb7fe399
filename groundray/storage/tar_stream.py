"""Tar files as streams: their members in order, in bounded memory, with an error wherever the file is damaged.

Python's `tarfile` takes a damaged header and a missing end for the end of the archive; here both are errors. Tar files
one after the other in one file are read as one, as `tar --ignore-zeros` does.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from tarfile import HeaderError, ReadError, TarFile
from typing import Any, BinaryIO, NamedTuple, cast

MAX_HEADER = 2**20  # bytes of an extended header, which tarfile reads at once
_ERRORS: Any = tarfile  # type stubs lack some of its errors
EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class TarDamaged(Exception):
    """A tar file is cut off or damaged. `whole` is the number of members before."""

    def __init__(self, whole: int, cause: str):
        super().__init__(cause)
        self.whole = whole


class Member(NamedTuple):
    """A member of a tar file that is no folder.

    Attributes:
        content: None if it is not asked for, or cannot be read.
        problem: why it cannot be read: a reason of a few words and a detail. None if it can.
    """

    name: str
    content: bytes | None
    problem: tuple[str, str] | None = None


def read_members(stream: BinaryIO, wanted: Callable[[str], bool], max_bytes: int) -> Iterator[Member]:
    """Yield the members of a tar file, plain or compressed with gzip, bzip2 or xz.

    Memory: a member, and a buffer.

    Args:
        stream: is read from its start to its end, in small pieces: it should have a buffer.
        wanted: whether the content of a member is asked for, by its name.
        max_bytes: of a member that is read.

    Raises:
        TarDamaged: it is no tar file, cut off or damaged.
        OSError: the stream cannot be read.
    """
    whole = 0
    try:
        with _open(stream) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # tarfile keeps all that it has read
                if not member.isdir():
                    yield _read(archive, member, wanted(member.name), max_bytes)
                    whole += 1
    except (tarfile.TarError, EOFError) as error:
        raise TarDamaged(whole, str(error)) from None


def _open(stream: BinaryIO) -> _Tar:
    try:
        return _Tar.open(fileobj=stream, mode="r|*", encoding="utf-8", ignore_zeros=True)
    except TypeError:  # of tarfile, where gzip's own header is cut off
        raise ReadError("the header of gzip is cut off") from None


def _read(archive: TarFile, member: tarfile.TarInfo, wanted: bool, max_bytes: int) -> Member:
    if not member.isreg():
        got = f"a link to {member.linkname!r}" if member.issym() or member.islnk() else "no regular file"
        return Member(member.name, None, ("link", f"expected a file in the tar file, got {got}"))
    if member.size > max_bytes:
        return Member(member.name, None, ("too large", f"expected at most {max_bytes:,} bytes, got {member.size:,}"))
    if not wanted:
        return Member(member.name, None)
    file = archive.extractfile(member)
    assert file is not None  # of a regular file
    return Member(member.name, file.read())


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.type in EXTENDED and header.size > MAX_HEADER:
            raise ReadError(f"a header of {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> _Header:
        archive = cast(_Tar, tarfile)
        try:
            header = super().fromtarfile(archive)
        except _ERRORS.EOFHeaderError:
            archive.at_end = True
            raise
        except _ERRORS.EmptyHeaderError:
            if archive.at_end or archive.offset == 0:
                raise
            raise ReadError("it ends without an end mark") from None
        except HeaderError as error:
            raise ReadError(str(error)) from None
        archive.at_end = False
        return header


class _Tar(TarFile):
    tarinfo = _Header
    at_end = False  # whether the end mark was read
