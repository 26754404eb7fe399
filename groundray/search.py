"""`python -m groundray.search`: the images that lie nearest to a text, to a picture, or to a mix of both.

With neither text nor picture, the index of the images is made, and that is all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from groundray.cli.image_index import add_options, indexed, ready
from groundray.cli.progress import table_console
from groundray.storage.folder import Folder

EXIT_USAGE, EXIT_INTERRUPTED = 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 for a model, images or a query that cannot be used, 130 ended by Ctrl-C."""
    options = _parser().parse_args(words)
    console = table_console()
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    try:
        ready(options, errors)
        file = Folder.connect(options.json) if options.json else None
        found = _search(options, console)
        if file:
            file.parent.make().write_json(file.name, found)
    except KeyboardInterrupt:
        errors.print("interrupted; what is made of the index is kept, and the same command goes on from there")
        return EXIT_INTERRUPTED
    except (OSError, ValueError, LookupError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.search", description=__doc__)
    add_options(parser)
    parser.add_argument("--text", metavar="TEXT", help="a word or phrase")
    parser.add_argument("--image", metavar="ID|FILE", help="an image of the pool, or a picture of your own")
    parser.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        default=[0.5],
        metavar="A",
        help="from 0, the image alone, to 1, the text (0.5)",
    )
    parser.add_argument("--k", type=int, default=10, metavar="N", help="images of each answer (10)")
    parser.add_argument("--json", metavar="FILE", help="path or URL to write the answers to, too")
    return parser


def _search(options: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    """The answers, after they are printed."""
    from groundray.image_search.index import Index
    from groundray.image_search.query import Query, Search

    if options.text is None and options.image is None:
        _, spec = indexed(options, console)
        console.print(f"index   {spec.source.rows:,} images at {spec.folder}")
        return []
    # what is wrong with the query itself is told before anything is loaded
    query = Query(options.text, options.image, tuple(options.alpha), options.k)
    towers, spec = indexed(options, console)
    search = Search.over(towers, Index(spec))
    if options.image is not None and options.image not in search.index and Path(options.image).is_file():
        query = Query(options.text, Path(options.image).read_bytes(), tuple(options.alpha), options.k)
    (answers,) = search.answer([search.prepare(query)])
    table = Table()
    table.add_column("rank", justify="right")
    for answer in answers:
        table.add_column(f"alpha {answer.alpha:g}" if len(answers) > 1 else "image", justify="left")
        table.add_column("cosine", justify="right")
    for hits in zip(*(answer.hits for answer in answers), strict=True):
        cells = [cell for hit in hits for cell in (hit.id, f"{hit.score:.3f}")]
        table.add_row(str(hits[0].rank), *cells)
    console.print(table)
    return [asdict(answer) for answer in answers]


if __name__ == "__main__":
    sys.exit(main())
