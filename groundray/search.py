"""`python -m groundray.search`: find the images of a pool nearest to a text, a picture, or a mix of both.

With neither text nor picture, it builds the index of the images and stops. `--grid` draws many searches as a picture.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from groundray.cli import image_index
from groundray.cli.command import run_command, table_console
from groundray.cli.workdir import open_paths, write_file, write_json
from groundray.storage.folder import format_bytes
from groundray.storage.local_path import expanded

if TYPE_CHECKING:
    from groundray.image_search.grid import GridQuery
    from groundray.image_search.named_image import NamedImage
    from groundray.image_search.query import Answer, Hit, Query, Search


def main(argv: Sequence[str] | None = None) -> int:
    """Search and return the exit status: 0, 2 the model, the images or the query cannot be used, 130 or 143 stopped by
    Ctrl-C or SIGTERM."""
    return run_command(
        partial(_run, argv), interrupted=image_index.INTERRUPTED, unusable=(OSError, ValueError, LookupError)
    )


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options = build_parser().parse_args(argv)
    open_paths(errors.print, [*image_index.paths_of(options).values(), options.json, options.grid])
    work = _work(options)
    image_index.locate_model(options, errors)
    write_json(options.json, work(options, table_console()))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray search",
        description="Find the images of a pool nearest to a text, a picture, or a mix of both. With neither, build the "
        "index of the images and stop.",
    )
    image_index.add_options(parser)
    parser.add_argument(
        "--text",
        action="append",
        metavar="TEXT",
        help="word or phrase to search for; several are all meant, or with --grid a column each (default: none)",
    )
    parser.add_argument(
        "--without", metavar="TEXT", help="word or phrase for what the images should not show (default: none)"
    )
    parser.add_argument(
        "--image",
        action="append",
        metavar="ID|FILE",
        help="image of the pool, or picture file, to search for; repeatable with --grid (default: none)",
    )
    parser.add_argument(
        "--filter",
        nargs="+",
        action="extend",
        default=[],
        metavar="CONDITION",
        help="conditions that the images meet: width or height in pixels (width>=640), orientation=landscape, portrait "
        "or square, id=PATTERN with * and ?, label=NAME; != excludes; of several = of one field one is enough",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        metavar="A",
        help="weight of the text, from 0, the image alone, to 1, the text alone; one answer for each (default: 0.5; "
        "with --grid, one image and one text, 0 to 1 by .05)",
    )
    parser.add_argument(
        "--k",
        type=int,
        metavar="N",
        help="images in each answer (default: 10; with --grid 5 at each alpha, or 3 in each cell)",
    )
    parser.add_argument(
        "--grid",
        metavar="FILE",
        help="path or URL of a picture to draw, .png, .svg or .pdf: one image and one text over alpha, with each found "
        "image at the alphas where it is among the nearest; or several images by several texts (default: none)",
    )
    parser.add_argument("--json", metavar="FILE", help="path or URL to write the answers to as well (default: none)")
    return parser


def _work(options: argparse.Namespace) -> Callable[[argparse.Namespace, Console], list[dict[str, object]]]:
    """Return what the options ask for: a function that does it and returns its answers. A query that cannot be answered
    fails here, before anything is loaded."""
    from groundray.image_search.filters import Filter
    from groundray.image_search.grid import GridQuery
    from groundray.image_search.named_image import NamedImage
    from groundray.image_search.query import DEFAULT_ALPHA, Query, check_rerank

    check_rerank(options.rerank)
    images, texts = options.image or [], options.text or []
    filter = Filter.parse(options.filter)
    if options.grid is not None:
        _check_file(options.grid)
        named = [NamedImage.read(image, options.images) for image in images]
        return partial(_draw, GridQuery.of(named, texts, options.alpha, options.k, options.without, filter))
    if len(images) > 1:
        raise ValueError(f"--image: expected one, got {len(images)}: several are drawn as a picture with --grid FILE")
    if not images and not texts and not filter and options.without is None:
        return _build
    image = NamedImage.read(images[0], options.images) if images else None
    alphas, k = tuple(options.alpha or (DEFAULT_ALPHA,)), 10 if options.k is None else options.k
    query = Query(tuple(texts), image and image.name, alphas, k, options.without, filter)
    return partial(_search, query, image)


def _check_file(grid: str) -> None:
    """Raise ValueError if a picture cannot be written to a path or URL."""
    from groundray.image_search.grid_picture import format_of

    format_of(grid)
    if "://" not in grid and expanded(grid).is_dir():
        raise ValueError(f"grid: expected a file, got the folder {grid}")


def _build(options: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    """Build the index and the position features, if they are missing."""
    towers, spec = image_index.open_index(options, console)
    image_index.open_positions(options, console, towers, spec.source)
    return []


def _search(
    query: Query, image: NamedImage | None, options: argparse.Namespace, console: Console
) -> list[dict[str, object]]:
    """Print the answers and return them."""
    search = _open(options, console)
    query = replace(query, image=image and image.query(search.index))
    (answers,) = search.answer([search.prepare(query)])
    conditions = " ".join(map(str, query.filter.conditions))
    if any(answer.hits for answer in answers):
        console.print(table_of(answers))
    elif not len(search.index):
        console.print("search  the pool has no images left: all were removed")
    else:
        console.print(f"search  none of the {len(search.index):,} images meets {conditions}")
    return [asdict(answer) for answer in answers]


def _draw(asked: GridQuery, options: argparse.Namespace, console: Console) -> list[dict[str, object]]:
    """Write the picture and return the answers that it shows."""
    from groundray.image_search.grid import ask
    from groundray.image_search.grid_picture import format_of, picture

    grid = ask(asked, _open(options, console))
    content = picture(grid, format_of(options.grid))
    write_file(options.grid, content)
    console.print(
        f"grid    {options.grid}  {format_bytes(len(content))}  {len(grid.answers)} answers, "
        f"{len(grid.thumbnails)} images found"
    )
    return [asdict(answer) for answer in grid.answers]


def _open(options: argparse.Namespace, console: Console) -> Search:
    from groundray.image_search.positions import open_positions
    from groundray.image_search.query import Search

    towers, spec = image_index.open_index(options, console)
    again = image_index.open_positions(options, console, towers, spec.source)

    def tell(line: str) -> None:
        console.print(f"index   {line}")

    search = Search.over(towers, spec, tell, reranks=again is not None)
    if again is None:
        return search
    matcher, positions = again
    return search.reranking(matcher, open_positions(positions, tell), options.rerank)


def table_of(answers: Sequence[Answer]) -> Table:
    """Return the answers side by side, a row for each rank. FAISS may find fewer images for one than for another."""
    table = Table()
    again = any(hit.match is not None for answer in answers for hit in answer.hits)
    table.add_column("rank", justify="right")
    for answer in answers:
        table.add_column(f"alpha {answer.alpha:g}" if len(answers) > 1 else "image", justify="left")
        for name in ("match", "cosine") if again else ("cosine",):
            table.add_column(name, justify="right")
    for rank, hits in enumerate(zip_longest(*(answer.hits for answer in answers)), start=1):
        cells = [cell for hit in hits for cell in _cells(hit, again)]
        table.add_row(str(rank), *cells)
    return table


def _cells(hit: Hit | None, again: bool) -> list[str]:
    """Return a found image's id, match and cosine; the match only if some images have one."""
    if hit is None:
        return [""] * (3 if again else 2)
    match = ["" if hit.match is None else f"{hit.match:.2f}"] if again else []
    return [hit.id, *match, f"{hit.score:.3f}"]


if __name__ == "__main__":
    sys.exit(main())
