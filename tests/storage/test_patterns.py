"""Patterns of files: ranges in braces, globs and folders, on paths and in stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundray.storage.folder import Folder
from groundray.storage.patterns import expand_braces, match_files, short_names

TARS = (".tar", ".tar.gz")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{0..1}/{a,bc}", ["0/a", "0/bc", "1/a", "1/bc"]),
        ("{9..10}", ["9", "10"]),
        ("{one}", ["{one}"]),  # as a shell leaves it
    ],
)
def test_braces_are_expanded_as_a_shell_does(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{3..1}", "{0..9999999}", "{1..9999}{1..9999}"])
def test_a_range_without_use_raises(pattern: str) -> None:
    with pytest.raises(ValueError, match="expected a range"):
        expand_braces(pattern)


def test_files_are_found_anywhere(anywhere: str) -> None:
    folder = Folder.at(anywhere)
    names = ["0.tar", "1.tar", "10.tar", "1_stats.json", "in/2.tar.gz"]
    for name in names:
        (folder / name).parent.make()
        folder.write_bytes(name, b"x")

    def found(*patterns: str) -> tuple[list[str], int]:
        matched = match_files([f"{anywhere}/{pattern}" for pattern in patterns], TARS)
        return [file.removeprefix(f"{anywhere}/") for file in matched.files], matched.passed_over

    assert found("") == (["0.tar", "1.tar", "10.tar", "in/2.tar.gz"], 1)
    assert found("?.tar") == (["0.tar", "1.tar"], 0)
    assert found("1*") == (["1.tar", "10.tar"], 1)
    assert found("i*/*") == (["in/2.tar.gz"], 0)
    assert found("{1..3}.tar", "*.tar") == (["1.tar", "2.tar", "3.tar", "0.tar", "10.tar"], 0)
    assert found("none*") == ([], 0)


def test_paths_are_absolute_and_a_literal_name_is_no_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[1].tar").write_bytes(b"")
    assert match_files(["a[1].tar"], TARS).files == match_files(["*.tar"], TARS).files == [str(tmp_path / "a[1].tar")]


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names(["/x/a/0.tar", "/x/a/1.tar.gz"], TARS) == {"0": "/x/a/0.tar", "1": "/x/a/1.tar.gz"}
    assert short_names(["/x/a/0.tar", "s3://b/0.tar"], TARS) == {"a/0": "/x/a/0.tar", "b/0": "s3://b/0.tar"}
    assert short_names(["/x/0.tar", "/x/0.tar.gz"], TARS) == {"0.tar": "/x/0.tar", "0.tar.gz": "/x/0.tar.gz"}
    assert short_names([], TARS) == {}
