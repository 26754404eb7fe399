"""`python -m groundray.search`: find the images of a pool nearest to a text, a picture, or a mix of both.

With neither text nor picture, it builds the index of the images and stops.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from groundray.cli import image_index
from groundray.cli.command import run_command, table_console
from groundray.cli.workdir import open_paths, write_json

if TYPE_CHECKING:
    from groundray.image_search.query import Answer


def main(argv: Sequence[str] | None = None) -> int:
    """Search and return the exit status: 0, 2 the model, the images or the query cannot be used, 130 or 143 stopped by
    Ctrl-C or SIGTERM."""
    return run_command(
        partial(_run, argv), interrupted=image_index.INTERRUPTED, unusable=(OSError, ValueError, LookupError)
    )


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    open_paths(errors.print, [*image_index.paths_of(options).values(), options.json])
    image_index.locate_model(options, errors)
    write_json(options.json, _search(options, table_console()))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray search",
        description="Find the images of a pool nearest to a text, a picture, or a mix of both. With neither, build the "
        "index of the images and stop.",
    )
    image_index.add_options(parser)
    parser.add_argument("--text", metavar="TEXT", help="word or phrase to search for (default: none)")
    parser.add_argument(
        "--image", metavar="ID|FILE", help="image of the pool, or picture file, to search for (default: none)"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        default=[0.5],
        metavar="A",
        help="weight of the text, from 0, the image alone, to 1, the text alone; one answer for each (default: 0.5)",
    )
    parser.add_argument("--k", type=int, default=10, metavar="N", help="images in each answer (default: 10)")
    parser.add_argument("--json", metavar="FILE", help="path or URL to write the answers to as well (default: none)")
    return parser


def _search(options: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    """Print the answers and return them."""
    from groundray.image_search.query import Query, Search

    if options.text is None and options.image is None:
        image_index.open_index(options, console)
        return []
    # a query that cannot be answered fails before anything is loaded
    query = Query(options.text, options.image, tuple(options.alpha), options.k)
    towers, spec = image_index.open_index(options, console)
    search = Search.over(towers, spec, lambda line: console.print(f"index   {line}"))
    if options.image is not None and options.image not in search.index and Path(options.image).is_file():
        query = Query(options.text, Path(options.image).read_bytes(), tuple(options.alpha), options.k)
    (answers,) = search.answer([search.prepare(query)])
    console.print(table_of(answers))
    return [asdict(answer) for answer in answers]


def table_of(answers: Sequence[Answer]) -> Table:
    """Return the answers side by side, a row for each rank. FAISS may find fewer images for one than for another."""
    table = Table()
    table.add_column("rank", justify="right")
    for answer in answers:
        table.add_column(f"alpha {answer.alpha:g}" if len(answers) > 1 else "image", justify="left")
        table.add_column("cosine", justify="right")
    for rank, hits in enumerate(zip_longest(*(answer.hits for answer in answers)), start=1):
        cells = [cell for hit in hits for cell in ((hit.id, f"{hit.score:.3f}") if hit else ("", ""))]
        table.add_row(str(rank), *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
