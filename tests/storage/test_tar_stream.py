"""Tar files as streams: what is whole is read, and damage is never taken for the end."""

from __future__ import annotations

import gzip
import io
import random
import tarfile

import pytest
from traced_memory import least_peak

from groundray.storage import tar_stream
from groundray.storage.tar_stream import Member, TarDamaged, plain_file, read_members

CONTENTS = {"a.jpg": b"first" * 200, "a.txt": b"x", "b.jpg": b"", "c.txt": b"y" * 512}


def tar(contents: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def read(content: bytes, max_bytes: int = 10_000) -> list[Member]:
    return list(read_members(io.BytesIO(content), lambda _: True, max_bytes))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_were_written(format: int) -> None:
    contents = dict(CONTENTS)
    if format != tarfile.USTAR_FORMAT:
        contents |= {"deep/" * 60 + "ünïcode.txt": b"long name"}
    content = tar(contents, format)
    expected = [Member(name, text) for name, text in contents.items()]
    assert read(content) == read(gzip.compress(content)) == expected
    assert read(content + content) == 2 * expected  # of `cat`
    assert read(tar({})) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_is_cut_anywhere_raises_after_its_whole_members(compressed: bool) -> None:
    content = tar(CONTENTS)
    end = content.index(b"y" * 512) + 512  # of the last member; the rest is the end mark
    whole = gzip.compress(content[:end]) if compressed else content[:end]
    for length in [*range(0, 40), *range(40, len(whole) + 1, 97), len(whole)]:
        found: list[Member] = []
        with pytest.raises(TarDamaged) as caught:
            found += read_members(io.BytesIO(whole[:length]), lambda _: True, 10_000)  # keeps what comes before
        assert found == [Member(name, text) for name, text in CONTENTS.items()][: caught.value.whole]
        # members that are passed over are not taken for whole either
        with pytest.raises(TarDamaged):
            list(read_members(io.BytesIO(whole[:length]), lambda _: False, 10_000))


def test_a_damaged_header_raises() -> None:
    content = bytearray(tar(CONTENTS))
    content[content.index(b"a.txt")] = 7
    with pytest.raises(TarDamaged, match="bad checksum") as caught:
        read(bytes(content))
    assert caught.value.whole == 1
    for other in (b"", b"<!DOCTYPE html>" * 100, b"\x1f\x8b\x08\x04", b"\x1f\x8bjunk" * 30):
        with pytest.raises(TarDamaged) as caught:
            read(other)
        assert caught.value.whole == 0


def test_headers_of_plain_files_are_read_as_tarfile_reads_them() -> None:
    """All others are left to it: those of folders, of links, of long names and large files, and damaged ones."""
    draw = random.Random(1)
    fields = [*range(100), *range(124, 136), *range(148, 157), 345]
    plain = 0
    for _ in range(3000):
        member = tarfile.TarInfo("".join(draw.choices("ab/.ü é", k=draw.randrange(1, 90))))
        member.size = draw.choice([0, 7, 512, 70_000, 8**11 - 1, 8**11])
        member.type = draw.choice([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE])
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-512:])
        for _ in range(draw.randrange(3)):
            header[draw.choice(fields)] = draw.choice(b"\0 07x\xff")
        if draw.random() < 0.5:
            header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
        if (found := plain_file(bytes(header))) is not None:
            expected = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
            assert found == (expected.name, expected.size)
            assert expected.isreg()
            plain += 1
    assert plain > 500
    assert plain_file(bytes(512)) is plain_file(b"") is plain_file(b"a" * 200) is None


def test_a_global_header_holds_for_all_members() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "x", "path": "all.txt"}) as archive:
        for name in ("a.txt", "b.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    assert [member.name for member in read(out.getvalue())] == ["all.txt", "all.txt"]


def test_links_large_members_and_large_headers_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("p.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        large = tarfile.TarInfo("large.jpg")
        large.size = 20_000
        archive.addfile(large, io.BytesIO(bytes(20_000)))
    found = read(out.getvalue())
    assert [(member.name, member.content, member.problem and member.problem[0]) for member in found] == [
        ("s.jpg", None, "link"),
        ("h.jpg", None, "link"),
        ("p.jpg", None, "link"),
        ("large.jpg", None, "too large"),
    ]
    monkeypatch.setattr(tar_stream, "MAX_HEADER", 100)
    with pytest.raises(TarDamaged, match="a header of"):
        read(tar({"n" * 300: b""}))


def test_memory_does_not_grow_with_the_number_of_members() -> None:
    def peak(count: int) -> int:
        content = io.BytesIO(tar({f"{number}.txt": b"text" for number in range(count)}))

        def read_all() -> None:
            content.seek(0)
            assert sum(1 for _ in read_members(content, lambda _: True, 100)) == count

        return least_peak(read_all)

    assert peak(8000) < peak(200) + 8000 * 40  # a name alone takes 57 bytes
