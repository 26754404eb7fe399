"""`python -m groundray.serve`: search a pool of images in a browser, with a trained model."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence

from rich.console import Console

from groundray.cli.image_index import add_options, indexed, places_of, ready
from groundray.storage.folder import Folder

EXIT_FAILED, EXIT_USAGE = 1, 2
HOST, PORT = "127.0.0.1", 8000


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0 served and ended by Ctrl-C or SIGTERM, 1 a failure while starting, 2 a model or images that
    cannot be used, 130 or 143 ended by a signal before it served."""
    options = _parser().parse_args(words)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    # brings torch and Ray, which --help does without
    from groundray.cli.run_session import EXIT_SIGNAL, Signals

    signals, served = Signals(), False
    try:
        ready(options, errors)
        with signals.heard(), _served(options, console) as address:
            served = True
            console.print(f"search  {address}  (Ctrl-C ends it)")
            if options.open and _has_browser():
                webbrowser.open(address)
            threading.Event().wait()
    except KeyboardInterrupt:
        if not served:
            errors.print("stopped before it served; what is made of the index is kept, and the same command goes on")
            return EXIT_SIGNAL + signals.received[0]
    except (OSError, ValueError) as error:
        errors.print(f"error: {error}")
        return EXIT_USAGE
    except RuntimeError as error:
        errors.print(f"error: {error}")
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m groundray.serve", description=__doc__)
    add_options(parser)
    parser.add_argument("--norms", metavar="DIR", help="folder of categories.csv and concreteness.csv, for the words")
    parser.add_argument("--host", default=HOST, help=f"to listen at ({HOST}: for this machine alone)")
    parser.add_argument("--port", type=int, default=PORT, help=f"to listen at ({PORT})")
    parser.add_argument("--replicas", type=int, default=1, metavar="N", help="that share the requests (1)")
    parser.add_argument("--open", action="store_true", help="open it in this machine's browser, if there is one")
    return parser


@contextlib.contextmanager
def _served(options: argparse.Namespace, console: Console) -> Iterator[str]:
    """Meanwhile it is served; its address."""
    from groundray.image_search import towers, word_space
    from groundray.image_search.index import open_pool
    from groundray.runtime import cluster

    # what cannot be used is told before Ray starts
    towers.check_searchable(options.checkpoint)
    open_pool(options.images)
    if options.norms:
        word_space.Words.of_norms(options.norms)
    with cluster.connect(verbose=options.verbose):
        indexed(options, console)
        from groundray.runtime.serve.deployment import (
            Arguments,
            serving,
        )  # brings Serve, which the cluster has made quiet

        # absolute paths, which mean the same in a replica's own working folder, or URLs
        places = {name: place and str(Folder.at(place)) for name, place in places_of(options).items()}
        arguments = Arguments.model_validate({**places, "replicas": options.replicas})
        with serving(arguments, options.host, options.port) as address:
            yield address


def _has_browser() -> bool:
    """Whether there is a screen to show one on: without it, some systems open one in the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())
