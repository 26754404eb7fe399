"""Tar files of pictures with captions: samples are paired by key, and everything else is rejected with its reason."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from PIL import Image

from groundray import prepare
from groundray.data.row_groups import read_rows
from groundray.data.schema import Dataset
from groundray.data.sources import webdataset
from groundray.data.sources.reading import Reading
from groundray.data.sources.rejected import RejectedLog
from groundray.data.sources.webdataset import CaptionChoice, TarFile, TarPart
from groundray.storage import object_store
from groundray.storage.folder import Folder
from groundray.storage.object_store import RetryPolicy


def picture(seed: int = 0, side: int = 20) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side + 10, 3), np.uint8)
    Image.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def tar(*members: tuple[str, bytes | str | Mapping[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, value in members:
            content = (
                value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
            )
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def samples(*keys: str) -> bytes:
    """Return a tar file of good samples, whose captions are `photo KEY`."""
    return tar(*(pair for key in keys for pair in ((f"{key}.jpg", picture()), (f"{key}.txt", f"photo {key}"))))


def read(
    file: Path, captions: CaptionChoice | None = None, threads: int = 1
) -> tuple[dict[str, list[str]], list[tuple[str, str, str]]]:
    """Return the captions of each image of a tar file by key, and what is rejected."""
    log = RejectedLog()
    rows = list(TarPart((TarFile(str(file), "t", captions or CaptionChoice()),)).rows(Reading(log, threads)))
    lines = [json.loads(line) for line in log.open()]
    return (
        {row["id"].removeprefix("t/"): row["captions"] for row in rows},
        [(line["what"], line["id"].removeprefix("t/"), line["reason"]) for line in lines],
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_samples_are_paired_and_every_other_is_rejected_with_its_reason(tmp_path: Path, threads: int) -> None:
    good = picture()
    (tmp_path / "t.tar").write_bytes(
        tar(
            ("plain.jpg", good),
            ("plain.txt", " two  words\n"),
            ("./deep.er/json.JPEG", good),
            ("./deep.er/json.json", {"caption": "of json", "url": "u"}),
            ("both.json", {"caption": "not this"}),
            ("both.txt", "this one"),
            ("both.webp", good),
            ("several.jpg", good),
            ("several.json", {"captions": ["one", "", 7, "two"]}),
            ("._plain.jpg", b"of macOS"),
            ("README", "no key"),
            ("silent.jpg", good),
            ("words.txt", "no picture"),
            ("twins.jpg", good),
            ("twins.png", good),
            ("twins.txt", "which?"),
            ("twice.jpg", good),
            ("twice.jpg", good),
            ("twice.txt", "twice"),
            ("empty.jpg", good),
            ("empty.txt", " ... "),
            ("latin.jpg", good),
            ("latin.txt", "caf\xe9".encode("latin-1")),
            ("broken.jpg", good),
            ("broken.json", "{"),
            ("other.jpg", good),
            ("other.json", {"alt": "in another field"}),
            ("cut.jpg", good[:-300]),
            ("cut.txt", "damaged"),
            ("caf\udce9.jpg", good),
            ("plain.txt", "again"),
        )
    )
    found, rejected = read(tmp_path / "t.tar", threads=threads)
    assert found == {
        "plain": ["two words"],
        "deep.er/json": ["of json"],
        "both": ["this one"],
        "several": ["one", "two"],
    }
    assert rejected == [
        ("caption", "several#2", "empty"),
        ("caption", "several#3", "malformed"),
        ("image", "silent", "no caption"),
        ("image", "words", "missing"),
        ("image", "twins", "two pictures"),
        ("image", "twice", "duplicate id"),
        ("image", "empty", "no caption"),
        ("image", "latin", "not UTF-8"),
        ("image", "broken", "malformed"),
        ("image", "other", "no caption"),
        ("image", "cut", "truncated"),
        ("image", r"caf\xe9", "name not UTF-8"),
        ("image", "plain", "duplicate id"),
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (CaptionChoice(), ["one\ntwo".replace("\n", " ")]),
        (CaptionChoice(by_line=True), ["one", "two"]),
        (CaptionChoice("alt"), ["of alt"]),
        (CaptionChoice("cap"), ["of cap"]),
    ],
)
def test_captions_are_found_where_they_are_said_to_be(
    tmp_path: Path, choice: CaptionChoice, expected: list[str]
) -> None:
    members = [("a.jpg", picture()), ("a.txt", "one\n\ntwo\n"), ("a.json", {"alt": "of alt"}), ("a.cap", "of cap")]
    (tmp_path / "t.tar").write_bytes(tar(*members))
    assert read(tmp_path / "t.tar", choice) == ({"a": expected}, [])


def test_a_link_and_a_large_member_spoil_only_their_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_BYTES", 10_000)
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (
            ("link.jpg", None),
            ("link.txt", b"a link"),
            ("large.jpg", bytes(20_000)),
            ("large.txt", b"too large"),
            ("g" * 200 + ".jpg", picture()),
            ("g" * 200 + ".txt", b"a long name"),
        ):
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content or b""))
    assert read(tmp_path / "t.tar") == (
        {"g" * 200: ["a long name"]},
        [("image", "link", "link"), ("image", "large", "too large")],
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_what_is_before_a_cut_is_kept_and_the_cut_is_named(tmp_path: Path, compressed: bool) -> None:
    whole = samples("0", "1", "2")
    start = whole.index(b"photo 2") - 512  # the header of the last caption
    for cut, keys in ((start, "01"), (start + 100, "01"), (start + 515, "01"), (start + 1024, "012"), (0, "")):
        content = gzip.compress(whole[:cut]) if compressed else whole[:cut]
        (tmp_path / "t.tar.gz").write_bytes(content)
        found, rejected = read(tmp_path / "t.tar.gz")
        assert list(found) == list(keys)
        assert rejected == [("file", "t", "truncated" if cut else "not a tar")]


def words(out: Path | str, *shards: str, more: tuple[str, ...] = ()) -> list[str]:
    return ["webdataset", "--shards", *shards, "--out", str(out), *more]


def ids(folder: Path | str) -> list[str]:
    dataset = Dataset.open(str(folder), "captions")
    return read_rows(dataset, np.arange(dataset.rows), ["id"])["id"].to_pylist()


@pytest.mark.thorough
def test_tar_files_are_prepared_anywhere_and_what_is_missing_is_named(
    anywhere: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Folder.at(anywhere).make()
    source.write_bytes("cc-0.tar", samples("a", "b"))
    source.write_bytes("cc-2.tar.gz", gzip.compress(samples("a")))
    source.write_bytes("cc-3.tar", b"<html>404</html>" * 100)
    source.write_bytes("cc-0_stats.json", b"{}")
    shards = (f"{anywhere}/cc-{{0..1}}.tar", f"{anywhere}/cc-{{2,9}}.tar.gz", f"{anywhere}/cc-3.tar")
    assert prepare.main(words(tmp_path / "out", *shards)) == 0
    assert ids(tmp_path / "out") == ["cc-0/a", "cc-0/b", "cc-2/a"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == [
        ("cc-1", "missing"),
        ("cc-9", "missing"),
        ("cc-3", "not a tar"),
    ]
    assert prepare.main(words(tmp_path / "out", *shards)) == 0
    assert "prepared already (3 rows)" in capsys.readouterr().out
    source.write_bytes("cc-1.tar", samples("c"))
    assert prepare.main(words(tmp_path / "out", *shards)) == 2  # another source than before
    assert prepare.main(words(tmp_path / "strict", *shards, more=("--strict",))) == 1
    assert not (tmp_path / "strict").exists()
    assert prepare.main(words(tmp_path / "whole", anywhere)) == 0
    assert ids(tmp_path / "whole") == ["cc-0/a", "cc-0/b", "cc-1/c", "cc-2/a"]
    assert "passed over, other files than tar files: 1" in capsys.readouterr().out


def test_ranges_need_no_right_to_list(s3: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.use(monkeypatch)
    url = s3.folder()
    for number in (0, 2):
        Folder.at(url).write_bytes(f"{number}.tar", samples("a"))

    def denied(name: str) -> None:
        real = getattr(Folder, name)

        def listing(folder: Folder) -> Any:
            if folder.local:
                return real(folder)
            raise PermissionError("may not list")

        monkeypatch.setattr(Folder, name, listing)

    for name in ("files", "sizes", "states"):
        denied(name)
    # among them one that is not there, and one whose bucket is not
    assert prepare.main(words(tmp_path / "out", f"{url}/{{0..2}}.tar", f"s3://{servers.NO_BUCKET}/9.tar")) == 0
    assert ids(tmp_path / "out") == ["0/a", "2/a"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["id"], line["reason"]) for line in lines] == [("1", "missing"), ("9", "missing")]


def test_a_store_that_does_not_answer_ends_the_command(
    s3: servers.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no fault of a tar file: nothing is rejected, and the same command goes on later."""
    monkeypatch.setattr(object_store.open_store, "__defaults__", (RetryPolicy(1, 1.0),))
    s3.use(monkeypatch, AWS_ENDPOINT_URL="http://user:hidden-word@127.0.0.1:9")
    assert prepare.main(words(tmp_path / "out", "s3://bucket/{0..3}.tar")) == 2
    shown = capsys.readouterr().err
    assert "expected an answer" in shown
    assert "hidden-word" not in shown
    assert not (tmp_path / "out").exists()


def test_images_are_held_out_by_file_or_by_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(samples(*map(str, range(40))))
    a, b = f"{tmp_path}/a", f"{tmp_path}/b"
    assert prepare.main(words(tmp_path / "files", a, more=("--val", b))) == 0
    assert ids(tmp_path / "files" / "train") == [f"a/0/{number}" for number in range(40)]
    assert ids(tmp_path / "files" / "val") == [f"b/0/{number}" for number in range(40)]
    assert prepare.main(words(tmp_path / "half", a, more=("--val-fraction", "0.3"))) == 0
    train, val = (ids(tmp_path / "half" / name) for name in ("train", "val"))
    assert sorted(train + val) == sorted(f"0/{number}" for number in range(40))
    assert 4 < len(val) < 20
    assert prepare.main(words(tmp_path / "few", a, b, more=("--limit", "45"))) == 0
    assert ids(tmp_path / "few") == [f"a/0/{number}" for number in range(40)] + [f"b/0/{number}" for number in range(5)]
    for more, message in (
        (("--val", a), "other tar files than --shards"),
        (("--val", f"{tmp_path}/none*"), "--val: expected tar files, got none"),
        (("--val-fraction", "2"), "a fraction between 0 and 1"),
    ):
        assert prepare.main(words(tmp_path / "bad", a, more=more)) == 2
        assert message in capsys.readouterr().err
    assert prepare.main(words(tmp_path / "bad", f"{tmp_path}/none-{{0..3}}.tar")) == 2
    assert "none of 4 tar files exists" in capsys.readouterr().err


def test_a_disk_that_fills_keeps_whole_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The processes may write files of 64 kB at most: the kernel refuses the rest, as it does on a full disk."""
    for name in "01":
        (tmp_path / f"{name}.tar").write_bytes(samples("a"))
    (tmp_path / "2.tar").write_bytes(tar(("b.jpg", picture(side=400)), ("b.txt", "a large photo")))
    script = (
        "import resource, signal, sys\n"
        "import joblib\n"
        "from groundray import prepare\n"
        "joblib.cpu_count = lambda: 2\n"  # the third part begins when another one is whole
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))\n"
        "sys.exit(prepare.main(sys.argv[1:]))\n"
    )
    command = words(tmp_path / "out", f"{tmp_path}/{{0..2}}.tar")
    ended = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.search("free space there.* [12] whole parts? (is|are) kept", " ".join(ended.stderr.split()))
    assert not (tmp_path / "out").exists()
    assert prepare.main(command) == 0
    assert "whole from an earlier command" in capsys.readouterr().out
    assert ids(tmp_path / "out") == ["0/a", "1/a", "2/b"]
