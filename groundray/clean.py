"""`python -m groundray.clean`: what takes disk space, and what of it may go; deletes that with `--yes`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from groundray.cli.command import EXIT_FAILED, run_command, table_console
from groundray.cli.workdir import open_paths, write_json

if TYPE_CHECKING:
    from groundray.training.disk_usage import Item

FOLDER, IDLE_HOURS = "runs", 6.0
KINDS = {
    "results": "models, results, histories and reports of runs",
    "data": "prepared data sets",
    "checkpoints": "checkpoints of runs",
    "attempts": "checkpoints of attempts that a later attempt did not build on",
    "state": "Ray's own state of runs",
    "stacks": "stack traces and samples of failed steps",
    "features": "trunk features",
    "index": "indexes for search",
    "vectors": "vectors of words that analyses keep",
    "models": "models that were downloaded from MLflow",
    "temporary": "files and folders of commands that were killed",
    "other": "other files",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Clean and return the exit status: 0, 1 something that was to be deleted is in use by now, 2 a folder cannot be
    used, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    return run_command(partial(_run, argv), interrupted="interrupted; what is not deleted yet is kept")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray clean",
        description="Show what runs, features, indexes and caches take, and which of it may be deleted: what no active "
        "run uses and what a command makes again. Nothing is deleted without --yes; models, results, data sets and the "
        "checkpoints that a run resumes from never are.",
        epilog="kinds:\n" + "\n".join(f"  {kind:<13}{about}" for kind, about in KINDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="DIR",
        help=f"folders or URLs of runs or data sets (default: {FOLDER})",
    )
    parser.add_argument(
        "--features", metavar="DIR", help="trunk features, if features.folder is set (default: .features of each DIR)"
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="vectors of analyses, downloaded models and their indexes (default: ~/.cache/groundray if no DIR is "
        "named, else none)",
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(KINDS), metavar="KIND", help="kinds to show and delete (default: all)"
    )
    parser.add_argument(
        "--idle-hours",
        type=float,
        default=IDLE_HOURS,
        metavar="N",
        help=f"hours after its last heartbeat for which a run counts as active (default: {IDLE_HOURS:g})",
    )
    parser.add_argument("--yes", action="store_true", help="delete what may go, instead of only showing it")
    parser.add_argument("--json", metavar="FILE", help="path or URL to write the list to as well (default: none)")
    return parser


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    if options.idle_hours < 0:
        raise ValueError(f"--idle-hours: expected at least 0, got {options.idle_hours:g}")
    open_paths(errors.print, [*options.folders, options.features, options.cache, options.json])
    return _clean(options, table_console(), errors)


def _clean(options: argparse.Namespace, console: Console, errors: Console) -> int:
    from groundray.storage.folder import Folder, format_bytes
    from groundray.storage.user_cache import user_cache
    from groundray.training.disk_usage import find_cached, find_items, find_stack_files

    idle_seconds = options.idle_hours * 3600
    items = []
    for url in options.folders or [FOLDER]:
        folder = Folder.at(url)
        if not folder.exists():
            raise FileNotFoundError(f"expected a folder of runs or data sets at {folder}, there is none")
        items += find_items(folder, Folder.at(options.features) if options.features else None, idle_seconds)
    if options.cache or not options.folders:  # else a command for one folder would empty what all share
        items += find_cached(user_cache(options.cache), idle_seconds)
    items += find_stack_files()
    items = [item for item in items if options.only is None or item.kind in options.only]
    table = Table()
    for name in ("kind", "what", "size", "last used", "state"):
        table.add_column(name, justify="right" if name in ("size", "last used") else "left", overflow="fold")
    deletable = [item for item in items if not item.kept]
    rows: dict[tuple[str, ...], list[Item]] = {}
    for item in items:  # the checkpoints of a run take a row, not one each
        shown = str(item.folder) if item.kind in ("checkpoints", "attempts") else item.path
        rows.setdefault((item.kind, shown, item.kept or "may go"), []).append(item)
    for (kind, shown, state), some in rows.items():
        size, used = sum(item.bytes for item in some), max(item.last_used for item in some)
        what = f"{shown} ({len(some)})" if len(some) > 1 else some[0].path
        table.add_row(kind, what, format_bytes(size), f"{(time.time() - used) / 86400:.1f} days ago", state)
    console.print(table)
    busy = []
    if options.yes:
        busy = [item for item in deletable if not item.delete(idle_seconds)]
        for item in busy:
            errors.print(f"{item.path} is in use by now and is kept")
    gone = sum(item.bytes for item in deletable if item not in busy)
    total = sum(item.bytes for item in items)
    what = "deleted" if options.yes else "may go" + (": add --yes to delete it" if gone else "")
    console.print(f"{format_bytes(total)} in total, {format_bytes(gone)} {what}")
    write_json(
        options.json,
        [
            {
                "kind": item.kind,
                "path": item.path,
                "bytes": item.bytes,
                "last_used": item.last_used,
                "kept": item.kept,
                "deleted": options.yes and not item.kept and item not in busy,
            }
            for item in items
        ],
    )
    return EXIT_FAILED if busy else 0


if __name__ == "__main__":
    sys.exit(main())
