"""Which columns of a table hold images, captions, ids and splits: as options say, or by well-known names.

A column of classes in place of captions is always named by an option.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from groundray.storage.delimited_text import plain

# in order of preference, which counts for ids alone
KNOWN = {
    "image": (
        *("image", "image_path", "image_file", "image_name", "image_url", "file_name", "filename", "filepath"),
        *("file", "path", "img", "img_path", "url"),
    ),
    "caption": (
        *("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "comment", "description", "alt_text"),
    ),
    "id": ("image_id", "img_id", "imgid", "id", "key", "filename", "file_name"),
    "split": ("split",),
}
OPTIONAL = ("id", "split")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a table; None for one that it does not have."""

    image: str
    caption: str | None
    id: str | None
    split: str | None
    label: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns other than that of the image."""
        return tuple(dict.fromkeys(name for name in (self.caption, self.label, self.id, self.split) if name))

    @property
    def named(self) -> tuple[str, ...]:
        """The columns of an image that is named."""
        return tuple(dict.fromkeys((self.image, *self.texts)))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that name columns."""
    either = parser.add_mutually_exclusive_group()
    for role, known in KNOWN.items():
        (either if role == "caption" else parser).add_argument(
            f"--{role}-column", metavar="NAME", help=f"column of the {role}s (default: one of {', '.join(known)})"
        )
    either.add_argument(
        "--label-column", metavar="NAME", help="column of a class of each image: writes labelled images, not captions"
    )


def has_columns(titles: Sequence[str], options: argparse.Namespace) -> bool:
    """Return whether there are columns for images and captions, so that a text is split at the right separator."""
    return all(_candidates(role, titles, options) for role in _roles(options) if role not in OPTIONAL)


def find_columns(titles: Sequence[str], binary: Sequence[str], options: argparse.Namespace, where: str) -> Columns:
    """Return the columns of a table.

    An image's column of bytes goes before others. Images that are files are told apart by their names, and have an id
    of another column only where `--id-column` names it: a column `id` may number the captions.

    Args:
        binary: titles of columns of bytes.
        where: path or URL of the table, for messages.

    Raises:
        ValueError: a column is missing, or several may be meant.
    """
    found: dict[str, str | None] = {}
    for role in _roles(options):
        option, names = f"--{role}-column", _candidates(role, titles, options)
        if role == "image" and not getattr(options, "image_column", None):
            names = [name for name in names if name in binary] or names
        if role == "id" and not options.id_column and found["image"] not in binary:
            names = []
        if role == "id":
            names = [name for name in names if name != found["image"]][:1]
        if not names:
            found[role] = _missing(role, titles, options, where)
            continue
        if len(names) > 1:
            raise ValueError(f"{where}: expected one column of {role}s, got {', '.join(names)}: choose with {option}")
        found[role] = names[0]
    return Columns(found["image"] or "", found.get("caption"), found["id"], found["split"], found.get("label"))


def _roles(options: argparse.Namespace) -> list[str]:
    """Return what columns are for: a table has captions or classes."""
    return ["label" if role == "caption" and options.label_column else role for role in KNOWN]


def _candidates(role: str, titles: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Return the titles that an option, or else a well-known name, stands for."""
    option: str | None = getattr(options, f"{role}_column", None)
    if option and option in titles:
        return [option]
    known = [plain(option)] if option else KNOWN[role]
    return [title for name in known for title in titles if plain(title) == name]


def _missing(role: str, titles: Sequence[str], options: argparse.Namespace, where: str) -> None:
    """Do nothing if a column may be missing.

    Raises:
        ValueError: it may not.
    """
    from groundray.config import did_you_mean  # loads pydantic, which the processes of parts do not need

    option = getattr(options, f"{role}_column", None)
    got = f"got the columns {', '.join(titles)}"
    if option:
        raise ValueError(
            f"{where}: expected a column {option!r} (--{role}-column), {got}{did_you_mean(option, titles)}"
        )
    if role not in OPTIONAL:
        near = next((hint for name in KNOWN[role] if (hint := did_you_mean(name, titles))), "")
        raise ValueError(
            f"{where}: expected a column of {role}s named {', '.join(KNOWN[role])}, {got}: name it with "
            f"--{role}-column{near}; name all columns of a text file without titles with --columns"
        )
