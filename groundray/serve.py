"""`python -m groundray.serve`: search a pool of images in a browser, with a trained model."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from functools import partial

from rich.console import Console

from groundray.cli import image_index
from groundray.cli.command import plain_console, run_command
from groundray.cli.workdir import open_paths

HOST, PORT = "127.0.0.1", 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM and return the exit status: 0 it served, 1 it failed to start, 2 the model or the
    images cannot be used, 130 or 143 stopped by Ctrl-C or SIGTERM before it served."""
    return run_command(partial(_run, argv), interrupted=image_index.INTERRUPTED, failed=(RuntimeError,))


def _run(argv: Sequence[str] | None, errors: Console) -> int:
    options, console = build_parser().parse_args(argv), plain_console(optional=True)
    open_paths(errors.print, image_index.paths_of(options).values())
    served = False
    try:
        with _service(options, console) as address:
            served = True
            console.print(f"search  {address}  (Ctrl-C stops it)")
            if options.open and _has_browser():
                webbrowser.open(address)
            threading.Event().wait()
    except KeyboardInterrupt:
        if not served:
            raise
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(
        prog="groundray serve", description="Search a pool of images in a browser, with a trained model."
    )
    image_index.add_options(parser)
    parser.add_argument(
        "--norms",
        metavar="DIR",
        help="folder with categories.csv and concreteness.csv, for the map of words (default: none)",
    )
    parser.add_argument("--host", default=HOST, help=f"address to listen at (default: {HOST}, this machine only)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port to listen at (default: {PORT})")
    parser.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="processes that share the requests (default: 1)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser, if there is one")
    return parser


@contextlib.contextmanager
def _service(options: argparse.Namespace, console: Console) -> Iterator[str]:
    """Serve inside the context; yields the address."""
    from groundray.runtime import cluster  # imports Ray, which --help does without

    image_index.check_inputs(options)
    with cluster.connect(verbose=options.verbose):
        image_index.open_index(options, console)
        from groundray.runtime.serve import deployment  # imports Ray Serve, which `connect` has made quiet

        arguments = deployment.Arguments.model_validate(
            {**image_index.absolute_paths_of(options), "replicas": options.replicas}
        )
        with deployment.serving(arguments, options.host, options.port) as address:
            yield address


def _has_browser() -> bool:
    """Return True if there is a screen for a browser: without one, some systems open a browser in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
